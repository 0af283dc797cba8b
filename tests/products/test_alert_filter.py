"""A consumer's filter: it means what Python means, null is unknown, and nothing hostile gets in."""

import math
import random
import re
from pathlib import Path

import pytest

from ks4diff.io.packets import field_names
from ks4diff.products.alert_filter import MAX_LETTERS, parse_filter
from ks4diff.products.errors import ConfigError
from tests.sample_alert import make_exposure, make_records

ALERT = make_records(1)[0]  # rb 0.97, R, scorr 28.4, flags ['on_source'], three earlier detections
FIELDS = field_names()
ROOT = Path(__file__).parents[2]


def accepts(text, record=ALERT):
    return parse_filter(text, FIELDS).accepts(record)


@pytest.mark.parametrize(
    "text",
    [
        "rb > 0.9 and filter in ('R', 'I') and 'bleed' not in flags",
        "candidate.rb > 0.9",
        "0.9 < rb <= 1 < scorr",
        "abs(-scorr) > 25 and -scorr < -25",
        "scorr % 10 > 8 and scorr / 2 < 15 and scorr * 2 - 1 + 1 > 50",
        "object.nDetections >= 3",
        "len(prv_candidates) == 3 and max(prv_candidates.scorr) > 27 > min(prv_candidates.snr)",
        "provenance.quality == 'warn'",
        "'424' not in objectId and '424' in '4242'",
        "not injected",
        "filter not in ['B', 'V']",
        "multimessenger == None and multimessenger is None and rb is not None and rb != None",
    ],
)
def test_what_is_true_of_the_sample(text):
    assert accepts(text)
    assert not accepts(f"not ({text})")


@pytest.mark.parametrize(
    "text",
    [
        "ssdistnr > 3",
        "ssdistnr <= 3",
        "not ssdistnr > 3",
        "ssdistnr + 1 > 0",
        "'S1' in multimessenger.event",
        "ssdistnr > 3 and rb > 0",
        "ssdistnr > 3 or rb < 0",
        "measurements.nothing > 0",
        "1 / (rb - rb) > 0",
        "ssdistnr in (1, 2)",
        "ssdistnr not in (1, 2)",
        "ssdistnr == ssdistnr",
        "abs(ssdistnr) > 0",
    ],
)
def test_what_depends_on_the_unknown_is_not_true(text):
    assert not accepts(text)
    assert not accepts(f"not ({text})")


def test_the_known_decides_where_it_can():
    assert accepts("ssdistnr > 3 or rb > 0.9")
    assert accepts("not (ssdistnr > 3 and rb < 0.9)")
    assert not accepts("ssdistnr == None and rb < 0.9")


def test_nan_is_unknown():
    record = {"candidate": {"rb": math.nan}}
    assert not accepts("rb > 0 or rb <= 0", record)
    assert accepts("rb == None", record)


def test_lists_give_what_each_item_has():
    record = {"multimessenger": [{"event": "S190814bv", "delta_t": 0.5}, {"event": "S1", "delta_t": None}]}
    assert accepts("'S190814bv' in multimessenger.event and max(multimessenger.delta_t) == 0.5", record)
    assert not accepts("'S2' in multimessenger.event", record)


def test_exposure_messages_have_their_own_fields():
    message = make_exposure()
    assert accepts("filter == 'R' and status == 'partial' and n_alerts > 0", message)
    assert accepts("max(chips.coverage) > 0.9 and 'failed' in chips.status", message)
    assert accepts("filter == 'R'", ALERT)


def test_the_examples_of_the_readmes_are_such():
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "alerts/README.md")]
    examples = [re.findall(r'--filter "(.*)"', text) for text in texts]
    assert [len(found) for found in examples] == [1, 4]
    assert [accepts(example) for example in examples[1]] == [False, True, True, False]
    assert accepts(examples[0][0])


def expression(rng, depth, kind):
    """A random expression, true for its text and for Python's own evaluation alike."""
    if kind == "number":
        if depth == 0 or rng.random() < 0.3:
            return rng.choice(["rb", "scorr", "candidate.ra", "3", "0.5", "-7", "len(prv_candidates)"])
        form = rng.choice(["({} + {})", "({} - {})", "({} * {})", "-({0})", "abs({0})"])
        return form.format(expression(rng, depth - 1, kind), expression(rng, depth - 1, kind))
    if depth == 0 or rng.random() < 0.2:
        return rng.choice(["filter == 'R'", "'bleed' in flags", "'on_source' in flags", "True", "injected"])
    if rng.random() < 0.5:
        sides = [expression(rng, depth - 1, "number") for _ in range(rng.choice([2, 3]))]
        signs = [rng.choice(["<", "<=", ">", ">=", "==", "!="]) for _ in sides[1:]]
        return sides[0] + "".join(f" {sign} {side}" for sign, side in zip(signs, sides[1:], strict=True))
    form = rng.choice(["({} and {})", "({} or {})", "not ({0})"])
    return form.format(expression(rng, depth - 1, kind), expression(rng, depth - 1, kind))


def test_means_what_python_means():
    """Where all is known: 500 random expressions against the language itself."""
    rng = random.Random(7)

    class Fields:
        ra = ALERT["candidate"]["ra"]

    names = {**ALERT["candidate"], "prv_candidates": ALERT["prv_candidates"], "candidate": Fields}
    truths = []
    for _ in range(500):
        text = expression(rng, 4, "truth")
        truths.append(accepts(text))
        assert truths[-1] is bool(eval(text, {"__builtins__": {"abs": abs, "len": len}}, names)), text  # noqa: S307
    assert 100 < sum(truths) < 400


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "invalid syntax"),
        ("rb >", "invalid syntax"),
        ("rbb > 0.9", "no field 'rbb'; is it rb"),
        ("object.ndetections > 1", "is it object.nDetections"),
        ("rb", "is a number, neither true nor false"),
        ("rb and True", "is a number"),
        ("filter > 3", "cannot compare a text with a number"),
        ("isdiffpos == 1", "cannot compare a text with a number"),
        ("rb == True", "cannot compare a number with true or false"),
        ("'x' in rb", "a text cannot be in a number"),
        ("'a' * 9 == 'a'", "cannot compute with a text"),
        ("flags * 1000000 == flags", "cannot compute with a list"),
        ("max(flags) > 1", "items that are no numbers"),
        ("max(rb) > 1", "cannot be taken of a number"),
        ("rb is 1", "use =="),
    ],
)
def test_mistakes_are_named(text, message):
    with pytest.raises(ConfigError, match=message) as found:
        accepts(text)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "().__class__.__bases__[0].__subclasses__()",
        "rb.__class__ == 1",
        "candidate.__class__.__mro__ == 1",
        "candidate.rb.real > 0",
        "prv_candidates[0].rb > 0",
        "open('/etc/passwd')",
        "eval('1')",
        "len(__builtins__) > 0",
        "max(rb, key=open) > 0",
        "max(*flags) > 0",
        "(lambda: 1)() > 0",
        "[x for x in flags] == flags",
        "(x := 1) > 0",
        "f'{rb}' == '1'",
        "b'x' in flags",
        "... == 1",
        "1j > 0",
        "rb if rb > 0 else 1",
        "rb ** 9 ** 9 > 0",
        "1 << 99 > 0",
        "~1 > 0",
        "yield",
        "await rb",
        "rb > 0; rb",
        "rb = 1",
        "import os",
        "rb\0 > 0",
        "rb > 0 #" + "x" * MAX_LETTERS,
        "(" * 400,
        "(" * 180 + "rb" + ")" * 180,
        "not " * 200 + "True",
        "-" * 900 + "1 > 0",
        "~" * 990,
        "rb" + ".a" * 400 + " > 0",
        "[" * 90 + "]" * 90 + " == 1",
        " and ".join(["(rb > 0 or"] * 80),
    ],
)
def test_nothing_hostile_gets_in(text):
    with pytest.raises(ConfigError):
        accepts(text)


@pytest.mark.parametrize("text", ["9" * 990 + " > 0", "*".join(["9" * 90] * 10) + " > 0", "1e999 > rb"])
def test_large_numbers_are_numbers(text):
    assert accepts(text)


def test_a_quotient_of_large_numbers_is_unknown():
    assert not accepts("9" * 900 + " / 3 > 0")


@pytest.mark.parametrize("seed", range(3))
def test_noise_is_refused_or_means_something(seed):
    """Random pieces of the language and beyond: an answer or a ConfigError, never anything else."""
    rng = random.Random(seed)
    pieces = [
        "rb",
        "flags",
        "(",
        ")",
        "[",
        "]",
        ",",
        ".",
        "'",
        "not ",
        " and ",
        " in ",
        "<",
        "==",
        "1",
        "e9",
        "-",
    ]
    pieces += [
        "len(",
        "None",
        "*",
        "**",
        "%",
        "/",
        ":",
        "{",
        "}",
        "\\",
        "é",
        "\n",
        "lambda ",
        "is ",
        "@",
        "0x",
    ]
    refused = 0
    for _ in range(1500):
        text = "".join(rng.choices(pieces, k=rng.randint(1, 9)))
        try:
            accepts(text)
        except ConfigError:
            refused += 1
    assert 1000 < refused < 1500
