"""What a consumer wants of alerts: a short expression over their fields, read with `ast`, never evaluated."""

from __future__ import annotations

import ast
import difflib
import itertools
import operator
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ks4diff.products.errors import ConfigError
from ks4diff.products.filter_values import (
    called,
    compared,
    computed,
    is_unknown,
    look_up,
    member_of,
    opposite,
    shortened,
    truth_of,
)

MAX_LETTERS = 1000
MAX_DEPTH = 25  # of nested operations; what people write has 5

Record = Mapping[str, Any]
_Term = Callable[[Record], Any]

_ORDER = {ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge}
_EQUAL = {ast.Eq: operator.eq, ast.NotEq: operator.ne}
_ARITHMETIC = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
}
_FUNCTIONS = {"abs": abs, "len": len, "max": max, "min": min}
_ALLOWED = "comparisons, and, or, not, in, arithmetic, and abs, len, max and min of a field"


@dataclass(frozen=True, kw_only=True)
class AlertFilter:
    """An expression that holds for an alert or not."""

    text: str
    term: _Term

    def accepts(self, record: Record) -> bool:
        """Return whether the expression is true of a record; what depends on an unknown value is not.

        Raises
        ------
        ConfigError
            When kinds of values do not go together, as a text compared with a number.

        """
        return truth_of(self.term(record), self.text) is True


def parse_filter(text: str, fields: frozenset[str]) -> AlertFilter:
    """Return the filter that an expression means.

    The language is Python's, of literals, field names, comparisons (also chained), ``and``, ``or``, ``not``,
    ``in``, ``+ - * / %`` and four functions. A name is a field of the record or of its ``candidate``, or a
    path with dots; through a list it gives the list of what each item has. Logic has three values: null and
    NaN are unknown, ``x == None`` asks for that, and an alert passes only where the whole is true.

    Parameters
    ----------
    text
        Such as ``"rb > 0.9 and filter in ('R', 'I') and 'bleed' not in flags"``.
    fields
        Dotted names of all fields; ``a.*`` allows any name below ``a``.

    Raises
    ------
    ConfigError
        When the text is no such expression or names no field.

    """
    if len(text) > MAX_LETTERS:
        raise ConfigError(f"--filter: {len(text)} letters, at most {MAX_LETTERS}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd backslashes in a text are the user's
            tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        where = getattr(error, "offset", None)
        at = f" at letter {where}" if where else ""
        raise ConfigError(f"--filter {shortened(text)!r}: {_reason(error)}{at}") from None
    _refuse_deep(tree)
    return AlertFilter(text=text, term=_Compiler(fields).term(tree.body))


class _Compiler:
    """Turns the nodes of a whitelist into functions of a record; any other node is refused."""

    def __init__(self, fields: frozenset[str]) -> None:
        self._fields = fields

    def term(self, node: ast.expr) -> _Term:
        make = _MAKERS.get(type(node))
        if make is None:
            raise ConfigError(f"--filter: {_quote(node)} is not allowed; there are {_ALLOWED}")
        return make(self, node)

    def _constant(self, node: ast.Constant) -> _Term:
        if not isinstance(node.value, bool | int | float | str | None):
            raise ConfigError(f"--filter: {_quote(node)}: use numbers and texts")
        value = node.value
        return lambda record: value

    def _name(self, node: ast.Name | ast.Attribute) -> _Term:
        paths = self._paths(ast.unparse(node))

        def field(record: Record) -> Any:
            return look_up(record, next((path for path in paths if path[0] in record), paths[0]))

        return field

    def _attribute(self, node: ast.Attribute) -> _Term:
        root: ast.expr = node
        while isinstance(root, ast.Attribute):
            root = root.value
        if not isinstance(root, ast.Name):
            raise ConfigError(f"--filter: {_quote(node)}: only names can have a dot")
        return self._name(node)

    def _paths(self, name: str) -> list[tuple[str, ...]]:
        """Return where a name may stand: ``filter`` is a field of exposure messages, and of candidates."""
        places = (name, f"candidate.{name}")
        found = [
            full for full in places if not self._fields.isdisjoint({full, full.rpartition(".")[0] + ".*"})
        ]
        if found:
            return [tuple(full.split(".")) for full in found]
        known = {field.removeprefix("candidate.") for field in self._fields}
        close = difflib.get_close_matches(name, sorted(known), n=3)
        hint = f"; is it {' or '.join(close)}?" if close else ""
        raise ConfigError(f"--filter: alerts have no field {name!r}{hint}")

    def _tuple(self, node: ast.Tuple | ast.List | ast.Set) -> _Term:
        terms = [self.term(item) for item in node.elts]
        return lambda record: [term(record) for term in terms]

    def _boolop(self, node: ast.BoolOp) -> _Term:
        parts = [(self.term(value), _quote(value)) for value in node.values]
        decisive = isinstance(node.op, ast.Or)

        def both(record: Record) -> bool | None:
            unknown = False
            for term, text in parts:
                truth = truth_of(term(record), text)
                if truth is decisive:
                    return decisive
                unknown |= truth is None
            return None if unknown else not decisive

        return both

    def _unaryop(self, node: ast.UnaryOp) -> _Term:
        term, text = self.term(node.operand), _quote(node.operand)
        if isinstance(node.op, ast.Not):
            return lambda record: opposite(truth_of(term(record), text))
        if isinstance(node.op, ast.USub | ast.UAdd):
            sign = -1 if isinstance(node.op, ast.USub) else 1
            return lambda record: computed(operator.mul, sign, term(record), text)
        raise ConfigError(f"--filter: {_quote(node)} is not allowed; there are {_ALLOWED}")

    def _binop(self, node: ast.BinOp) -> _Term:
        compute = _ARITHMETIC.get(type(node.op))
        if compute is None:
            raise ConfigError(f"--filter: {_quote(node)} is not allowed; arithmetic is + - * / %")
        left, right, text = self.term(node.left), self.term(node.right), _quote(node)
        return lambda record: computed(compute, left(record), right(record), text)

    def _call(self, node: ast.Call) -> _Term:
        name = node.func.id if isinstance(node.func, ast.Name) else None
        if name not in _FUNCTIONS or node.keywords or len(node.args) != 1:
            raise ConfigError(f"--filter: {_quote(node)}: functions are {', '.join(_FUNCTIONS)} of one field")
        term, text, function = self.term(node.args[0]), _quote(node), _FUNCTIONS[name]
        return lambda record: called(function, term(record), text)

    def _compare(self, node: ast.Compare) -> _Term:
        sides = [node.left, *node.comparators]
        links = [
            self._link(op, *pair, _quote(node))
            for op, pair in zip(node.ops, itertools.pairwise(sides), strict=True)
        ]

        def holds(record: Record) -> bool | None:
            truths = [link(record) for link in links]
            return False if False in truths else None if None in truths else True

        return holds

    def _link(self, op: ast.cmpop, left: ast.expr, right: ast.expr, text: str) -> _Term:
        first, second = self.term(left), self.term(right)
        kind, negated = type(op), isinstance(op, ast.NotIn | ast.NotEq | ast.IsNot)
        if _is_none(right) and isinstance(op, ast.Eq | ast.NotEq | ast.Is | ast.IsNot):
            return lambda record: is_unknown(first(record)) is not negated
        if kind in _ORDER or kind in _EQUAL:
            compare = {**_ORDER, **_EQUAL}[kind]
            return lambda record: compared(compare, first(record), second(record), text)
        if isinstance(op, ast.In | ast.NotIn):
            return lambda record: member_of(first(record), second(record), negated, text)
        raise ConfigError(f"--filter: {text}: use == in place of is, but for None")


_MAKERS = {
    ast.Constant: _Compiler._constant,
    ast.Name: _Compiler._name,
    ast.Attribute: _Compiler._attribute,
    ast.Tuple: _Compiler._tuple,
    ast.List: _Compiler._tuple,
    ast.Set: _Compiler._tuple,
    ast.BoolOp: _Compiler._boolop,
    ast.UnaryOp: _Compiler._unaryop,
    ast.BinOp: _Compiler._binop,
    ast.Call: _Compiler._call,
    ast.Compare: _Compiler._compare,
}


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _refuse_deep(tree: ast.AST) -> None:
    level, depth = [tree], 0
    while level:
        level = [child for node in level for child in ast.iter_child_nodes(node)]
        depth += 1
        if depth > MAX_DEPTH:
            raise ConfigError(f"--filter: nested deeper than {MAX_DEPTH} operations")


def _quote(node: ast.AST) -> str:
    return repr(shortened(ast.unparse(node)))


def _reason(error: BaseException) -> str:
    return "nested too deeply" if isinstance(error, RecursionError | MemoryError) else str(error.args[0])
