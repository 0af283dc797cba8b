"""SN 2021rhu's 34 real ZTF packets through association: the objects they become, and the light curve.

``python -m benchmarks.sn2021rhu [REALDATA]``
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from ks4diff.io.history import History
from ks4diff.stages.sky_cells import separation_arcsec, unit_vectors
from tests import sn2021rhu
from tests.seasons import contents, put


def main() -> None:
    """Print the objects and the detections of each, by time."""
    realdata = Path(sys.argv[1] if len(sys.argv) > 1 else "../shared/realdata")
    with tempfile.TemporaryDirectory() as folder:
        history = History(None, Path(folder))
        put(history, Path(folder), *sn2021rhu.exposures(realdata))
        exposures, objects, detections = contents(history)
    of = {row["exposure"]: row for row in exposures}
    for one in objects:
        place = unit_vectors(one["ra"], one["dec"])
        print(f"{one['object_id']}: {one['n_detections']} detections, brightest {one['brightest_mag']:.2f}")
        print(f"  ra {one['ra']:.6f} dec {one['dec']:+.6f}, error {one['err_arcsec']:.3f} arcsec")
        own = [row for row in detections if row["object_id"] == one["object_id"]]
        for row in sorted(own, key=lambda row: of[row["exposure"]]["mjd"]):
            seen, apart = of[row["exposure"]], separation_arcsec(unit_vectors(row["ra"], row["dec"]), place)
            print(f"  {seen['mjd']:.5f}  {seen['filter']}  {row['mag']:.3f}  {float(apart):.2f} arcsec off")


if __name__ == "__main__":
    main()
