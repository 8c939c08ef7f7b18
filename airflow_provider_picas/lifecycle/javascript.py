"""JavaScript's conversions of values that came from JSON, as CouchDB's views apply them (ECMA-262)."""

import math
import re
from decimal import Decimal
from typing import Any

MISSING: Any = object()  # JavaScript's undefined: the document has no such field


def to_number(value: Any) -> float:
    """JavaScript's ``Number(value)`` for a value that came from JSON."""
    if type(value) is int:
        return _float(value)
    if value is MISSING:
        return math.nan
    if value is None:
        return 0.0
    if isinstance(value, (bool, int, float)):
        return _float(value)
    if isinstance(value, str):
        return _string_to_number(value)
    return _string_to_number(to_string(value))


def to_string(value: Any) -> str:
    """JavaScript's ``String(value)`` for a value that came from JSON."""
    if value is MISSING:
        return "undefined"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return number_to_string(_float(value))
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return ",".join("" if item is None else to_string(item) for item in value)
    return "[object Object]"


def parse_int(value: Any) -> float:
    """JavaScript's ``parseInt(value)``; NaN if there is no leading integer."""
    if type(value) is int and abs(value) < _EXPONENT:
        return _float(value)  # fast path: nearly all values are integers, in every token that is read
    text = to_string(value).strip(_JS_SPACE)
    match = re.match(r"([+-]?)(0[xX])?", text)
    sign, prefix = (match.group(1), match.group(2)) if match else ("", None)
    rest = text[len(sign) + len(prefix or "") :]
    digits = re.match(r"[0-9a-fA-F]+" if prefix else r"[0-9]+", rest)
    if digits is None:
        return math.nan
    # float() of the digits, since int() refuses more than 4,300 of them.
    number = _float(int(digits.group(), 16)) if prefix else float(digits.group())
    return -number if sign == "-" else number


_EXPONENT = 10**21  # from here on, a number prints with an exponent, and parseInt reads only the digits before it
_JS_SPACE = "\t\n\v\f\r \u00a0\u1680\u2028\u2029\u202f\u205f\u3000\ufeff" + "".join(map(chr, range(0x2000, 0x200B)))


def equals_zero(value: Any) -> bool:
    # Loose comparison, as ==: null equals only null and undefined, so not 0, although Number(null) is 0.
    return value is not None and to_number(value) == 0


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer beyond the range of a double is Infinity in JavaScript
        return math.inf if value > 0 else -math.inf


def _string_to_number(text: str) -> float:
    text = text.strip(_JS_SPACE)
    if not text:
        return 0.0
    prefixed = re.fullmatch(r"0(?:[xX]([0-9a-fA-F]+)|[oO]([0-7]+)|[bB]([01]+))", text)
    if prefixed:
        hexadecimal, octal, binary = prefixed.groups()
        return _float(int(hexadecimal or octal or binary, 16 if hexadecimal else 8 if octal else 2))
    if re.fullmatch(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?", text):
        return float(text)
    if re.fullmatch(r"[+-]?Infinity", text):
        return -math.inf if text[0] == "-" else math.inf
    return math.nan


def number_to_string(number: float) -> str:
    """ECMA-262 Number::toString: plain digits from 1e-6 up to 1e21, else an exponent."""
    if math.isnan(number):
        return "NaN"
    if math.isinf(number):
        return "Infinity" if number > 0 else "-Infinity"
    if number == 0:
        return "0"
    sign = "-" if number < 0 else ""
    _, digit_tuple, exponent = Decimal(repr(abs(number))).normalize().as_tuple()
    digits = "".join(map(str, digit_tuple))
    point = len(digits) + int(exponent)
    if len(digits) <= point <= 21:
        return sign + digits + "0" * (point - len(digits))
    if 0 < point <= 21:
        return f"{sign}{digits[:point]}.{digits[point:]}"
    if -6 < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    mantissa = digits[0] + (f".{digits[1:]}" if len(digits) > 1 else "")
    return f"{sign}{mantissa}e{'+' if point > 0 else '-'}{abs(point - 1)}"
