"""Find stacks with an image service (SIA, through pyvo) and download them: resumable, bounded, checked."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ks4diff.io.atomic import atomic_write_bytes
from ks4diff.io.fits_header import one_line
from ks4diff.io.tile_files import copy_with_sha256, read_tile_header
from ks4diff.products.errors import ConfigError, InputError

log = logging.getLogger(__name__)

TIMEOUT_S = (10.0, 60.0)  # to connect, and between two pieces
ATTEMPTS = 4  # of one file, each going on where the last one stopped
MAX_IMAGES = 10_000
_CHUNK_BYTES = 2**16  # what a cut loses at most
_BAND_COLUMNS = ("vox:bandpass_id", "bandpass_id", "filter", "band", "em_band")
_SIZE_COLUMNS = ("vox:image_filesize", "access_estsize", "filesize")
_SUM_COLUMNS = ("sha256", "checksum", "md5")


class TransferError(Exception):
    """The network failed or a transfer stopped early; what came is kept."""


@dataclass(frozen=True, kw_only=True)
class RemoteImage:
    """A stack that a service offers; ``checksum`` is a sha256 or md5 in hex when the service tells one."""

    url: str
    name: str
    band: str | None
    size: int | None  # bytes
    checksum: str | None


def find_images(service: str, ra: float, dec: float, size_deg: float, band: str | None) -> list[RemoteImage]:
    """Return the FITS images that a Simple Image Access (version 1) service has at a position.

    Images whose filter the service tells are kept when it is ``band``; those without one are kept too.

    Raises
    ------
    ConfigError
        When pyvo is not installed or the address is none.
    InputError
        When the service does not answer, or with something else than a table of images.

    """
    pyvo = _pyvo()
    if urlsplit(service).scheme not in ("http", "https"):
        raise ConfigError(f"{service}: the service's address must begin with http:// or https://")
    with _network(service), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # services break the VO's standards in harmless ways
        answer = pyvo.dal.sia.SIAService(service).search(
            pos=(ra, dec), size=size_deg, format="image/fits", maxrec=MAX_IMAGES
        )
        images = [_image(service, record) for record in answer]
    found = [image for image in images if image is not None and (band is None or image.band in (None, band))]
    return sorted({image.url: image for image in found}.values(), key=lambda image: image.url)


def _image(service: str, record: Any) -> RemoteImage | None:
    """Return one row of a service's answer, None when it has no address of a FITS file."""
    values = {str(name).lower(): record[name] for name in record.keys()}  # noqa: SIM118 - pyvo's, not a dict
    url = str(record.getdataurl() or "")
    if urlsplit(url).scheme not in ("http", "https"):
        log.warning("%s: an image without an address is passed over", service)
        return None
    size = next((values[name] for name in _SIZE_COLUMNS if values.get(name) is not None), None)
    checksum = next((str(values[name]).lower() for name in _SUM_COLUMNS if values.get(name)), None)
    band = next((str(values[name]).strip() for name in _BAND_COLUMNS if values.get(name)), None)
    try:
        size = int(size) or None
    except (TypeError, ValueError):
        size = None
    return RemoteImage(url=url, name=_file_name(url), band=band or None, size=size, checksum=checksum)


def _file_name(url: str) -> str:
    """Return a safe name for a download: the address's last part and a digest of the whole."""
    parts = urlsplit(url)
    stem = re.sub(r"[^A-Za-z0-9._+-]", "_", unquote(parts.path).rsplit("/", 1)[-1]).lstrip(".")
    suffix = re.search(r"\.fits?(\.gz|\.fz)?$", stem, flags=re.IGNORECASE)
    name = stem[: suffix.start()] if suffix else stem
    ending = suffix[0].lower() if suffix else ".fits"
    return f"{name[:100] or 'image'}-{hashlib.sha256(url.encode()).hexdigest()[:8]}{ending}"


def download(image: RemoteImage, folder: Path, max_bytes: int) -> Path:
    """Return the file of an image, downloaded unless a complete one is there; a cut download is gone on with.

    The pieces lie in ``<name>.part`` until the file is whole: as long as the server said, as its checksum
    says when the service told one, and a FITS image by its header. Its sha256 is kept in ``<name>.json``.

    Raises
    ------
    InputError
        When the server fails four times, the file is larger than ``max_bytes`` or is not what was promised.
    OSError
        When the folder cannot be written.

    """
    folder.mkdir(parents=True, exist_ok=True)
    target, note = folder / image.name, folder / f"{image.name}.json"
    if target.is_file() and _is_noted(target, note):
        return target
    part = folder / f"{image.name}.part"
    failure: Exception | None = None
    for _ in range(ATTEMPTS):
        try:
            with _network(image.url):
                _go_on(image, part, max_bytes)
            break
        except TransferError as error:
            failure = error
            log.info("%s: %s; going on from byte %d", image.url, error, _size(part))
    else:
        raise InputError(f"{image.url}: {failure}; run again to go on from byte {_size(part)}")
    _verify(image, part)
    note_text = {"url": image.url, "bytes": _size(part), "sha256": copy_with_sha256(part, None)}
    atomic_write_bytes(note, json.dumps(note_text).encode())
    part.replace(target)
    (folder / f"{part.name}.etag").unlink(missing_ok=True)
    return target


def _go_on(image: RemoteImage, part: Path, max_bytes: int) -> None:
    """Append what is missing of a file; from the start when the server has another version of it by now."""
    requests = _requests()
    tag_file = part.with_name(f"{part.name}.etag")
    have, tag = _size(part), tag_file.read_text() if tag_file.is_file() else ""
    asked = {"Accept-Encoding": "identity"}
    if have:
        asked |= {"Range": f"bytes={have}-"} | ({"If-Range": tag} if tag else {})
    with requests.get(image.url, headers=asked, stream=True, timeout=TIMEOUT_S) as answer:
        if answer.status_code == 416 and _total(answer.headers.get("Content-Range")) == have:
            return  # all of it is here
        if answer.status_code >= 500 or answer.status_code == 429:
            raise TransferError(f"the server answers {answer.status_code}")
        if answer.status_code not in (200, 206):
            raise InputError(f"{image.url}: the server answers {answer.status_code} {answer.reason}")
        start = _start(answer.headers.get("Content-Range")) if answer.status_code == 206 else 0
        if start not in (0, have):
            raise InputError(f"{image.url}: the server sends byte {start} on, not {have}")
        total = _total(answer.headers.get("Content-Range"))
        length = answer.headers.get("Content-Length", "")
        total = total if total is not None else (start + int(length) if length.isdecimal() else None)
        if max(total or 0, image.size or 0) > max_bytes:
            raise InputError(f"{image.url}: {max(total or 0, image.size or 0)} bytes, more than {max_bytes}")
        tag_file.write_text(answer.headers.get("ETag") or answer.headers.get("Last-Modified") or "")
        with part.open("ab" if start else "wb") as stream:
            _pour(answer, stream, image.url, start, max_bytes)
    if total is not None and _size(part) != total:
        raise TransferError(f"the transfer stopped at byte {_size(part)} of {total}")


def _pour(answer: Any, stream: Any, url: str, start: int, max_bytes: int) -> None:
    requests = _requests()
    size = start
    try:
        for chunk in answer.iter_content(_CHUNK_BYTES):
            size += len(chunk)
            if size > max_bytes:
                raise InputError(f"{url}: sends more than {max_bytes} bytes")
            stream.write(chunk)
    except requests.exceptions.RequestException as error:
        raise TransferError(one_line(error)) from None


def _verify(image: RemoteImage, part: Path) -> None:
    """Raise InputError, after removing the file, unless it is what was promised."""
    try:
        if image.checksum is not None:
            kind = {32: "md5", 64: "sha256"}.get(len(image.checksum))
            if kind is not None and _digest(part, kind) != image.checksum:
                raise InputError(f"{image.url}: the {kind} of what came is not what the service says")
        read_tile_header(part)
    except InputError:
        part.unlink(missing_ok=True)
        part.with_name(f"{part.name}.etag").unlink(missing_ok=True)
        raise


def _digest(path: Path, kind: str) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()


def _is_noted(target: Path, note: Path) -> bool:
    try:
        said = json.loads(note.read_bytes())
        return said["bytes"] == _size(target) and said["sha256"] == copy_with_sha256(target, None)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _start(content_range: str | None) -> int:
    match = re.match(r"bytes (\d+)-", content_range or "")
    return int(match[1]) if match else 0


def _total(content_range: str | None) -> int | None:
    match = re.search(r"/(\d+)$", content_range or "")
    return int(match[1]) if match else None


def _pyvo() -> Any:
    try:
        import pyvo
        import pyvo.dal.sia
    except ImportError:
        raise ConfigError("fetching needs pyvo; install it with: pip install 'ks4diff[fetch]'") from None
    return pyvo


def _requests() -> Any:
    try:
        import requests
    except ImportError:
        raise ConfigError("fetching needs requests; install it with: pip install 'ks4diff[fetch]'") from None
    return requests


@contextmanager
def _network(url: str) -> Iterator[None]:
    """Turn what fails on the way to a service into TransferError or one line that names it."""
    requests = _requests()
    from pyvo.dal.exceptions import DALAccessError

    try:
        yield
    except (requests.exceptions.ConnectionError, requests.exceptions.Timeout) as error:
        raise TransferError(one_line(error)) from None
    except (requests.exceptions.RequestException, DALAccessError, ValueError, KeyError, IndexError) as error:
        raise InputError(f"{url}: {one_line(error) or type(error).__name__}") from None
