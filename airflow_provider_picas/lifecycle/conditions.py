"""Conditions on a token, as views state them: ``doc.lock > 0 && doc.status == "done"``.

They are read from text, evaluated in Python as JavaScript evaluates them, and written as JavaScript again.
"""

import json
import re
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Tuple

from airflow_provider_picas.lifecycle.javascript import MISSING, number_to_string, parse_int, to_number, to_string

LARGEST_INTEGER = 2**53 - 1  # above it, JavaScript's numbers skip integers
MOST_ALTERNATIVES = 64


class Condition(NamedTuple):
    """One comparison of a field with a value. ``parsed`` compares ``parseInt(field)`` instead of the field."""

    field: str
    operator: str
    parsed: bool = False
    value: Any = 0  # a string, a number, true, false or null

    def holds(self, doc: Mapping[str, Any]) -> bool:
        """True if the condition holds for a document, as in JavaScript."""
        value = doc.get(self.field, MISSING)
        return _COMPARISONS[self.operator](parse_int(value) if self.parsed else value, self.value)

    def javascript(self) -> str:
        """The condition as JavaScript on ``doc``."""
        return f"{self._left('doc.')} {self.operator} {_literal(self.value)}"

    def __str__(self) -> str:
        return f"{self._left('')} {self.operator} {_literal(self.value)}"

    def _left(self, prefix: str) -> str:
        plain = re.match(r"[A-Za-z_$][A-Za-z0-9_$]*\Z", self.field) and self.field not in _RESERVED
        field = prefix + self.field if plain else f"doc[{json.dumps(self.field)}]"
        return f"parseInt({field})" if self.parsed else field


Conditions = Tuple[Condition, ...]  # all of them must hold


def all_hold(conditions: Conditions, doc: Mapping[str, Any]) -> bool:
    """True if all conditions hold for a document."""
    for condition in conditions:  # noqa: SIM110 - a generator is slower, and this runs for every token that is read
        if not condition.holds(doc):
            return False
    return True


def javascript(conditions: Conditions) -> str:
    """Conditions as one JavaScript expression on ``doc``."""
    return " && ".join(condition.javascript() for condition in conditions)


def text_of(conditions: Conditions) -> str:
    """Conditions in the form that ``parse`` reads."""
    return " && ".join(map(str, conditions))


# -- JavaScript's comparisons of a value from JSON with a literal -----------------------------------------------------


def _equal(value: Any, literal: Any) -> bool:
    """``==``: null equals only null and undefined; otherwise a string and another type are compared as numbers."""
    if type(value) is int and type(literal) is int:
        return bool(value == literal)  # fast path: nearly all values are integers, in every token that is read
    if literal is None or value is None or value is MISSING:
        return literal is None and (value is None or value is MISSING)
    if isinstance(literal, str):
        if isinstance(value, (str, list, dict)):
            return to_string(value) == literal
        return to_number(value) == to_number(literal)
    return bool(to_number(value) == literal)


def _same(value: Any, literal: Any) -> bool:
    """``===``: the same type and value."""
    if isinstance(value, bool) or isinstance(literal, bool) or literal is None or isinstance(literal, str):
        return type(value) is type(literal) and bool(value == literal)
    return isinstance(value, (int, float)) and to_number(value) == literal


def _relation(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    """``<``, ``>``, ``<=`` or ``>=``: two strings are compared by their UTF-16 code units, all else as numbers."""

    def holds(value: Any, literal: Any) -> bool:
        if type(value) is int and type(literal) is int:
            return compare(value, literal)
        if isinstance(literal, str) and isinstance(value, (str, list, dict)):
            return compare(_units(to_string(value)), _units(literal))
        return compare(to_number(value), to_number(literal))

    return holds


def _units(text: str) -> bytes:
    return text.encode("utf-16-be", "surrogatepass")


_COMPARISONS: Dict[str, Callable[[Any, Any], bool]] = {
    "==": _equal,
    "!=": lambda value, literal: not _equal(value, literal),
    "===": _same,
    "!==": lambda value, literal: not _same(value, literal),
    ">": _relation(lambda one, other: one > other),
    ">=": _relation(lambda one, other: one >= other),
    "<": _relation(lambda one, other: one < other),
    "<=": _relation(lambda one, other: one <= other),
}


def _literal(value: Any) -> str:
    """A value as JavaScript. Escapes keep all text in ASCII, so no character can end the string or the line."""
    return number_to_string(value) if isinstance(value, float) else json.dumps(value)


# -- text ---------------------------------------------------------------------------------------------------------------

_TOKEN = re.compile(
    r"""\s*(?:(?P<number>-?\s*(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)(?![\w$.])"""
    r"""|(?P<text>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')"""
    r"""|(?P<name>[A-Za-z_$][\w$]*)"""
    r"""|(?P<sign>===|!==|==|!=|>=|<=|&&|\|\||[<>()\[\].]))""",
    re.ASCII,
)
_WORDS: Dict[str, Any] = {"true": True, "false": False, "null": None}
_RESERVED = ("doc", "parseInt", *_WORDS)


class UnreadableError(ValueError):
    """A condition that is not of the known form. The message says what could not be read."""


def parse(text: str) -> List[Conditions]:
    """The alternatives of a condition: ``a && (b || c)`` is ``a && b`` or ``a && c``. Raises UnreadableError.

    Fields may be written ``doc.lock``, ``lock`` or ``doc["lock"]``.
    """
    reader = _Reader(text)
    alternatives = reader.alternatives()
    if reader.next()[1]:
        raise reader.error()
    return alternatives


class _Reader:
    """Reads a condition by recursive descent."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._place = 0
        self._depth = 0

    def error(self) -> UnreadableError:
        """The error for the text at the current place."""
        rest = self._text[self._place :].strip()
        what = f"{rest[:60]!r}" if rest else "its end"
        return UnreadableError(f"the condition {self._text.strip()!r:.200} cannot be read at {what}")

    def next(self) -> Tuple[str, str]:
        """The kind and text of the next word, without reading past it; two empty strings at the end."""
        match = _TOKEN.match(self._text, self._place)
        if match is None:
            if self._text[self._place :].strip():
                raise self.error()
            return "", ""
        return str(match.lastgroup), match.group(str(match.lastgroup))

    def take(self, *wanted: str) -> str:
        """Read the next word, which must be one of ``wanted`` if given."""
        _, text = self.next()
        if not text or (wanted and text not in wanted):
            raise self.error()
        match = _TOKEN.match(self._text, self._place)
        self._place = match.end() if match else self._place
        return text

    def alternatives(self) -> List[Conditions]:
        """``a || b``."""
        found = self._product()
        while self.next()[1] == "||":
            self.take()
            found = found + self._product()
        return found

    def _product(self) -> List[Conditions]:
        found = self._part()
        while self.next()[1] == "&&":
            self.take()
            right = self._part()
            found = [one + other for one in found for other in right]
            if len(found) > MOST_ALTERNATIVES:
                raise UnreadableError(f"the condition {self._text.strip()!r:.200} has too many alternatives")
        return found

    def _part(self) -> List[Conditions]:
        if self.next()[1] != "(":
            return [(self._comparison(),)]
        self._depth += 1
        if self._depth > 20:
            raise self.error()
        self.take("(")
        found = self.alternatives()
        self.take(")")
        self._depth -= 1
        return found

    def _comparison(self) -> Condition:
        parsed = self.next() == ("name", "parseInt")
        if parsed:
            self.take()
            self.take("(")
        field = self._field()
        if parsed:
            self.take(")")
        operator = self.next()[1]
        if operator not in _COMPARISONS:
            raise self.error()
        self.take()
        return Condition(field, operator, parsed, self._value())

    def _field(self) -> str:
        kind, name = self.next()
        if kind != "name" or name in _WORDS:
            raise self.error()
        self.take()
        if name == "doc" and self.next()[1] == ".":
            self.take()
            kind, name = self.next()
            if kind != "name":
                raise self.error()
            self.take()
        elif name == "doc" and self.next()[1] == "[":
            self.take()
            kind, name = self.next()
            if kind != "text":
                raise self.error()
            name = self._string(self.take())
            self.take("]")
        if self.next()[1] in (".", "[", "("):
            raise self.error()  # a field within a field, or a function
        return name

    def _value(self) -> Any:
        kind, text = self.next()
        if kind == "name" and text in _WORDS:
            self.take()
            return _WORDS[text]
        if kind == "text":
            return self._string(self.take())
        if kind != "number":
            raise self.error()
        number = json.loads(self.take().replace(" ", ""))
        if isinstance(number, int) and abs(number) > LARGEST_INTEGER:
            number = float(number)
        if number in (float("inf"), float("-inf")):
            raise self.error()
        return int(number) if isinstance(number, float) and number == 0 else number

    def _string(self, text: str) -> str:
        inner = text[1:-1]
        if text[0] == "'":
            inner = inner.replace("\\'", "'").replace('"', '\\"')
        try:
            return str(json.loads(f'"{inner}"'))
        except ValueError:
            raise self.error() from None
