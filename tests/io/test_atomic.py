"""A file is seen whole or not at all."""

import os

import pytest

from ks4diff.io.atomic import atomic_path, atomic_write_bytes


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def fail_half_way(path):
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"half of the n")
        raise RuntimeError("power cut")


def test_writes_and_replaces_leaving_no_temporary(tmp_path):
    path = tmp_path / "deep" / "er" / "report.json"
    atomic_write_bytes(path, b"one")
    atomic_write_bytes(path, b"two")
    assert path.read_bytes() == b"two"
    assert names(path.parent) == ["report.json"]


def test_failure_keeps_the_old_file_and_removes_the_temporary(tmp_path):
    path = tmp_path / "report.json"
    atomic_write_bytes(path, b"old")
    with pytest.raises(RuntimeError, match="power"):
        fail_half_way(path)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["report.json"]


def test_target_is_untouched_until_the_body_ends(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
        assert temporary.parent == path.parent
    assert path.read_bytes() == b"new"


def test_temporary_keeps_every_suffix_and_hides(tmp_path):
    with atomic_path(tmp_path / "difference.fits.gz") as temporary:
        temporary.write_bytes(b"x")
        assert temporary.name.endswith(".fits.gz")
        assert temporary.name.startswith(".")


def test_a_writer_that_replaces_the_temporary_is_fine(tmp_path):
    # astropy's overwrite=True removes and creates the file again.
    with atomic_path(tmp_path / "a.fits") as temporary:
        temporary.unlink()
        temporary.write_bytes(b"again")
    assert (tmp_path / "a.fits").read_bytes() == b"again"


def test_file_is_as_readable_as_any_other(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    atomic_write_bytes(tmp_path / "atomic", b"")
    assert os.stat(tmp_path / "atomic").st_mode == os.stat(tmp_path / "plain").st_mode


def test_a_body_that_removes_its_file_changes_nothing(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a") as temporary:
        temporary.unlink()
    assert (tmp_path / "a").read_bytes() == b"old"
