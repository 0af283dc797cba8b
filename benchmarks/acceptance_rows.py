"""The rows of the acceptance table."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent


class Row(NamedTuple):
    """One promise: what is required, what was measured and whether it holds."""

    name: str
    required: str
    measured: str
    holds: bool


def shared_realdata() -> Path:
    """Return the folder of real images; SystemExit with a hint where a clone has none."""
    folder = Path(os.environ.get("KS4DIFF_SHARED") or ROOT.parent / "shared") / "realdata"
    if not folder.is_dir():
        raise SystemExit(f"{folder} is absent: acceptance needs the shared real images (KS4DIFF_SHARED)")
    return folder


def print_table(rows: list[Row]) -> None:
    """Print the table, 150 columns wide so that no figure is cut."""
    table = Table(box=box.SIMPLE_HEAD)
    for title in ("promise", "required", "measured", ""):
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(row.name, row.required, row.measured, "holds" if row.holds else "FAILS")
    Console(width=150).print(table)
