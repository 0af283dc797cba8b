"""``ks4diff alerts verify``: what was archived against its index, the outbox and Kafka."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from ks4diff.cli.alerts_options import ConfigOption, JsonOption, OutArgument, TopicOption, source_of
from ks4diff.cli.alerts_show import print_counts
from ks4diff.products.errors import InputError

if TYPE_CHECKING:
    from ks4diff.io.outbox_fates import Fate
    from ks4diff.pipeline.verify import ArchiveCheck, KafkaCheck


def verify(
    out: OutArgument,
    kafka: Annotated[
        str | None, typer.Option(metavar="HOST:PORT[,...]", help="Kafka servers to compare with.")
    ] = None,
    topic: TopicOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare OUT's archived alerts with their index and outbox, and with what Kafka holds.

    Prints what Kafka misses, what it has with another content, and what it has of OUT's exposures that is not
    archived, as of an earlier run with other settings. Exit code 3 when alerts are missing or differ, or
    without --kafka when the outbox has undelivered ones; 2 when archive and index disagree.

    Example: ks4diff alerts verify out --kafka localhost:9092
    """
    from ks4diff.io.outbox_fates import read_fates
    from ks4diff.pipeline.verify import check_archive, check_kafka

    _, topic, settings = source_of(kafka, topic, config)
    archive = check_archive(out)
    fates = read_fates(out / "outbox.db") if (out / "outbox.db").is_file() else None
    found = None if kafka is None else check_kafka(archive, kafka, topic, settings)
    counts, findings = _counts(archive, fates, found), list(_findings(archive, fates, found))
    if as_json:
        typer.echo(json.dumps({**counts, "findings": findings}))
    else:
        print_counts({name.replace("_", " "): n for name, n in counts.items()}, as_json=False)
        for one in findings:
            typer.echo("  ".join(str(value) for value in one.values() if value is not None))
    if archive.troubles:
        raise InputError(f"{out}: archive and index disagree in {len(archive.troubles)} places")
    if any(one["finding"] in ("missing", "different", "undelivered") for one in findings):
        raise typer.Exit(3)


def _counts(
    archive: ArchiveCheck, fates: Mapping[str, Fate] | None, found: KafkaCheck | None
) -> dict[str, int]:
    counts = {"exposures": len(archive.exposures), "archived": len(archive.alerts)}
    if fates is not None:
        counts["in_outbox"] = sum(alert_id in fates for alert_id in archive.alerts)
    if found is not None:
        counts |= {
            "in_kafka": found.found,
            "missing": len(found.missing),
            "different": len(found.different),
            "extra": len(found.extra),
            "withdrawn": len(found.withdrawn),
            "copies": found.copies,
        }
    return counts


def _findings(
    archive: ArchiveCheck, fates: Mapping[str, Fate] | None, found: KafkaCheck | None
) -> Iterator[dict[str, str | None]]:
    """Yield what is wrong, one row each: what, alertId, exposure, object and a remark."""
    for trouble in archive.troubles:
        yield {"finding": "damaged", "remark": trouble}
    away = [] if found is None else found.missing
    if found is None and fates is not None:
        away = [one for one in archive.alerts if one not in fates or fates[one].state != "acknowledged"]
    for alert_id in away:
        known = archive.alerts[alert_id]
        yield {
            "finding": "undelivered" if found is None else "missing",
            "alertId": alert_id,
            "exposure": known.exposure,
            "objectId": known.object_id,
            "remark": _fate(alert_id, fates),
        }
    for alert_id, fields in ({} if found is None else found.different).items():
        remark = f"differs in {', '.join(fields[:10])}"
        yield {"finding": "different", "alertId": alert_id, "remark": remark}
    for alert_id in [] if found is None else found.extra:
        yield {"finding": "extra", "alertId": alert_id, "remark": "not archived"}


def _fate(alert_id: str, fates: Mapping[str, Fate] | None) -> str | None:
    if fates is None:
        return None
    fate = fates.get(alert_id)
    if fate is None:
        return "not in the outbox"
    return f"outbox: {fate.state}" + (f" ({fate.reason})" if fate.reason else "")
