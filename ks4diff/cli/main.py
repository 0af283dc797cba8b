"""The ``ks4diff`` command: mounts the command groups, sets up logging, turns errors into exit codes."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from ks4diff import __version__
from ks4diff.cli import (
    alerts,
    calibrate,
    demo,
    efficiency,
    forced,
    run,
    simulate,
    subtract,
    templates,
    train,
)
from ks4diff.products.errors import ConfigError, DeliveryError, InputError, SkipChip

app = typer.Typer(
    help="Find what suddenly appears: difference imaging from exposures to alert packets.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("demo")(demo.demo)
app.command("subtract")(subtract.subtract)
app.command("run")(run.run)
app.command("efficiency")(efficiency.efficiency)
app.command("forced")(forced.forced)
app.command("simulate")(simulate.simulate)
app.command("train")(train.train)
app.command("calibrate")(calibrate.calibrate)
app.add_typer(alerts.app, name="alerts")
app.add_typer(templates.app, name="templates")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"ks4diff {__version__}")
        raise typer.Exit(0)


@app.callback()
def options(
    verbose: Annotated[int, typer.Option("-v", "--verbose", count=True, help="Tell more; -vv for all.")] = 0,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Find what suddenly appears: difference imaging from exposures to alert packets."""
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.basicConfig(
        level=level, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s", force=True
    )
    # the client logs every retry of a broker that is away; our own messages say it once
    logging.getLogger("kafka").setLevel(logging.CRITICAL if verbose < 2 else logging.INFO)


def main() -> None:
    """Run the command line and exit with the contract's code: 2 for bad input or usage, 3 undelivered."""
    try:
        app()
    except (InputError, ConfigError, SkipChip) as error:
        print(f"ks4diff: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except DeliveryError as error:
        print(f"ks4diff: {error}", file=sys.stderr)
        raise SystemExit(3) from None
