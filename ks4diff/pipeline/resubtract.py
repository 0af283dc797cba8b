"""Differences that are not kept any more, made again for forced photometry."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from ks4diff.pipeline.config import PipelineConfig
from ks4diff.pipeline.forced import Again, keep
from ks4diff.pipeline.isolate import isolated
from ks4diff.pipeline.run import Edges, exposures_of, process_chip
from ks4diff.products.coverage import Looked

log = logging.getLogger(__name__)


def subtract_again(raw: Sequence[Path], edges: Edges, folder: Path, config: PipelineConfig) -> Again:
    """Return what makes kept differences of chips again, into ``folder``.

    With the templates, masters and settings of the run they are those of the run. A chip whose exposure is
    not among ``raw`` (files and folders), or that cannot be subtracted, is logged and left out.
    """

    def again(chips: Sequence[Looked]) -> Mapping[tuple[str, str], Path]:
        files = {str(found.id): found for found in exposures_of(raw)} if chips else {}
        made: dict[tuple[str, str], Path] = {}
        for looked in chips:
            name, chip = looked.exposure, looked.chip
            if name not in files or chip not in files[name].chips:
                log.warning("%s %s: not among the exposures given", name, chip)
                continue
            job = partial(process_chip, files[name], chip, edges, config)
            tried = isolated(job, f"{name} {chip}")
            if tried.result is None:
                log.warning("%s %s: %s (%s)", name, chip, tried.status, tried.reason)
                continue
            path = keep(tried.result.subtracted, folder / name / chip, name)
            if path is not None:
                made[name, chip] = path
        return made

    return again
