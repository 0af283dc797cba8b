"""``ks4diff --help`` answers at once: starting the command loads nothing that only a run needs."""

from __future__ import annotations

import json
import subprocess
import sys

HEAVY = {"numba", "scipy", "astropy", "sep", "kafka", "fastavro", "sqlalchemy", "PIL", "numpy", "rich"}


def loaded_by(code):
    """Return the names of all modules that a fresh interpreter has after running ``code``."""
    report = "import json, sys; sys.stdout.write(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True, timeout=60
    )
    return set(json.loads(done.stdout))


def test_the_command_line_loads_no_heavy_package():
    assert not HEAVY & {name.split(".")[0] for name in loaded_by("import ks4diff.cli.main")}


def test_the_command_line_loads_no_science_and_no_edges():
    layers = ("ks4diff.pipeline", "ks4diff.stages", "ks4diff.numerics", "ks4diff.io")
    assert not [name for name in loaded_by("import ks4diff.cli.main") if name.startswith(layers)]


def test_a_heavy_package_would_be_seen():
    assert "numpy" in loaded_by("import ks4diff.pipeline.pair")
