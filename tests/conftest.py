"""Fixtures for every test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def realdata() -> Path:
    """Return ../shared/realdata; skip where a user's clone lacks it, fail where CI must have it."""
    root = Path(__file__).resolve().parent.parent
    folder = Path(os.environ.get("KS4DIFF_SHARED") or root.parent / "shared") / "realdata"
    if not folder.is_dir():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"{folder} is absent")
    return folder
