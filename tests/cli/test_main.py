"""The ``ks4diff`` command itself: help, version, unknown words and exit codes."""

from __future__ import annotations

import re

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from ks4diff import __version__
from ks4diff.cli import main
from ks4diff.products.errors import ConfigError, DeliveryError, InputError, SkipChip


def commands(group=None, path=()):
    """Yield the words of every command, those of groups too."""
    group = group or get_command(main.app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name)


def run(*arguments):
    return CliRunner().invoke(main.app, list(arguments))


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_every_command_has_an_example(words):
    done = run(*words, "--help")
    assert done.exit_code == 0
    assert f"Example: ks4diff {' '.join(words)}" in re.sub(r"\s+", " ", done.stdout)


def test_help_names_every_command():
    done = run("--help")
    assert done.exit_code == 0
    assert {words[0] for words in commands()} >= {"demo", "subtract", "alerts"}
    for words in commands():
        assert re.search(rf"\b{words[0]}\b", done.stdout)


def test_the_version():
    done = run("--version")
    assert done.exit_code == 0
    assert done.stdout.strip() == f"ks4diff {__version__}"


@pytest.mark.parametrize(
    "words", [("--no-such",), ("no-such",), ("subtract", "--no-such"), ("alerts", "no-such")]
)
def test_unknown_words_are_bad_usage(words):
    assert run(*words).exit_code == 2


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("a.fits: is no image"), 2),
        (ConfigError("settings: unknown key"), 2),
        (SkipChip("too few stars", n_stars=3), 2),
        (DeliveryError("3 alerts wait"), 3),
    ],
)
def test_errors_become_one_line_and_a_code(monkeypatch, capsys, error, code):
    def fail():
        raise error

    monkeypatch.setattr(main, "app", fail)
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == code
    assert capsys.readouterr().err == f"ks4diff: {error}\n"


def test_a_bug_is_not_hidden(monkeypatch):
    def fail():
        raise ZeroDivisionError

    monkeypatch.setattr(main, "app", fail)
    with pytest.raises(ZeroDivisionError):
        main.main()
