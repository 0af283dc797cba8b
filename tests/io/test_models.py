"""A model is read as it was written, and whatever is wrong with its files is one line."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tracemalloc
import zipfile

import numpy as np
import pytest
from typer.testing import CliRunner

from ks4diff.cli.main import app
from ks4diff.io import models
from ks4diff.io.models import ARRAYS, CARD, DTYPES, load_model
from ks4diff.products.errors import InputError
from tests.forests import tiny_model

SMALL = 30_000_000  # bytes that refusing may take: no declared size is believed


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_model(folder)
    return folder


@pytest.fixture
def model(sound, tmp_path):
    """Return a folder of one's own with a sound model."""
    shutil.copytree(sound, tmp_path / "model")
    return tmp_path / "model"


def edit_card(folder, **changes):
    card = json.loads((folder / CARD).read_text())
    card.update(changes)
    (folder / CARD).write_text(json.dumps({k: v for k, v in card.items() if v is not None}))


def sign(folder):
    """Let the card say the digest of the arrays as they are: no mutation is caught by that alone."""
    edit_card(folder, sha256=hashlib.sha256((folder / ARRAYS).read_bytes()).hexdigest())


def members(folder):
    with zipfile.ZipFile(folder / ARRAYS) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewrite(folder, held, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(folder / ARRAYS, "w", compression) as archive:
        for name, content in held.items():
            archive.writestr(name, content)
    sign(folder)


def npy(array, **options):
    out = io.BytesIO()
    np.lib.format.write_array(out, array, **options)
    return out.getvalue()


def header(shape, descr="<f4", data=b"", fortran="False"):
    """Return a .npy of any header text."""
    text = f"{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + data


def with_array(name, change):
    """Return a mutation of one array's values."""

    def mutate(folder):
        held = members(folder)
        old = np.load(io.BytesIO(held[f"{name}.npy"]), allow_pickle=False)
        held[f"{name}.npy"] = npy(np.asarray(change(old.copy())))
        rewrite(folder, held)

    return mutate


def with_member(name, content):
    def mutate(folder):
        held = members(folder)
        held[f"{name}.npy"] = content
        rewrite(folder, held)

    return mutate


def put(where, value):
    def change(array):
        array[where] = value
        return array

    return change


def inner_put(value):
    """Return a change of the first node, which is a root and no leaf."""
    return put(0, value)


def cut(folder):
    path = folder / ARRAYS
    path.write_bytes(path.read_bytes()[:-200])
    sign(folder)


def flip(folder):
    content = bytearray((folder / ARRAYS).read_bytes())
    content[len(content) // 2] ^= 0xFF
    (folder / ARRAYS).write_bytes(bytes(content))
    sign(folder)


def unsigned(folder):
    with (folder / ARRAYS).open("ab") as file:
        file.write(b"\0")


def extra(folder):
    rewrite(folder, {**members(folder), "evil.npy": npy(np.zeros(3))})


def outside(folder):
    held = members(folder)
    held["../roots.npy"] = held.pop("roots.npy")
    rewrite(folder, held)


def double(folder):
    held = members(folder)
    rewrite(folder, held)
    with zipfile.ZipFile(folder / ARRAYS, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("roots.npy", held["roots.npy"])
    sign(folder)


def missing(folder):
    held = members(folder)
    del held["value.npy"]
    rewrite(folder, held)


def lzma(folder):
    rewrite(folder, members(folder), zipfile.ZIP_LZMA)


def link_member(folder):
    held = members(folder)
    with zipfile.ZipFile(folder / ARRAYS, "w") as archive:
        for name, content in held.items():
            info = zipfile.ZipInfo(name)
            if name == "roots.npy":
                info.external_attr, content = 0o120777 << 16, b"/etc/passwd"
            archive.writestr(info, content)
    sign(folder)


def bomb(folder):
    held = members(folder)
    with zipfile.ZipFile(folder / ARRAYS, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in held.items():
            if name != "value.npy":
                archive.writestr(name, content)
        with archive.open("value.npy", "w") as file:
            file.write(header("(75000000,)", "<f8"))
            for _ in range(600):
                file.write(bytes(1_000_000))
    sign(folder)


def large(folder):
    with (folder / ARRAYS).open("wb") as file:
        file.truncate(models.LARGEST_FILE + 1)


def device(folder):
    (folder / ARRAYS).unlink()
    os.symlink("/dev/zero", folder / ARRAYS)


def pipe(folder):
    (folder / ARRAYS).unlink()
    os.mkfifo(folder / ARRAYS)


def text_card(text):
    return lambda folder: (folder / CARD).write_text(text)


def card(**changes):
    return lambda folder: edit_card(folder, **changes)


MUTATIONS = {
    "arrays cut short": cut,
    "a byte flipped": flip,
    "arrays other than the card's digest": unsigned,
    "no zip at all": lambda folder: ((folder / ARRAYS).write_bytes(b"PK" * 99), sign(folder)),
    "no arrays": lambda folder: (folder / ARRAYS).unlink(),
    "a device": device,
    "a pipe": pipe,
    "a file too large": large,
    "a zip bomb": bomb,
    "an extra member": extra,
    "a member out of the folder": outside,
    "a member twice": double,
    "a member missing": missing,
    "a member that is a link": link_member,
    "another compression": lzma,
    "a pickled member": with_member("roots", npy(np.array([{"a": 1}, None]), allow_pickle=True)),
    "objects declared": with_member("roots", header("(12,)", "|O", bytes(96))),
    "a huge shape": with_member("value", header("(4000000000000,)", "<f8", bytes(80))),
    "a shape beyond integers": with_member("value", header("(10000000000000000000000000,)", "<f8")),
    "a negative shape": with_member("value", header("(-10,)", "<f8")),
    "no shape": with_member("value", header("'many'", "<f8")),
    "a header that calls": with_member("value", header("(__import__('os').getpid(),)", "<f8")),
    "two dimensions": with_array("value", lambda a: a.reshape(1, -1)),
    "another type": with_array("threshold", lambda a: a.astype(np.float64)),
    "another byte order": with_array("threshold", lambda a: a.astype(">f4")),
    "a newer .npy": with_member("roots", npy(np.zeros(12, "<i4"), version=(2, 0))),
    "arrays of unlike length": with_array("right", lambda a: a[:-1]),
    "NaN as a threshold": with_array("threshold", inner_put(np.nan)),
    "infinity as a threshold": with_array("threshold", inner_put(np.inf)),
    "a child that is its parent": with_array("right", inner_put(0)),
    "a child before its parent": with_array("right", inner_put(-1)),
    "a child in another tree": with_array("right", lambda a: put(0, len(a) - 1)(a)),
    "a child beyond the arrays": with_array("right", inner_put(2**30)),
    "a leaf turned into a node at the end": with_array("feature", put(-1, 3)),
    "a feature that is none": with_array("feature", inner_put(65)),
    "a feature below none": with_array("feature", inner_put(-2)),
    "a value above 1": with_array("value", put(-1, 1.5)),
    "a value below 0": with_array("value", put(5, -1e-9)),
    "a value that is NaN": with_array("value", put(5, np.nan)),
    "nan_left beyond 1": with_array("nan_left", put(3, 2)),
    "no trees": with_array("roots", lambda a: a[:0]),
    "roots that fall": with_array("roots", lambda a: a[::-1].copy()),
    "a root beyond the arrays": with_array("roots", put(-1, 2**30)),
    "a first root that is not 0": with_array("roots", put(0, 1)),
    "calibration that falls": with_array("calibration_y", lambda a: a[::-1].copy()),
    "calibration of one point": with_array("calibration_x", lambda a: a[:1]),
    "calibration with NaN": with_array("calibration_y", put(1, np.nan)),
    "calibration beyond 1": with_array("calibration_y", put(-1, 1.2)),
    "a prior that is certain": with_array("prior_y", put(0, 0.0)),
    "a prior with NaN": with_array("prior_y", put(1, np.nan)),
    "a prior of one point": with_array("prior_x", lambda a: a[:1]),
    "a prior whose S_corr falls": with_array("prior_x", lambda a: a[::-1].copy()),
    "a prior of no S_corr": with_array("prior_x", put(0, 0.0)),
    "no S_corr among the features": card(features=["psf_corr"]),
    "limits that are NaN": with_array("lowest", put(0, np.nan)),
    "limits of too few features": with_array("highest", lambda a: a[:-1]),
    "no card": lambda folder: (folder / CARD).unlink(),
    "a card that is no JSON": text_card("{'name': 1}"),
    "a card that is a list": text_card("[]"),
    "a card nested too deep": text_card("[" * 100_000),
    "a card too large": lambda folder: (folder / CARD).write_bytes(b" " * (models.LARGEST_CARD + 1)),
    "a card that is no text": lambda folder: (folder / CARD).write_bytes(b"\xff\xfe\x00"),
    "a threshold above 1": card(threshold=1.5),
    "a threshold that is NaN": card(threshold=float("nan")),
    "a threshold beyond floats": card(threshold=10**400),
    "a threshold that is text": card(threshold="0.5"),
    "a prior that is true": card(prior=True),
    "no features": card(features=[]),
    "a feature twice": card(features=["s_peak"] * 65),
    "an unknown feature": card(features=["brightness"]),
    "features of another kind": card(features=[{"a": 1}, ["b"]]),
    "features fewer than the arrays ask": card(features=["s_peak", "psf_corr"]),
    "other definitions": card(definitions="0" * 16),
    "another vector": card(vector="ks4rb-f0"),
    "a name that is a path": card(name="../../etc"),
    "a name with a line break": card(name="tiny\nRBMODEL"),
    "a name beyond all length": card(name="a" * 1000),
    "a version missing": card(version=None),
}


@pytest.mark.parametrize("wrong", MUTATIONS)
def test_what_is_wrong_is_one_line(model, wrong):
    MUTATIONS[wrong](model)
    tracemalloc.start()
    try:
        with pytest.raises(InputError) as refused:
            load_model(model)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    line = str(refused.value)
    assert "\n" not in line
    assert line.startswith(str(model))
    assert len(line) < 400
    limit = SMALL if wrong != "a file too large" else models.LARGEST_FILE + SMALL
    assert peak < limit


def test_there_are_more_than_thirty_of_them():
    assert len(MUTATIONS) > 30


def loaded(folder):
    """Return ("", forest) or (the line that refuses it, None)."""
    try:
        return "", load_model(folder).forest
    except InputError as error:
        return str(error), None


def test_random_damage_is_refused_or_harmless(sound, tmp_path):
    """Whatever bytes are hit, the arrays are those that were written or there are none."""
    rng = np.random.default_rng(20261129)
    whole = (sound / ARRAYS).read_bytes()
    forest = load_model(sound).forest
    refused = 0
    for k in range(300):
        folder = tmp_path / str(k)
        shutil.copytree(sound, folder)
        content = bytearray(whole)
        for at in rng.integers(0, len(content), rng.integers(1, 4)):
            content[at] = rng.integers(256)
        # the directory at the end holds sizes, names and methods: half of the hits go there
        if k % 2:
            content[-int(rng.integers(1, 900))] ^= 1 << int(rng.integers(8))
        (folder / ARRAYS).write_bytes(bytes(content))
        sign(folder)
        line, other = loaded(folder)
        assert "\n" not in line
        refused += other is None
        if other is not None:
            for name in DTYPES:
                assert np.array_equal(getattr(other, name), getattr(forest, name))
    assert refused > 150


def test_equal_forests_are_equal_files_and_read_as_written(sound, tmp_path):
    again = tiny_model(tmp_path / "again")
    assert (tmp_path / "again" / ARRAYS).read_bytes() == (sound / ARRAYS).read_bytes()
    read = load_model(sound)
    digest = hashlib.sha256((sound / ARRAYS).read_bytes()).hexdigest()
    assert read.version == again.version == f"tiny-1.0.0+{digest[:8]}"
    assert (read.threshold, read.prior, len(read.features)) == (0.4, 0.5, 65)
    for name in DTYPES:
        assert getattr(read.forest, name).dtype.isnative


def test_a_command_refuses_a_bad_model_with_code_2(model, tmp_path):
    cut(model)
    config = tmp_path / "a.toml"
    config.write_text(f'[score]\nmodel = "{model}"\n')
    sample = "templates/sample/AKB13475I0028.fits"
    words = ["subtract", sample, sample, "--out", str(tmp_path / "out"), "--config", str(config)]
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, InputError)
    assert not (tmp_path / "out").exists()
