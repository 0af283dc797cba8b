"""Cuts on alerts: cones on the sphere, events, nights, scores."""

import pytest

from ks4diff.io.packets import field_names
from ks4diff.products.alert_filter import parse_filter
from ks4diff.products.errors import ConfigError
from ks4diff.stages.select import AlertCuts, parse_cone, wanted
from tests.sample_alert import make_candidate, make_exposure, make_records
from tests.seasons import at

ALERT = make_records(1)[0]  # at 123.456789 -34.567891, rb 0.97, of kmts.20240423.012345


def passes(record=ALERT, **cuts):
    return wanted(record, AlertCuts(**cuts))


@pytest.mark.parametrize(
    ("cuts", "passing"),
    [
        ({}, True),
        ({"min_rb": 0.97}, True),
        ({"min_rb": 0.98}, False),
        ({"object_id": "KS4-24000000"}, True),
        ({"object_id": "KS4-24000001"}, False),
        ({"exposure": "kmts.20240423.012345"}, True),
        ({"exposure": "kmts.20240423.012346"}, False),
        ({"night": "20240423"}, True),
        ({"night": "20240424"}, False),
        ({"event": "S190814bv"}, False),
        ({"min_rb": 0.5, "night": "20240424"}, False),
    ],
)
def test_cuts(cuts, passing):
    assert passes(**cuts) is passing


def test_what_is_not_told_passes_no_cut_on_it():
    nowhere = make_records(1, object_id=None, candidate=make_candidate(rb=None, ra=None, dec=None))[0]
    assert passes(nowhere)
    for cuts in ({"min_rb": 0.0}, {"object_id": "x"}, {"cone": parse_cone("123,-34,180")}):
        assert not passes(nowhere, **cuts)
    assert not passes({"candidate": None}, min_rb=0.0)
    assert not passes(make_exposure(), min_rb=0.0)
    assert passes(make_exposure(), night="20240423")


def test_an_event_is_found_among_several():
    record = {"multimessenger": [{"event": "S1"}, {"event": "S190814bv"}]}
    assert passes(record, event="S190814bv")
    assert not passes(record, event="S190814")


@pytest.mark.parametrize("place", [(123.4, -34.5), (359.9999, 0.0), (0.0001, -30.0), (77.0, -89.9999)])
@pytest.mark.parametrize("radius", [2.0, 300.0])
def test_a_cone_is_a_circle_everywhere(place, radius):
    """Also over RA 0 and at a pole."""
    inside, outside = (at(radius * factor, 0.0, place) for factor in (0.999, 1.001))
    cone = parse_cone(f"{place[0]},{place[1]},{radius / 3600}")
    for (ra, dec), passing in ((inside, True), (outside, False)):
        assert passes({"candidate": {"ra": float(ra[0]), "dec": float(dec[0])}}, cone=cone) is passing


@pytest.mark.parametrize(
    "text", ["", "1,2", "1,2,3,4", "a,2,3", "1,91,3", "nan,2,3", "1,2,0", "1,2,-1", "1,2,181"]
)
def test_what_is_no_circle_is_refused(text):
    with pytest.raises(ConfigError, match="--cone"):
        parse_cone(text)


def test_an_expression_is_one_cut_more():
    bright = parse_filter("magpsf < 21.6", field_names())
    assert passes(expression=bright, min_rb=0.9)
    assert not passes(expression=bright, min_rb=0.99)
