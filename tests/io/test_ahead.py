"""SCAMP's .ahead files are read as the first guesses that they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ks4diff.io.ahead import read_ahead, read_ahead_folder
from ks4diff.io.tile_tables import read_distortions
from ks4diff.products.errors import InputError

TEXT = """HISTORY   Astrometric solution by SCAMP
COMMENT   (c) 2010-2013 IAP/CNRS/UPMC, Emmanuel Bertin \xe9
CTYPE1  = 'RA---TPV'           / WCS projection
CTYPE2  = 'DEC--TPV'           / WCS projection
CRPIX1  =  -2.925704192500E+02 / Reference pixel on this axis
CRPIX2  =  -5.064807629800E+02 / Reference pixel on this axis
CD1_1   =  -1.096005182040E-04 / Linear projection matrix
CD1_2   =   2.008033936050E-07 / Linear projection matrix
CD2_1   =  -1.021482543373E-06 / Linear projection matrix
CD2_2   =   1.095817310674E-04 / Linear projection matrix
PV1_0   =   5.582062427088E-03 / Projection distortion parameter
PV1_1   =   1.013193672114E+00 / Projection distortion parameter
PV1_7   =  -1.004780788623E-02 / Projection distortion parameter
PV2_4   =   9.013547716747E-04 / Projection distortion parameter
END
"""


def written(folder: Path, name: str, text: str = TEXT) -> Path:
    path = folder / name
    path.write_text(text, encoding="latin-1")
    return path


def test_a_solution_is_read(tmp_path):
    found = read_ahead(written(tmp_path, "kmtnet_global_ctio.kk.ahead"))
    assert found.crpix == (-292.57041925, -506.48076298)
    assert found.cd[1, 0] == -1.021482543373e-06
    assert found.pv[0] == (5.582062427088e-03, 1.013193672114, 0, 0, 0, 0, 0, -1.004780788623e-02)
    # terms that are not there: 1 for the linear one, else 0
    assert found.pv[1] == (0, 1.0, 0, 0, 9.013547716747e-04)


def test_a_folder_is_sorted_by_site_and_chip(tmp_path):
    for name in ("kmtnet_global_ctio.kk.ahead", "kmtnet_global.nn.ahead", "kmtnet_global_SSO.mm.ahead"):
        written(tmp_path, name)
    written(tmp_path, "kmtnet_global_ctio.ahead", "all four chips")
    written(tmp_path, "notes.txt", "none")
    assert set(read_ahead_folder(tmp_path)) == {("CTIO", "K"), ("any", "N"), ("SSO", "M")}


def test_the_survey_s_own_files_agree_with_our_table(realdata):
    found, table = read_ahead_folder(realdata / "jmk5040+KMTNet_ToO"), read_distortions()
    assert set(found) == set(table)
    for key, solution in found.items():
        # the table is rounded to 1e-8 in PV
        np.testing.assert_allclose(solution.pv[0], table[key].pv[0], atol=6e-9)
        np.testing.assert_allclose(solution.pv[1], table[key].pv[1], atol=6e-9)
        np.testing.assert_allclose(solution.cd, table[key].cd, atol=1e-13)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("-2.925704192500E+02", "'none'"), "CRPIX1"),
        (("RA---TPV", "RA---ZPN"), "not TPV"),
        (("CD2_2   =   1.095817310674E-04", "CD2_2   =   0.0"), None),
        (("PV1_7   =  -1.004780788623E-02", "PV1_7   =                 T"), "PV1_7"),
        (("CRPIX2", "CRPIXX"), "CRPIX2"),
    ],
)
def test_damaged_files_are_named(tmp_path, change, reason):
    text = TEXT.replace(*change)
    if reason is None:
        text, reason = text.replace("-1.021482543373E-06", "0.0"), "singular"
    path = written(tmp_path, "kmtnet_global_ctio.kk.ahead", text)
    with pytest.raises(InputError, match=reason) as error:
        read_ahead(path)
    assert str(path) in str(error.value)


def test_folders_without_any_are_named(tmp_path):
    with pytest.raises(InputError, match="no file like"):
        read_ahead_folder(tmp_path)
    with pytest.raises(InputError, match="not a folder"):
        read_ahead_folder(tmp_path / "absent")
    with pytest.raises(InputError, match="cannot be read"):
        read_ahead(tmp_path / "absent.ahead")
