"""The house rules that no linter knows, sizes above all; and the linters themselves."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = sorted((ROOT / "ks4diff").rglob("*.py"))
OTHERS = sorted(path for folder in ("tests", "benchmarks") for path in (ROOT / folder).rglob("*.py"))

MAX_LINES = 500
CALM_LINES = 300  # beyond: only the modules named here, each with its reason
LONG_MODULES: dict[str, str] = {}
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 8
BROAD_EXCEPT_HOME = "ks4diff/pipeline/isolate.py"


def name(path):
    return path.relative_to(ROOT).as_posix()


def functions(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def lines_without_docstring(function):
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function, clean=False) is not None:
        docstring = function.body[0]
        lines -= docstring.end_lineno - docstring.lineno + 1
    return lines


def parameters(function):
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    every += [extra for extra in (arguments.vararg, arguments.kwarg) if extra]
    return [argument.arg for argument in every if argument.arg not in ("self", "cls")]


def is_command(function):
    """Return whether every parameter is a command-line option: typer takes no dataclass in their place."""
    kinds = [ast.unparse(a.annotation) for a in function.args.args if a.annotation]
    return bool(kinds) and all("typer." in kind or kind.endswith(("Option", "Argument")) for kind in kinds)


def catches_everything(handler):
    """Return whether a handler swallows any exception; one that ends in a bare raise only cleans up."""
    last = handler.body[-1]
    if isinstance(last, ast.Raise) and last.exc is None:
        return False
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(kind is None or ast.unparse(kind) in ("Exception", "BaseException") for kind in caught)


def imported_packages(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").split(".")[0]


def test_there_is_something_to_check():
    assert len(PACKAGE) > 20
    assert Path(__file__).resolve() in OTHERS


@pytest.mark.parametrize("path", PACKAGE + OTHERS, ids=name)
def test_no_module_is_longer_than_the_limit(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


def test_long_modules_are_named_with_a_reason():
    long = {name(path) for path in PACKAGE if len(path.read_text(encoding="utf-8").splitlines()) > CALM_LINES}
    assert long == set(LONG_MODULES)


@pytest.mark.parametrize("path", PACKAGE, ids=name)
def test_functions_are_short_with_few_parameters(path):
    long = {f.name: lines_without_docstring(f) for f in functions(path)}
    wide = {f.name: len(parameters(f)) for f in functions(path) if not is_command(f)}
    assert {key: n for key, n in long.items() if n > MAX_FUNCTION_LINES} == {}
    assert {key: n for key, n in wide.items() if n > MAX_PARAMETERS} == {}


@pytest.mark.parametrize("path", PACKAGE, ids=name)
def test_numba_lives_in_numerics_only(path):
    if (ROOT / "ks4diff" / "numerics") not in path.parents:
        assert "numba" not in set(imported_packages(path))


@pytest.mark.parametrize("path", PACKAGE, ids=name)
def test_exceptions_are_caught_by_kind(path):
    handlers = [
        node
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ExceptHandler) and catches_everything(node)
    ]
    assert len(handlers) <= (1 if name(path) == BROAD_EXCEPT_HOME else 0), [h.lineno for h in handlers]


@pytest.mark.parametrize("path", PACKAGE, ids=name)
def test_nothing_is_unpickled_or_evaluated(path):
    assert not {"pickle", "cloudpickle", "dill", "joblib", "shelve"} & set(imported_packages(path))
    calls = [
        node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)
    ]
    assert not [call.lineno for call in calls if ast.unparse(call.func) in ("eval", "exec")]


class TestTheRulesThemselves:
    """Each rule must see a violation when there is one."""

    def parse(self, text):
        return ast.parse(text).body[0]

    def test_function_length_leaves_out_the_docstring(self):
        text = 'def f():\n    """One.\n\n    Two.\n    """\n    a = 1\n    return a\n'
        assert lines_without_docstring(self.parse(text)) == 3

    def test_a_command_is_told_by_its_options(self):
        assert is_command(self.parse("def f(a: Annotated[int, typer.Option()], b: JsonOption = 1): ..."))
        assert not is_command(self.parse("def f(a: Annotated[int, typer.Option()], b: int): ..."))

    def test_parameters_of_every_kind_count(self):
        assert len(parameters(self.parse("def f(self, a, /, b, *c, d=1, **e): ..."))) == 5

    @pytest.mark.parametrize(
        "kind", ["", " Exception", " (ValueError, Exception)", " BaseException as error"]
    )
    def test_broad_handlers_are_seen(self, kind):
        assert catches_everything(self.parse(f"try:\n    f()\nexcept{kind}:\n    pass\n").handlers[0])

    @pytest.mark.parametrize(
        "handler", ["except (ValueError, OSError):\n    pass", "except BaseException:\n    undo()\n    raise"]
    )
    def test_narrow_and_reraising_handlers_pass(self, handler):
        text = f"try:\n    f()\n{handler}\n"
        assert not catches_everything(self.parse(text).handlers[0])


@pytest.mark.parametrize(
    "command", [("ruff", "check", "."), ("ruff", "format", "--check", "."), ("lint-imports",)], ids=" ".join
)
def test_linters(command):
    tool = Path(sys.executable).parent / command[0]
    if not tool.exists():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{tool} is not installed; CI must run it")
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run([tool, *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
