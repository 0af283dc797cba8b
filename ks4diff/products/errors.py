"""The kinds of failure that orchestration tells apart; anything else is a bug of ours."""

from __future__ import annotations


class Ks4diffError(Exception):
    """Base of every failure that is not a bug."""


class InputError(Ks4diffError):
    """An input cannot be used; the message is one line naming file, HDU and value."""


class TruncatedFile(InputError):
    """A file that ends before its headers say: cut short, or still being written."""


class UnwantedExposure(InputError):
    """A readable file that is not ours to process, such as a filter outside BVRI: skipped, not failed."""


class ConfigError(Ks4diffError):
    """The configuration or the command's words are wrong; stops the command."""


class SkipChip(Ks4diffError):
    """The data defeat the method (too few stars, no overlap): reported, others go on.

    Parameters
    ----------
    reason
        One clause a person can act on.
    numbers
        The measured values behind the verdict, kept for the report.

    """

    def __init__(self, reason: str, **numbers: float) -> None:
        self.reason = reason
        self.numbers = numbers
        detail = ", ".join(f"{name}={value:g}" for name, value in numbers.items())
        super().__init__(f"{reason} ({detail})" if detail else reason)


class HistoryUnavailable(Ks4diffError):
    """The history's database is away for now; what was to go into it waits in the queue."""


class DeliveryError(Ks4diffError):
    """Alerts are safe in the outbox but were not acknowledged by the broker."""
