"""What `pip install` gives a user, away from the checkout: the wheel runs and finds its shared files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(*command, cwd, **environment):
    return subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,  # every kernel is compiled anew: 300 s were not enough at a load of 17
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel without network: the build backend is a development dependency."""
    out = tmp_path_factory.mktemp("dist")
    done = run("-m", "hatchling", "build", "-t", "wheel", "-d", str(out), cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.glob("ks4diff-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Return a folder with the installed package alone; dependencies come from this environment."""
    target = tmp_path_factory.mktemp("target")
    options = ("--quiet", "--no-deps", "--no-index", "--disable-pip-version-check", "--target", str(target))
    done = run("-m", "pip", "install", *options, str(wheel), cwd=target)
    assert done.returncode == 0, done.stdout + done.stderr
    lend_kernels(target)
    return target


def lend_kernels(target):
    """Give the installed sources the kernels that the checkout has compiled of the same: 100 s otherwise.

    Numba knows a source by its time and size, which pip sets anew.
    """
    for source in (ROOT / "ks4diff" / "numerics").glob("*.py"):
        copy = target / "ks4diff" / "numerics" / source.name
        assert copy.read_bytes() == source.read_bytes()
        shutil.copystat(source, copy)
        for kernel in (source.parent / "__pycache__").glob(f"{source.stem}.*.nb[ci]"):
            (copy.parent / "__pycache__").mkdir(exist_ok=True)
            shutil.copy2(kernel, copy.parent / "__pycache__")


def test_shared_files_are_inside(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    latest = (ROOT / "models/latest.txt").read_text().strip()
    folders = (ROOT / "templates/sample", ROOT / "models" / latest)
    shared = [path for folder in folders for path in folder.iterdir()]
    for path in [*(ROOT / "alerts/schema").rglob("*.avsc"), ROOT / "models/latest.txt", *shared]:
        assert f"ks4diff/_share/{path.relative_to(ROOT).as_posix()}" in names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]
    assert max(len(name) for name in names) < 200


def test_installed_package_is_the_one_used_and_finds_its_share(installed, tmp_path):
    code = (
        "import ks4diff; from ks4diff.io.share import shared_path\n"
        "print(ks4diff.__file__)\n"
        "print(shared_path('alerts/schema'))\n"
        "print(shared_path('templates/sample/AKB13475I0096.fits'))\n"
    )
    done = run("-c", code, cwd=tmp_path, PYTHONPATH=str(installed))
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        assert Path(line).is_relative_to(installed)
        assert Path(line).exists()
    assert len(done.stdout.splitlines()) == 3


def test_help_runs_from_anywhere(installed, tmp_path):
    done = run("-m", "ks4diff", "--help", cwd=tmp_path, PYTHONPATH=str(installed))
    assert done.returncode == 0, done.stderr
    assert "subtract" in done.stdout
    assert not list(tmp_path.iterdir())


def test_demo_finds_its_event_from_anywhere(installed, tmp_path):
    done = run("-m", "ks4diff", "demo", "--out", "result", "--json", cwd=tmp_path, PYTHONPATH=str(installed))
    assert done.returncode == 0, done.stderr
    # a star 18 px from a cosmic ray of the reference, brighter in all frames of that night, may be one, too
    alert, *others = json.loads(done.stdout)["alerts"]
    assert len(others) <= 1
    assert alert["candidate"]["rbversion"].startswith("ks4rb-")
    assert alert["candidate"]["x"] == pytest.approx(278.7, abs=1.0)
    assert alert["candidate"]["y"] == pytest.approx(223.0, abs=1.0)
    assert [path.name for path in tmp_path.iterdir()] == ["result"]
    assert {"alerts.avro", "candidates.fits", "report.json"} <= {
        p.name for p in (tmp_path / "result").iterdir()
    }
