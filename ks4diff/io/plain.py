"""Dataclasses to bytes and back: JSON for what is plain, .npy for arrays; nothing is pickled."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

T = TypeVar("T")
_ARRAY = "__array__"


def to_bytes(value: Any) -> bytes:
    """Return a dataclass of plain values, tuples, mappings, arrays and dataclasses as one .npz."""
    arrays: list[np.ndarray] = []
    tree = json.dumps(_tree(value, arrays)).encode()
    buffer = io.BytesIO()
    named = {f"a{k}": array for k, array in enumerate(arrays)}
    np.savez(buffer, tree=np.frombuffer(tree, np.uint8), **named)
    return buffer.getvalue()


def from_bytes(kind: type[T], data: bytes) -> T:
    """Return what `to_bytes` was given, a ``kind``.

    Raises
    ------
    ValueError
        When the bytes are damaged, or were written for other fields.

    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as stored:
            tree = json.loads(stored["tree"].tobytes())
            return _value(kind, tree, stored)
    except (KeyError, TypeError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"no stored {kind.__name__} ({error})") from error


def _tree(value: Any, arrays: list[np.ndarray]) -> Any:
    if is_dataclass(value):
        return {item.name: _tree(getattr(value, item.name), arrays) for item in fields(value)}
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            raise TypeError(f"an array of {value.dtype} cannot be stored without pickle")
        arrays.append(value)
        return {_ARRAY: f"a{len(arrays) - 1}"}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {name: _tree(item, arrays) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [_tree(item, arrays) for item in value]
    return value


def _value(kind: Any, tree: Any, stored: Mapping[str, np.ndarray]) -> Any:
    if isinstance(tree, dict) and set(tree) == {_ARRAY}:
        return stored[tree[_ARRAY]]
    origin, inside = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        real = next(one for one in inside if one is not type(None))
        return None if tree is None else _value(real, tree, stored)
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{name: _value(hints[name], item, stored) for name, item in tree.items()})
    if origin is tuple:
        kinds = [inside[0]] * len(tree) if inside[-1] is Ellipsis else inside
        return tuple(_value(one, item, stored) for one, item in zip(kinds, tree, strict=True))
    return tree
