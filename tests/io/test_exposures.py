"""Files become exposures: grouped, complete or not, in one order."""

from __future__ import annotations

from datetime import datetime

import pytest

from ks4diff.io.exposures import find_exposures, is_on_its_way
from ks4diff.io.kmtnet import read_exposure_chip
from ks4diff.io.kmtnet_header import name_facts, night_of
from ks4diff.products.errors import InputError
from ks4diff.products.exposure import FileForm
from ks4diff.products.ids import Site
from tests import kmtnet_files as kf

STEM = f"kmta.{kf.STEM}"


@pytest.fixture(scope="module")
def skies():
    return kf.skies(rows=32)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, skies):
    return kf.raw_mef(tmp_path_factory.mktemp("whole") / f"{STEM}.fits", skies).read_bytes()


class TestNames:
    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("kmtc.20250207.004413.fits", (Site.CTIO, "20250207", 4413, None)),
            ("kmts.20250207.004413.nn.fits", (Site.SAAO, "20250207", 4413, "N")),
            ("KMTNk.20170209.044131.fits", (None, "20170209", 44131, "K")),
            ("OBJ_2149.115-50.B.20240423.CTIO.004413.tt.scaled.fits", (Site.CTIO, "20240423", 4413, "T")),
            ("004413.mm.fits", (None, None, 4413, "M")),
            ("stack.fits", (None, None, None, None)),
        ],
    )
    def test_tell_what_they_can(self, name, expected):
        facts = name_facts(name)
        assert (facts.site, facts.night, facts.number, facts.chip) == expected

    @pytest.mark.parametrize(
        ("site", "start", "night"),
        [
            (Site.CTIO, "2021-05-03T05:27:32", "20210503"),  # a real file's
            (Site.CTIO, "2021-05-02T23:00:00", "20210503"),
            (Site.CTIO, "2021-05-03T16:31:00", "20210504"),
            (Site.SAAO, "2021-05-03T10:29:00", "20210502"),
            (Site.SAAO, "2021-05-03T18:00:00", "20210503"),
            (Site.SSO, "2017-02-09T16:34:45", "20170209"),  # a real file's
            (Site.SSO, "2017-02-10T01:29:00", "20170209"),
            (Site.SSO, "2017-02-10T01:31:00", "20170210"),
        ],
    )
    def test_night_changes_at_noon(self, site, start, night):
        assert night_of(datetime.fromisoformat(start), site) == night


class TestGrouping:
    def test_chips_of_one_exposure_meet_and_missing_ones_are_told(self, tmp_path, skies):
        for chip in "MN":
            kf.raw_chip(tmp_path / f"KMTN{chip.lower()}.{kf.STEM}.fits", chip, skies[chip])
        kf.raw_pair(tmp_path / f"KMTA.{kf.STEM[:-1]}2.MK.fits", skies)
        first, second = find_exposures(tmp_path)
        assert (sorted(first.chips), first.missing) == (["M", "N"], ("K", "T"))
        assert (sorted(second.chips), second.missing) == (["K", "M"], ("N", "T"))
        with pytest.raises(InputError, match="no file with chip K"):
            read_exposure_chip(first, "K")

    def test_same_number_elsewhere_is_another_exposure(self, tmp_path, skies):
        for letter, site in (("c", "CTIO"), ("s", "SAAO"), ("a", "SSO")):
            kf.four_chips(tmp_path / f"kmt{letter}.{kf.STEM}.fits", skies, OBSERVAT=site)
        assert [e.id.site for e in find_exposures(tmp_path)] == [Site.CTIO, Site.SAAO, Site.SSO]

    def test_observat_beats_instrume_and_the_name(self, tmp_path, skies):
        path = kf.four_chips(tmp_path / f"kmts.{kf.STEM}.fits", skies, OBSERVAT="CTIO", INSTRUME="KMTS")
        assert find_exposures(path)[0].id.site is Site.CTIO

    @pytest.mark.parametrize(
        ("changes", "site"),
        [
            ({"OBSERVAT": "absent", "ORIGIN": "absent"}, Site.SAAO),  # from the prefix
            ({"OBSERVAT": "absent", "ORIGIN": "KASI"}, Site.SAAO),
            ({"OBSERVAT": "absent", "ORIGIN": "CTIO"}, Site.CTIO),
        ],
    )
    def test_site_without_observat(self, tmp_path, skies, changes, site):
        path = kf.four_chips(tmp_path / f"kmts.{kf.STEM}.fits", skies, **changes)
        assert find_exposures(path)[0].id.site is site

    def test_a_foreign_name_falls_back_to_the_header(self, tmp_path, skies):
        path = kf.four_chips(tmp_path / "image.fits", skies, FILENAME="x", OBSERVAT="CTIO")
        assert str(find_exposures(path)[0].id) == "kmtc.20170210.163445"
        path = kf.four_chips(tmp_path / "other.fits", skies)
        assert str(find_exposures(path)[0].id) == STEM

    def test_order_does_not_depend_on_the_arguments(self, tmp_path, skies):
        paths = [
            kf.four_chips(tmp_path / f"kmtc.{night}.{number:06d}.fits", skies, OBSERVAT="CTIO")
            for night, number in (("20250208", 3), ("20250207", 12), ("20250207", 2))
        ]
        forward, backward = find_exposures(paths), find_exposures(paths[::-1])
        assert forward == backward == find_exposures(tmp_path)
        assert [str(e.id)[5:] for e in forward] == ["20250207.000002", "20250207.000012", "20250208.000003"]

    def test_the_more_processed_of_two_forms(self, tmp_path, skies):
        kf.raw_mef(tmp_path / f"{STEM}.fits", skies)
        kf.level_one(tmp_path / f"{STEM}.ceu.l1ccd.mef.fits", skies)
        (files,) = find_exposures(tmp_path)
        assert files.form is FileForm.L1_CHIPS

    def test_folders_are_searched_and_other_files_passed_over(self, tmp_path, skies, caplog):
        (tmp_path / "night").mkdir()
        kf.four_chips(tmp_path / "night" / f"{STEM}.fits", skies)
        (tmp_path / "notes.fits.txt").write_text("no image")
        kf.write(tmp_path / "table.fits", [(kf.empty_primary(), None)])
        assert len(find_exposures(tmp_path)) == 1
        assert "passed over: " in caplog.text
        assert "table.fits: no 2-D image" in caplog.text

    def test_a_named_file_that_is_no_exposure_is_an_error(self, tmp_path):
        path = kf.write(tmp_path / "table.fits", [(kf.empty_primary(), None)])
        with pytest.raises(InputError, match="no 2-D image"):
            find_exposures([path])
        with pytest.raises(InputError, match="no such file"):
            find_exposures(tmp_path / "absent")


class TestPartialUploads:
    @pytest.mark.parametrize(
        "name", [".kmts.20230308.061242.fits.7uUd6N.", "kmts.20230308.061242.fits.aB3dE6", "a.fits.part"]
    )
    def test_names_on_their_way(self, name):
        assert is_on_its_way(name)

    @pytest.mark.parametrize(
        "name", ["kmts.20230308.061242.fits", "a.fits.fz", "a.fits.gz", "a.ceu.l1ccd.mef.fits"]
    )
    def test_other_names(self, name):
        assert not is_on_its_way(name)

    def test_even_a_whole_one_is_not_processed(self, tmp_path, whole):
        path = tmp_path / f".{STEM}.fits.7uUd6N."
        path.write_bytes(whole)
        (files,) = find_exposures(tmp_path)
        assert (files.form, files.chips, files.partial) == (None, {}, (path,))
        assert files.missing == ("K", "M", "N", "T")

    @pytest.mark.parametrize("part", [0.0, 0.001, 0.01, 0.3, 0.5, 0.731, 0.99, 0.9999])
    def test_a_file_cut_anywhere_is_partial(self, tmp_path, whole, part):
        path = tmp_path / f"{STEM}.fits"
        path.write_bytes(whole[: int(part * (len(whole) - 2880))])
        (files,) = find_exposures(tmp_path)
        assert (files.chips, files.partial) == ({}, (path,))

    def test_a_cut_gzip_stream_is_partial(self, tmp_path, skies):
        path = kf.raw_mef(tmp_path / f"{STEM}.fits.gz", skies)
        content = path.read_bytes()
        for length in (len(content) - 4, len(content) // 2, 600):
            path.write_bytes(content[:length])
            (files,) = find_exposures(tmp_path)
            assert (files.chips, files.partial) == ({}, (path,))

    def test_a_file_cut_within_a_header_block_is_partial(self, tmp_path, whole):
        start = whole.rindex(b"XTENSION")
        path = tmp_path / f"{STEM}.fits"
        for length in (start + 8, start + 80, start + 2880):
            path.write_bytes(whole[:length])
            (files,) = find_exposures(tmp_path)
            assert (files.chips, files.partial) == ({}, (path,))

    def test_a_growing_file_is_partial(self, tmp_path, whole, monkeypatch):
        path = tmp_path / f"{STEM}.fits"
        path.write_bytes(whole)

        def grown(found):
            path.write_bytes(whole + bytes(2880))
            return examine(found)

        from ks4diff.io import exposures

        examine = exposures.examine
        monkeypatch.setattr(exposures, "examine", grown)
        assert find_exposures(tmp_path)[0].partial == (path,)

    def test_missing_padding_is_harmless(self, tmp_path, whole):
        path = tmp_path / f"{STEM}.fits"
        path.write_bytes(whole.rstrip(b"\0"))
        assert find_exposures(path)[0].missing == ()

    def test_the_rest_of_the_exposure_is_still_there(self, tmp_path, skies):
        for chip in kf.ORDER:
            kf.single_chip(tmp_path / f"{STEM}.{chip.lower() * 2}.fits", chip, skies[chip])
        cut = tmp_path / f"{STEM}.kk.fits"
        cut.write_bytes(cut.read_bytes()[:20000])
        (files,) = find_exposures(tmp_path)
        assert (sorted(files.chips), files.missing, files.partial) == (["M", "N", "T"], ("K",), (cut,))
