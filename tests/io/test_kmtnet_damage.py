"""500 damaged files: each is read or refused in one line, quickly and in little memory."""

from __future__ import annotations

import collections
import json
import os
import subprocess
import sys

import pytest

COUNT = 500


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damage")
    words = [sys.executable, "-m", "tests.io.kmtnet_damage", str(folder), str(COUNT)]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, (len(lines), lines[-1:], done.stderr[-3000:])
    return lines


def test_every_file_came_to_an_end(results):
    assert len(results) == COUNT + 1
    assert results[-1]["peak_kb"] * 1024 < 2e9


def test_there_are_no_tracebacks(results):
    assert [r for r in results[:-1] if r["said"][0].startswith("TRACEBACK")] == []


def test_refusals_are_one_line_that_names_the_file(results):
    refusals = [said for r in results[:-1] for said in r["said"] if said.startswith("refused")]
    assert len(refusals) > COUNT / 2
    assert [
        said for said in refusals if "\n" in said or "kmta.20170209.044131" not in said or len(said) > 500
    ] == []


def test_damage_is_noticed_and_what_is_harmless_is_read(results):
    """A wrong size or type cannot be read right; a missing or odd card often leaves the chip whole."""
    read = collections.Counter(
        r["kind"] for r in results[:-1] if any(s.startswith("read") for s in r["said"])
    )
    total = collections.Counter(r["kind"] for r in results[:-1])
    assert read["truncated"] < total["truncated"]
    assert read["missing card"] > total["missing card"] / 2
