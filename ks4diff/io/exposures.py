"""KMTNet exposures on disk: files grouped by site, night and number, what is missing or still arriving."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ks4diff.io.fits_header import one_line
from ks4diff.io.kmtnet import FileFacts, examine
from ks4diff.products.errors import InputError, TruncatedFile
from ks4diff.products.exposure import ExposureFiles, FileForm
from ks4diff.products.ids import CHIPS, ExposureId, parse_exposure_name

log = logging.getLogger(__name__)

# When an exposure is there in several forms with equally many chips: the most processed one.
_PREFERENCE = (
    FileForm.L1_CHIPS,
    FileForm.FOUR_CHIPS,
    FileForm.TRIMMED_AMPS,
    FileForm.RAW_MEF,
    FileForm.RAW_PAIR,
    FileForm.RAW_CHIP,
    FileForm.SINGLE_CHIP,
)
# How copying programs call a file on its way: rsync's .kmts.20230308.061242.fits.7uUd6N and others.
_ON_ITS_WAY = re.compile(
    r"\.fits?(\.(gz|fz))?\.([A-Za-z0-9]{6}\.?|part|partial|filepart|tmp|crdownload)$", re.IGNORECASE
)
_FITS = (b"SIMPLE  =", b"\x1f\x8b")


@dataclass
class _Group:
    found: list[tuple[Path, FileFacts]] = field(default_factory=list)
    partial: list[Path] = field(default_factory=list)


def find_exposures(sources: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[ExposureFiles]:
    """Return the exposures of a folder (searched to any depth) or of files and folders, in time order.

    Every file is walked to its last HDU, so that one being written or cut short is listed as partial and
    not as a chip. In folders, files that are no KMTNet exposures are passed over with a warning.

    Returns
    -------
    list
        Sorted by night, site and number, whatever the order of ``sources``. An exposure with nothing
        complete has ``form`` None and no chips.

    Raises
    ------
    InputError
        When a path does not exist, or a file that was named itself is no KMTNet exposure.

    """
    listed = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    groups: dict[ExposureId, _Group] = {}
    paths: dict[Path, bool] = {}
    for path, named in _candidates(Path(source) for source in listed):
        paths[path] = named or paths.get(path, False)
    for path in sorted(paths):
        _add(groups, path, paths[path])
    exposures = [exposure for key, group in groups.items() if (exposure := _exposure(key, group))]
    return sorted(exposures, key=lambda e: (e.id.night, e.id.site.value, e.id.number))


def is_on_its_way(name: str) -> bool:
    """Return whether a file name is one that a copying program gives to a file it has not finished."""
    return _ON_ITS_WAY.search(name) is not None


def _candidates(sources: Iterable[Path]) -> Iterator[tuple[Path, bool]]:
    """Yield files that may hold exposures, and whether each was named itself."""
    for source in sources:
        if not source.exists():
            raise InputError(f"{source}: no such file or folder")
        if not source.is_dir():
            yield source, True
            continue
        for path in source.rglob("*"):
            if path.is_file() and _looks_like_fits(path):
                yield path, False


def _looks_like_fits(path: Path) -> bool:
    if is_on_its_way(path.name):
        return True
    try:
        with path.open("rb") as stream:
            start = stream.read(9)
    except OSError as error:
        log.warning("%s: cannot be opened (%s)", path, error.strerror)
        return False
    return (start.startswith(_FITS) or not start) and ".fit" in path.name.lower()


def _add(groups: dict[ExposureId, _Group], path: Path, named: bool) -> None:
    """Put one file where it belongs; a file that is on its way only when its name tells the exposure."""
    told = parse_exposure_name(path.name.lstrip("."))
    try:
        before = path.stat().st_size
        if is_on_its_way(path.name) or not before:
            raise TruncatedFile(f"{path}: is still being written")
        facts = examine(path)
        if path.stat().st_size != before:
            raise TruncatedFile(f"{path}: is still being written: it grew from {before} bytes")
    except (InputError, OSError) as error:
        if told is not None and _is_cut(path, error):
            log.warning("not processed: %s", one_line(error))
            groups.setdefault(told, _Group()).partial.append(path)
        elif named:
            raise InputError(one_line(error, 400)) from error
        else:
            log.warning("passed over: %s", one_line(error))
        return
    groups.setdefault(facts.id, _Group()).found.append((path, facts))


def _is_cut(path: Path, error: Exception) -> bool:
    """Return whether a file failed for being incomplete: plain FITS files are whole blocks of 2880 bytes."""
    if isinstance(error, TruncatedFile) or isinstance(error.__cause__, EOFError):
        return True
    try:
        return not path.name.lower().endswith(".gz") and path.stat().st_size % 2880 != 0
    except OSError:
        return True  # gone: renamed by the program that was writing it


def _exposure(key: ExposureId, group: _Group) -> ExposureFiles | None:
    """Return an exposure from its files; None when only a mask is there."""
    science = [(path, facts) for path, facts in group.found if facts.chips and not _is_mask(path, facts)]
    masks = [(path, facts) for path, facts in group.found if facts.masks or _is_mask(path, facts)]
    forms: dict[FileForm, dict[str, Path]] = {}
    for path, facts in science:
        chips = forms.setdefault(facts.form, {})
        for chip in facts.chips:
            if chips.setdefault(chip, path) != path:
                log.warning("%s: chip %s is also in %s: not used", key, chip, path)
    if not forms:
        if not group.partial:
            log.warning("%s: masks without an image", key)
            return None
        return ExposureFiles(
            id=key, form=None, chips={}, masks={}, missing=CHIPS, partial=tuple(sorted(group.partial))
        )
    form = min(forms, key=lambda form: (-len(forms[form]), _PREFERENCE.index(form)))
    for other in forms.keys() - {form}:
        log.info("%s: %s is there too: not used", key, other)
    chips = forms[form]
    return ExposureFiles(
        id=key,
        form=form,
        chips={chip: chips[chip] for chip in CHIPS if chip in chips},
        masks=_masks(form, chips, masks),
        missing=tuple(chip for chip in CHIPS if chip not in chips),
        partial=tuple(sorted(group.partial)),
        image_type=next(facts.image_type for _, facts in science if facts.form is form),
    )


def _masks(form: FileForm, chips: dict[str, Path], found: list[tuple[Path, FileFacts]]) -> dict[str, Path]:
    """Return the mask files of the chosen form's chips."""
    masks: dict[str, Path] = {}
    for path, facts in found:
        if facts.form is form:
            for chip in facts.masks or facts.chips:
                masks.setdefault(chip, path)
    return {chip: masks[chip] for chip in CHIPS if chip in masks and chip in chips}


def _is_mask(path: Path, facts: FileFacts) -> bool:
    """Return whether a single-chip file is a mask; only its name tells it from a science image."""
    return facts.form is FileForm.SINGLE_CHIP and ".mask." in path.name.lower()
