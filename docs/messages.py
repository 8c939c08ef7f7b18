"""The messages of the package's errors and of the pilot's log, read from its source: what the page *Troubleshooting* lists.

Nothing is imported or run. A message is a string with its placeholders, such as ``Token {token_id} is too large.``
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import product
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "airflow_provider_picas"
LIST = Path(__file__).with_name("troubleshooting.toml")

#: Where the messages of a folder appear; the first that fits.
PLACES = (
    ("pilot/", "pilot's log"),
    ("lifecycle/pilot_config.py", "pilot's log"),
    ("lifecycle/new_tokens.py", "pilot's log, token"),
    ("lifecycle/", "task, `airflow-picas`, pilot's log"),
    ("cli/", "`airflow-picas`"),
    ("plugins/", "page"),
    ("options.py", "import of the DAG, task"),
    ("task_groups.py", "import of the DAG"),
    ("decorators/", "import of the DAG"),
    ("assets.py", "import of the DAG"),
    ("couchdb/", "task, `airflow-picas`, page"),
    ("hooks/", "task, `airflow-picas`, page"),
    ("slurm/", "task, `airflow-picas`, page"),
    ("tokens/", "task, `airflow-picas`"),
    ("", "task"),
)

#: Only whoever changes the provider sees these, or Python raises them for itself.
_EXEMPT = {
    "AssertionError", "AttributeError", "EOFError", "IndexError", "KeyError", "LookupError", "NotImplementedError",
    "RuntimeError", "StopAsyncIteration", "StopIteration", "SystemExit",
}  # fmt: skip
_ERROR = re.compile(r"(Error|Exception|Timeout)$")
_WORDS = re.compile(r"[A-Za-z]{3,}")
#: Functions that return the message of an error which is raised elsewhere.
_EXPLAINING = {"tokens/waiting.py": {"explain", "_explain_lost"}}
_DEEPEST = 4  # calls and assignments that are followed to find the text of a message


@dataclass(frozen=True)
class Message:
    text: str
    error: str  #: the class of the error, or "log"
    file: str  #: below the package
    code: str | None = None  #: the name of the pilot's exit code

    @property
    def place(self) -> str:
        return next(place for folder, place in PLACES if self.file.startswith(folder))


@dataclass(frozen=True)
class Entry:
    """A cause, and the messages that it has."""

    title: str
    topic: str
    cause: str
    remedy: str
    messages: tuple[str, ...]  #: patterns, in which ``*`` stands for any characters

    @cached_property
    def _patterns(self) -> list[re.Pattern[str]]:
        return [re.compile(".*".join(map(re.escape, text.split("*"))), re.DOTALL) for text in self.messages]

    def unused(self, messages: Sequence[Message]) -> list[str]:
        """The patterns that no message has."""
        return [pattern.pattern for pattern in self._patterns if not any(pattern.fullmatch(it.text) for it in messages)]

    def covers(self, message: Message) -> bool:
        return any(pattern.fullmatch(message.text) for pattern in self._patterns)


@cache
def entries() -> list[Entry]:
    """The list, in its order."""
    return [
        Entry(topic=topic["title"], **{**row, "messages": tuple(row["messages"])})
        for topic in tomllib.loads(LIST.read_text())["topic"]
        for row in topic["entry"]
    ]


@cache
def collect(package: Path = PACKAGE) -> list[Message]:
    """All messages, each once."""
    source = _Source({path: ast.parse(path.read_text()) for path in sorted(package.rglob("*.py"))})
    found = {
        (message.text, message.error): message
        for path in source.trees
        for message in source.messages(path, str(path.relative_to(package)))
    }
    return list({text: message for (text, _), message in reversed(found.items())}.values())[::-1]


class _Source:
    def __init__(self, trees: Mapping[Path, ast.Module]) -> None:
        self.trees = trees
        self._functions: dict[str, list[ast.FunctionDef | ast.AsyncFunctionDef]] = {}
        bases: dict[str, list[str]] = {}
        for tree in trees.values():
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    self._functions.setdefault(node.name, []).append(node)
                elif isinstance(node, ast.ClassDef):
                    bases[node.name] = [_name(base) for base in node.bases]
        self._errors = {name for name in bases if _is_error(name, bases)}
        #: Calls of ``super().__init__`` in classes of errors, which make the message.
        self._inits = {
            node
            for tree in trees.values()
            for made in ast.walk(tree)
            if isinstance(made, ast.ClassDef) and made.name in self._errors
            for node in ast.walk(made)
            if isinstance(node, ast.Call)
        }

    def messages(self, path: Path, file: str) -> Iterator[Message]:
        module = self.trees[path]
        for function, node in _nodes(module):
            for arguments, error in [*self._made(node, file), *_explained(node, file)]:
                code = next((_name(argument) for argument in arguments if _name(argument).startswith("EX_")), None)
                texts = (text for argument in arguments for text in self._texts(argument, function or module, module))
                yield from (Message(text, error, file, code) for text in texts if _has_words(text))

    def _made(self, node: ast.AST, file: str) -> Iterator[tuple[list[ast.expr], str]]:
        """What is given to calls that make an error, or write the pilot's log."""
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and not self._is_error(node.exc.func):
            if _name(node.exc.func) not in _EXEMPT:
                yield node.exc.args, "error"
        elif isinstance(node, ast.Call):
            name = _name(node.func)
            if self._is_error(node.func):
                yield node.args, name
            elif name == "__init__" and node in self._inits:
                yield node.args, "error"
            elif file.startswith("pilot/") and name in ("log", "_log_once"):
                yield node.args, "log"

    def _is_error(self, function: ast.expr) -> bool:
        name = _name(function)
        return (name in self._errors or bool(_ERROR.search(name))) and name not in _EXEMPT

    def _texts(self, value: ast.expr, function: ast.AST, module: ast.Module, depth: int = 0) -> Iterator[str]:
        """The strings that an expression may have, with placeholders. ``function``: where it is, or the module."""
        match value:
            case ast.Constant(value=str(text)):
                yield text
            case ast.JoinedStr(values=parts):
                yield from map("".join, product(*([*self._part(part, function, module)] for part in parts)))
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                rights = list(self._texts(right, function, module, depth + 1))
                yield from (
                    before + after for before in self._texts(left, function, module, depth + 1) for after in rights
                )
            case _ if depth < _DEEPEST:
                place, parts = self._parts(value, function, module)
                for part in parts:
                    yield from self._texts(part, place, module, depth + 1)

    def _parts(self, value: ast.expr, function: ast.AST, module: ast.Module) -> tuple[ast.AST, list[ast.expr]]:
        """The expressions that have an expression's value, and where they are."""
        match value:
            case ast.BinOp(left=left, op=ast.Mod()):
                return function, [left]
            case ast.IfExp(body=body, orelse=other):
                return function, [body, other]
            case ast.BoolOp(values=values):
                return function, values
            case ast.Name(id=name):
                return function, [*_assigned(ast.walk(function), name)] or [*_assigned(iter(module.body), name)]
            case ast.Call(func=called) if definition := self._definition(_name(called), module):
                returned = [node.value for node in ast.walk(definition) if isinstance(node, ast.Return)]
                return definition, [value for value in returned if value is not None]
        return function, []

    def _part(self, part: ast.expr, function: ast.AST, module: ast.Module) -> Iterator[str]:
        """A part of an f-string: its text, the strings that it may be, or a placeholder."""
        value = part.value if isinstance(part, ast.FormattedValue) else part
        if isinstance(value, ast.Constant):
            yield str(value.value)
            return
        chosen = [*self._texts(value, function, module)] if isinstance(value, ast.IfExp) else []
        yield from chosen if len(chosen) > 1 and all(chosen) else [_placeholder(value)]

    def _definition(self, name: str, module: ast.Module) -> ast.AST | None:
        """The function of this name: the module's, or else the only one of the package."""
        named = self._functions.get(name, [])
        found = [node for node in ast.walk(module) if node in named] or named
        return found[0] if len(found) == 1 else None


def _explained(node: ast.AST, file: str) -> Iterator[tuple[list[ast.expr], str]]:
    """What functions return that explain an error."""
    if isinstance(node, ast.FunctionDef) and node.name in _EXPLAINING.get(file, ()):
        for inner in ast.walk(node):
            if isinstance(inner, ast.Return) and inner.value is not None:
                yield [inner.value], "AirflowFailException"
            elif isinstance(inner, ast.Dict):
                yield inner.values, "AirflowFailException"


def _has_words(text: str) -> bool:
    return bool(_WORDS.search(re.sub(r"\{[^}]*\}", "", text)))


def _nodes(tree: ast.Module) -> Iterator[tuple[ast.AST | None, ast.AST]]:
    """All nodes, each with the function that it is in."""
    waiting: list[tuple[ast.AST | None, ast.AST]] = [(None, tree)]
    while waiting:
        function, node = waiting.pop(0)
        yield function, node
        inner = node if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else function
        waiting.extend((inner, child) for child in ast.iter_child_nodes(node))


def _assigned(nodes: Iterator[ast.AST], name: str) -> Iterator[ast.expr]:
    for node in nodes:
        if isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == name for to in node.targets):
            yield node.value


def _is_error(name: str, bases: Mapping[str, list[str]]) -> bool:
    return bool(_ERROR.search(name)) or any(_is_error(base, bases) for base in bases.get(name, ()))


def _name(node: ast.AST) -> str:
    """The last part of a dotted name."""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _placeholder(value: ast.expr) -> str:
    return f"{{{_short(value) or '…'}}}"


def _short(node: ast.expr) -> str:
    """What a reader may call the value of a placeholder."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name.strip("_")
        case ast.Call(func=ast.Name(id="len")):
            return "number"
        case ast.Call(args=[*_, last]) if _name(node.func) in (
            "map",
            "join",
            "one_line",
            "sorted",
            "repr",
            "str",
            "sample",
        ):
            return _short(node.args[0] if _name(node.func) not in ("map", "join") else last)
        case ast.Call(func=ast.Attribute(value=inner, attr="get"), args=[ast.Constant(value=str(name)), *_]):
            return name or _short(inner)
        case ast.Call(func=function):
            return _name(function).strip("_")
        case ast.Subscript(slice=ast.Constant(value=str(name))):
            return name.strip("_")
        case ast.Subscript(value=inner):
            return _short(inner)
        case ast.BoolOp(values=[first, *_]):
            return _short(first)
        case ast.GeneratorExp(elt=element):
            return _short(element)
    return ""
