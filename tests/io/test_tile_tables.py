"""Zero-point maps and field-issue flags: the transpose, missing cells and damaged files."""

from __future__ import annotations

import numpy as np
import pytest

from ks4diff.io.tile_tables import read_distortions, read_field_grid, read_issues, read_zp_map
from ks4diff.products.errors import InputError


def test_the_map_is_transposed_and_becomes_a_factor(tmp_path):
    zp = np.full((5, 7), 30.0)  # [x, y]
    zp[4, 1] = 29.0  # x cell 4, y cell 1: fainter zero point, counts must grow
    np.save(tmp_path / "zp.npy", zp)
    factor = read_zp_map(tmp_path / "zp.npy", 30.0)
    assert factor.shape == (7, 5)
    assert factor[1, 4] == pytest.approx(10**0.4)
    assert np.count_nonzero(factor != 1) == 1


def test_cells_without_a_measurement_take_the_nearest_one(tmp_path):
    zp = np.full((4, 4), 30.1)
    zp[0, 0], zp[3, 3] = 0.0, np.nan
    zp[0, 1] = zp[1, 0] = 29.9
    np.save(tmp_path / "zp.npy", zp)
    factor = read_zp_map(tmp_path / "zp.npy", 30.0)
    assert factor[0, 0] == pytest.approx(10**0.04)
    assert factor[3, 3] == pytest.approx(10**-0.04)


@pytest.mark.parametrize(
    "content",
    [np.zeros((3, 3)), np.ones(4), np.ones((2, 2), dtype=int), np.array([[None, 1.0]], dtype=object)],
    ids=["all zero", "1-D", "integers", "pickled"],
)
def test_other_arrays_are_refused_in_one_line(tmp_path, content):
    np.save(tmp_path / "zp.npy", content, allow_pickle=True)
    with pytest.raises(InputError, match=r"zp\.npy") as caught:
        read_zp_map(tmp_path / "zp.npy", 30.0)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_array_is_refused(tmp_path):
    (tmp_path / "zp.npy").write_bytes(b"\x93NUMPY\x01\x00\xff\xff{'descr'")
    with pytest.raises(InputError, match="not a zero-point map"):
        read_zp_map(tmp_path / "zp.npy", 30.0)


HEAD = "FIELD,RA,DEC,PoorFlatField_B,PoorFlatField_I,PoorFlatField_ANY,TrackIssue_I,TrackIssue_ANY\n"


def test_issues_are_named_by_field_and_band(tmp_path):
    (tmp_path / "flags.csv").write_text(
        HEAD + "0001.004-62,4.09,-62,0,1,1,1,1\n0002.008-62,8.2,-62,0,0,0,0,0\n"
    )
    issues = read_issues(tmp_path / "flags.csv")
    assert issues["0001.004-62", "I"] == ("PoorFlatField", "TrackIssue")
    assert issues["0001.004-62", "B"] == ()
    assert issues["0002.008-62", "I"] == ()


@pytest.mark.parametrize("text", ["RA,DEC\n1,2\n", "FIELD,RA\n1,2\n", HEAD + "a,1,2,0,x,0,0,0\n", "\x00\x01"])
def test_tables_of_another_kind_are_refused(tmp_path, text):
    (tmp_path / "flags.csv").write_text(text)
    with pytest.raises(InputError, match=r"flags\.csv"):
        read_issues(tmp_path / "flags.csv")


def test_our_own_tables_can_be_damaged_too(tmp_path):
    path = tmp_path / "table"
    path.write_text("[CTIO.K]\ncrpix = 3\n")
    with pytest.raises(InputError, match="not a table of distortions"):
        read_distortions(path)
    with pytest.raises(InputError, match="not a table of fields"):
        read_field_grid(path)
