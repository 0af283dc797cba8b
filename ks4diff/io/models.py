"""Real/bogus models on disk: arrays in an .npz without objects, a card in JSON: nothing in them is run."""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ks4diff.io.atomic import atomic_write_bytes
from ks4diff.io.share import shared_path
from ks4diff.products.errors import InputError
from ks4diff.products.features import FEATURE_NAMES, PEAK, VECTOR_NAME, definitions_hash
from ks4diff.products.model import Forest, RbModel

ARRAYS, CARD = "model.npz", "card.json"
LARGEST_FILE, LARGEST_CARD, LARGEST_ARRAYS = 100_000_000, 1_000_000, 500_000_000  # bytes
DTYPES = {
    "roots": "<i4",
    "feature": "<i2",
    "threshold": "<f4",
    "right": "<i4",
    "nan_left": "|u1",
    "value": "<f8",
    "calibration_x": "<f8",
    "calibration_y": "<f8",
    "prior_x": "<f8",
    "prior_y": "<f8",
    "lowest": "<f4",
    "highest": "<f4",
}
CARD_KEYS = {
    "name": str,
    "version": str,
    "vector": str,
    "definitions": str,
    "features": list,
    "threshold": float,
    "prior": float,
    "sha256": str,
}
NAME = re.compile(r"[A-Za-z0-9._-]{1,30}")  # it goes into alerts and FITS headers
MAGIC = b"\x93NUMPY\x01\x00"
HEADER = re.compile(
    r"\{'descr': '(?P<type>[<|][a-z]\d)', 'fortran_order': False, 'shape': \((?P<length>\d{1,10}),\), \} *\n"
)
NODES = ("feature", "threshold", "right", "nan_left", "value")


def shipped_model() -> Path | None:
    """Return the folder of the model that comes with this installation, None without one."""
    try:
        latest = shared_path("models/latest.txt")
    except InputError:
        return None
    return latest.parent / latest.read_text(encoding="utf-8").strip()


def load_model(folder: Path) -> RbModel:
    """Return the model in a folder of ``card.json`` and ``model.npz``.

    Sizes are checked before anything is allocated, and every array before it is walked: a walk from a root
    ends in a leaf of the same tree, whatever the sample.

    Raises
    ------
    InputError
        When a file is missing, too large, damaged, or not what the card says; one line with file and value.

    """
    card = _read_card(folder / CARD)
    path = folder / ARRAYS
    content = _read(path, LARGEST_FILE)
    digest = hashlib.sha256(content).hexdigest()
    if digest != card["sha256"]:
        raise InputError(f"{path}: sha256 {digest[:12]}... is not the card's {card['sha256'][:12]!r}...")
    try:
        arrays = _members(content, path)
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        NotImplementedError,
        RuntimeError,
        OSError,
        ValueError,
        KeyError,
    ) as error:
        raise InputError(f"{path}: {_one_line(error)}") from None
    forest = Forest(**arrays)
    _check(forest, len(card["features"]), path)
    return RbModel(
        version=f"{card['name']}-{card['version']}+{digest[:8]}",
        threshold=float(card["threshold"]),
        prior=float(card["prior"]),
        features=tuple(card["features"]),
        forest=forest,
        card=card,
        vector=card["vector"],
    )


def save_model(folder: Path, forest: Forest, card: Mapping[str, Any]) -> RbModel:
    """Write a model into a folder, the arrays' sha256 into its card, and return it as `load_model` reads it.

    Equal arrays give equal bytes. Raises InputError when the model would not load.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.asarray(getattr(forest, name), dtype=dtype) for name, dtype in DTYPES.items()}
    digest = save_arrays(folder / ARRAYS, arrays)
    whole = {**card, "sha256": digest}
    atomic_write_bytes(folder / CARD, (json.dumps(whole, indent=1) + "\n").encode())
    return load_model(folder)


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> str:
    """Write an .npz without objects and return its sha256, hex; equal arrays give equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in arrays.items():
            one = io.BytesIO()
            np.lib.format.write_array(one, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
            # a fixed date: np.savez writes the time
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), one.getvalue(), zipfile.ZIP_DEFLATED)
    atomic_write_bytes(path, buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def _read(path: Path, largest: int) -> bytes:
    try:
        if not path.is_file():  # a device or a pipe has no end, and a size of 0
            raise InputError(f"{path}: {'no regular file' if path.exists() else 'No such file or directory'}")
        size = path.stat().st_size
        if size > largest:
            raise InputError(f"{path}: {size} bytes are more than the {largest} that a model may have")
        with path.open("rb") as file:
            return file.read(size)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None


def _read_card(path: Path) -> dict[str, Any]:
    """Return a card whose keys are there, of their types and in their ranges."""
    try:
        card = json.loads(_read(path, LARGEST_CARD).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {_one_line(error)}") from None
    if not isinstance(card, dict):
        raise InputError(f"{path}: the card is no JSON object")
    for key, kind in CARD_KEYS.items():
        value = card.get(key)
        wanted = (int, float) if kind is float else kind
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise InputError(f"{path}: {key} is {str(value)[:40]!r}, not a {kind.__name__}")
    _check_card(card, path)
    return card


def _check_card(card: Mapping[str, Any], path: Path) -> None:
    """Refuse values out of their ranges, and features that this software has not."""
    for key in ("threshold", "prior"):
        if not 0 <= card[key] <= 1:
            raise InputError(f"{path}: {key} {str(card[key])[:40]} is not from 0 to 1")
    for key in ("name", "version"):
        if not NAME.fullmatch(card[key]):
            raise InputError(f"{path}: {key} {card[key][:40]!r} is no name of letters, digits, . _ and -")
    if card["vector"] != VECTOR_NAME or card["definitions"] != definitions_hash():
        raise InputError(
            f"{path}: made for features {card['vector'][:40]!r} {card['definitions'][:16]!r}, "
            f"this software has {VECTOR_NAME} {definitions_hash()}"
        )
    names = card["features"]
    unknown = [name for name in names if name not in FEATURE_NAMES]
    if PEAK not in names or unknown or len(set(map(str, names))) < len(names):
        raise InputError(f"{path}: features are missing, double or unknown: {str(unknown)[:60]}")


def _members(content: bytes, path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz, each of the size that its header declares and of its own type."""
    out: dict[str, np.ndarray] = {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        held = {info.filename: info for info in archive.infolist()}
        wanted = {f"{name}.npy" for name in DTYPES}
        if set(held) != wanted or len(archive.infolist()) != len(wanted):
            raise InputError(f"{path}: holds {str(sorted(held))[:80]}, not the arrays of a model")
        if {info.compress_type for info in held.values()} - {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            raise InputError(f"{path}: compressed in another way than .npz files are")
        if sum(info.file_size for info in held.values()) > LARGEST_ARRAYS:
            raise InputError(f"{path}: unpacks to more than {LARGEST_ARRAYS} bytes")
        for name, dtype in DTYPES.items():
            out[name] = _member(archive, held[f"{name}.npy"], np.dtype(dtype), path)
    return out


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, dtype: np.dtype, path: Path) -> np.ndarray:
    """Return one array; its header is matched and not parsed: numpy's parser has errors of many kinds."""
    with archive.open(info) as file:
        magic = file.read(len(MAGIC))
        text = file.read(int.from_bytes(file.read(2), "little")).decode("latin-1")
        found = HEADER.fullmatch(text)
        if magic != MAGIC or found is None or found["type"] != dtype.str:
            raise InputError(f"{path}: {info.filename} is {text.strip()[:70]!r}, not a row of {dtype.str}")
        size = int(found["length"]) * dtype.itemsize
        if size != info.file_size - file.tell():
            raise InputError(
                f"{path}: {info.filename} declares {size} bytes and holds {info.file_size - file.tell()}"
            )
        return np.frombuffer(file.read(size), dtype=dtype).astype(dtype.newbyteorder("="))


def _check(forest: Forest, n_features: int, path: Path) -> None:
    """Refuse arrays that a walk could leave or that give no score."""
    nodes = len(forest.feature)
    for name in NODES:
        if len(getattr(forest, name)) != nodes:
            raise InputError(f"{path}: {name} has {len(getattr(forest, name))} nodes, feature {nodes}")
    roots = forest.roots.astype(np.int64)
    if not len(roots) or roots[0] != 0 or (np.diff(roots) <= 0).any() or roots[-1] >= nodes:
        raise InputError(f"{path}: roots are not rising from 0 to below {nodes}")
    end = np.repeat(np.append(roots[1:], nodes), np.diff(np.append(roots, nodes)))
    inner = forest.feature >= 0
    at = np.arange(nodes)
    right = forest.right.astype(np.int64)
    bad = {
        "feature": (forest.feature < -1) | (forest.feature >= n_features),
        "threshold": inner & ~np.isfinite(forest.threshold),
        "right": inner & ((right <= at + 1) | (right >= end)),
        "nan_left": forest.nan_left > 1,
        "value": ~((forest.value >= 0) & (forest.value <= 1)),
    }
    for name, wrong in bad.items():
        if wrong.any():
            node = int(np.argmax(wrong))
            raise InputError(f"{path}: {name} of node {node} is {getattr(forest, name)[node]}")
    x, y = forest.calibration_x, forest.calibration_y
    sound = len(x) == len(y) >= 2 and np.isfinite(x).all() and (np.diff(x) > 0).all()
    if not (sound and (np.diff(y) >= 0).all() and y[0] >= 0 and y[-1] <= 1):
        raise InputError(f"{path}: calibration is no rising line in [0, 1]")
    x, y = forest.prior_x, forest.prior_y
    sound = len(x) == len(y) >= 2 and np.isfinite(x).all() and x[0] > 0 and (np.diff(x) > 0).all()
    if not (sound and ((y > 0) & (y < 1)).all()):
        raise InputError(f"{path}: prior is no line of shares within (0, 1) over a rising |S_corr|")
    for name in ("lowest", "highest"):
        limits = getattr(forest, name)
        if len(limits) != n_features or not np.isfinite(limits).all():
            raise InputError(f"{path}: {name} has not one finite limit for each of {n_features} features")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
