"""JSON values written by others: arbitrary numbers, and limits on nesting."""

import json
import re
import sys
from typing import Any, Dict, List

Doc = Dict[str, Any]
LARGEST_NUMBER = 1e300  # larger numbers overflow in calculations: Python's integers have no limit
MOST_NESTED = 500  # lists and objects within each other in a field of a token: Python's JSON fails at about 990
TOO_DEEP = f"is nested more than {MOST_NESTED} deep"
HUGE_INTEGER = re.compile(rb"[0-9]{4301}")  # more digits than Python 3.11 and later read as an integer
TOO_LONG = "has an integer of more than 4300 digits"
LONG_INTEGER = re.compile(rb"[0-9]{309}")  # digits of the smallest integer that CouchDB 3.5 does not store
TOO_LARGE_NUMBER = "a number beyond 1.8e308, which CouchDB does not store: write it as a string"


def number(value: Any, default: float = 0) -> float:
    """A JSON value as a number to calculate with, or the default if it is not a number."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if is_number and abs(value) < LARGEST_NUMBER else default


def list_or_empty(value: Any) -> List[Any]:
    """A JSON value if it is a list, else an empty list."""
    return value if isinstance(value, list) else []


def read_answer(answer: bytes) -> Any:
    """Parse the JSON of a response. Raises ValueError, also for integers that Python 3.11 refuses: older versions take
    minutes."""
    limited = 0 < getattr(sys, "get_int_max_str_digits", int)() <= 4300
    return json.loads(
        answer.decode("utf-8"), parse_int=None if limited or not HUGE_INTEGER.search(answer) else _integer
    )


def _integer(text: str) -> int:
    if len(text) > 4301:
        raise ValueError("an integer with too many digits")
    return int(text)


def parse_value(data: bytes) -> Any:
    """The JSON value in a file that a command wrote. Raises ValueError, to be read after the file's name."""
    try:
        value = json.loads(data.decode("utf-8"))
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")  # NaN and lone surrogates are not JSON
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not valid JSON: {error!s:.200}") from None
    if is_nested_more(value, MOST_NESTED):
        raise ValueError(f"is nested more than {MOST_NESTED} deep")
    if LONG_INTEGER.search(data) and holds_large_integer(value):
        raise ValueError(f"holds {TOO_LARGE_NUMBER}")
    return value


def holds_large_integer(value: Any) -> bool:
    """True if a JSON value holds an integer that CouchDB does not store."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, (dict, list, tuple)):
            waiting += item.values() if isinstance(item, dict) else item
        elif isinstance(item, int) and abs(item) > sys.float_info.max:
            return True
    return False


def is_nested_more(value: Any, most: int) -> bool:
    """True if lists and objects are nested more than ``most`` deep."""
    level = [value]
    for _ in range(most + 1):
        level = [item for item in level if isinstance(item, (dict, list, tuple))]
        if not level:
            return False
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return True
