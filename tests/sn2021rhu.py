"""SN 2021rhu (ZTF21abiuvdk): 34 real packets of one supernova, 65 days, g and r, as exposures of ours."""

from __future__ import annotations

from pathlib import Path

from ks4diff.io.packets import read_container
from ks4diff.products.sightings import ExposureSightings
from tests.seasons import sightings

FOLDER = "mwvgroup+Pitt-Google-Broker/docs/source/working-notes/troyraen/SuperNNova/ZTF21abiuvdk"
BANDS = {1: "g", 2: "r", 3: "i"}


def packets(realdata: Path) -> list[dict]:
    """The packets, in no order of time."""
    found = [read_container(path).records[0] for path in sorted((realdata / FOLDER).glob("*.avro"))]
    return sorted(found, key=lambda packet: packet["candid"] % 97)


def exposures(realdata: Path) -> list[ExposureSightings]:
    """An exposure of each packet, in their order."""
    return [_exposure(packet["candidate"], number) for number, packet in enumerate(packets(realdata))]


def _exposure(measured: dict, number: int) -> ExposureSightings:
    flux = 10 ** (0.4 * (31.4 - measured["magpsf"])) * (1 if measured["isdiffpos"] in "t1" else -1)
    # ZTF gives no errors of positions: its packets scatter by 0.1" here
    return sightings(
        number,
        measured["jd"] - 2400000.5,
        measured["ra"],
        measured["dec"],
        err=0.1,
        flux=flux,
        filter=BANDS[measured["fid"]],
    )
