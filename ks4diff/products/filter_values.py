"""Values in a consumer's filter: null and NaN are unknown, and what is made of them is unknown too."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from ks4diff.products.errors import ConfigError

QUOTED = 60  # letters of a part that an error quotes
ORDER = (operator.lt, operator.le, operator.gt, operator.ge)


def look_up(value: Any, path: tuple[str, ...]) -> Any:
    """Return what is at a path; through a list, the list of what each item has; None where nothing is."""
    for depth, name in enumerate(path):
        if isinstance(value, list | tuple):
            return [look_up(item, path[depth:]) for item in value]
        if not isinstance(value, Mapping):
            return None
        value = value.get(name)
    return value


def truth_of(value: Any, text: str) -> bool | None:
    """Return a truth value, None if unknown; ConfigError, naming ``text``, for what is none."""
    if value is None or isinstance(value, bool):
        return value
    raise ConfigError(f"--filter: {shortened(text)} is {_kind(value)}, neither true nor false: compare it")


def opposite(truth: bool | None) -> bool | None:
    """Return the opposite of a truth value; of unknown it is unknown."""
    return None if truth is None else not truth


def computed(compute: Callable, left: Any, right: Any, text: str) -> Any:
    """Return what is computed of two numbers; unknown when one is or when there is no result."""
    if is_unknown(left) or is_unknown(right):
        return None
    if not (_is_number(left) and _is_number(right)):
        raise ConfigError(f"--filter: {text}: cannot compute with {_kind(left)} and {_kind(right)}")
    try:
        return compute(left, right)
    except (ZeroDivisionError, OverflowError):
        return None


def compared(compare: Callable, left: Any, right: Any, text: str) -> bool | None:
    """Return how two values of one kind compare."""
    if is_unknown(left) or is_unknown(right):
        return None
    if _kind(left) != _kind(right) or (compare in ORDER and isinstance(left, bool | list)):
        raise ConfigError(f"--filter: {text}: cannot compare {_kind(left)} with {_kind(right)}")
    return compare(left, right)


def member_of(item: Any, group: Any, negated: bool, text: str) -> bool | None:
    """Return whether an item is, or with ``negated`` is not, in a list, or a text in a text."""
    if is_unknown(item) or is_unknown(group):
        return None
    if isinstance(group, str) and isinstance(item, str):
        return (item in group) is not negated
    if not isinstance(group, list | tuple):
        raise ConfigError(f"--filter: {text}: {_kind(item)} cannot be in {_kind(group)}")
    return any(_kind(item) == _kind(other) and item == other for other in group) is not negated


def called(function: Callable, value: Any, text: str) -> Any:
    """Return abs of a number, len of a text or list, or max or min of the known numbers of a list."""
    if is_unknown(value):
        return None
    if function is abs:
        return computed(lambda number, _: abs(number), value, 0, text)
    if function is len and isinstance(value, str | list | tuple | Mapping):
        return len(value)
    if not isinstance(value, list | tuple):
        raise ConfigError(f"--filter: {text}: cannot be taken of {_kind(value)}")
    known = [item for item in value if not is_unknown(item)]
    if not all(_is_number(item) for item in known):
        raise ConfigError(f"--filter: {text}: has items that are no numbers")
    return function(known) if known else None


def is_unknown(value: Any) -> bool:
    """Return whether a value is null or NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    if _is_number(value):
        return "a number"
    kinds = {str: "a text", list: "a list", tuple: "a list", type(None): "null"}
    return kinds.get(type(value), "a record")


def shortened(text: str) -> str:
    """Return a text, or its beginning when it is long."""
    return text if len(text) <= QUOTED else text[: QUOTED - 3] + "..."
