"""One bad chip never stops a night: the only place that catches every exception."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from ks4diff.products.errors import InputError, SkipChip, UnwantedExposure

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Isolated(Generic[T]):
    """What became of one chip: its result, or the status and reason why there is none."""

    result: T | None
    status: str  # ok, skipped, failed
    reason: str | None = None


def isolated(work: Callable[[], T], name: str) -> Isolated[T]:
    """Return the result of ``work``, or why it has none, whatever it raises.

    The sky's fault (`SkipChip`, `UnwantedExposure`) is "skipped"; an unusable file and a bug are "failed", a
    bug with its last lines of traceback in the reason and all of it in the log.
    """
    try:
        return Isolated(result=work(), status="ok")
    except (SkipChip, UnwantedExposure) as skip:
        log.info("%s skipped: %s", name, skip)
        return Isolated(result=None, status="skipped", reason=str(skip))
    except InputError as error:
        log.error("%s failed: %s", name, error)
        return Isolated(result=None, status="failed", reason=str(error))
    except Exception as bug:
        log.exception("%s failed by a bug", name)
        where = traceback.extract_tb(bug.__traceback__)[-1]
        reason = f"{type(bug).__name__}: {bug} ({where.filename}:{where.lineno} in {where.name})"
        return Isolated(result=None, status="failed", reason=reason)
