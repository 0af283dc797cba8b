"""``ks4diff alerts``: read alerts from Kafka or a file, and look after the outbox."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from ks4diff.cli import alerts_listen, alerts_outbox, alerts_replay, alerts_show, alerts_status, alerts_verify

log = logging.getLogger(__name__)

app = typer.Typer(
    help="Read, resend and check alerts.", no_args_is_help=True, rich_markup_mode=None, add_completion=False
)

app.command("tail")(alerts_listen.tail)
app.command("replay")(alerts_replay.replay)
app.command("show")(alerts_show.show)
app.command("verify")(alerts_verify.verify)
app.command("resend")(alerts_outbox.resend)
app.command("withdraw")(alerts_outbox.withdraw)
app.command("status")(alerts_status.status)


@app.command()
def schema(
    version: Annotated[
        str | None, typer.Argument(metavar="[VERSION]", help="Such as 1.0; the newest when left out.")
    ] = None,
    exposure: Annotated[
        bool, typer.Option("--exposure", help="Of the message that an exposure is done, not of alerts.")
    ] = False,
) -> None:
    """Print a schema of ours, nested records expanded, as JSON.

    Example: ks4diff alerts schema > ks4.avsc
    """
    from ks4diff.io.packets import schema_json

    typer.echo(schema_json(version, exposure=exposure))
