"""What ends in one sentence and an exit code, and what is a fault of ours and keeps its traceback."""

import ast
import sys
from pathlib import Path

import pytest

import plumbing
import train
from plumbing import UserError, explained


class Panic(BaseException):
    """As a fast tokeniser raises it: no Exception."""


def ends(error, capsys):
    def main():
        raise error

    code, said = plumbing.run(main), capsys.readouterr().err
    assert said.count("\n") == 1 and said.strip().isprintable()
    return code, said


def test_exit_codes(capsys):
    assert plumbing.run(lambda: None) == 0
    assert ends(UserError("half \ud83d, \x1b[2J"), capsys) == (2, "error: half �, �[2J\n")
    assert ends(UserError("x" * 9999), capsys)[1].count("x") == 999
    assert ends(KeyboardInterrupt(), capsys)[0] == 130
    for error in (MemoryError(), RuntimeError("can't allocate memory"), OSError(28, "full")):
        assert ends(error, capsys)[0] == 2
    with pytest.raises(RuntimeError, match="a fault"):
        ends(RuntimeError("a fault"), capsys)


def test_without_a_console(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert plumbing.run(print, "α") == 0


@pytest.mark.parametrize("error", [ValueError("why\nwhere"), Panic("why"), RecursionError("why")])
def test_what_a_library_raises_is_explained(error):
    with pytest.raises(UserError, match="^what: why$"), explained("what"):
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(2), MemoryError()])
def test_what_is_no_fault_of_the_file_goes_through(error):
    with pytest.raises(type(error)), explained("what"):
        raise error


def test_interrupted_while_importing(capsys):
    """The hook is set by the first import of each command."""
    sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert capsys.readouterr().err == "stopped\n"
    for name in ("train.py", "data.py"):
        tree = ast.parse((Path(train.__file__).parent / name).read_text(encoding="utf-8"))
        first = next(line for line in tree.body if isinstance(line, ast.Import | ast.ImportFrom))
        assert [each.name for each in first.names] == ["plumbing"]


TYPOS = {
    "--epoch 1": "unrecognized",
    "--name=": "--name must be some text",
    "--d 9999999999": "2**31",
}
TYPOS |= {
    "--resume=": "no folder of a run",
    "--resume x --d 1": "no other option",
    "--resume=--": "folder of",
    "--d x": "--d",
}


@pytest.mark.parametrize("argv, words", TYPOS.items())
def test_what_is_mistyped_is_said(argv, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        code = plumbing.run(train.main, argv.split())
    except SystemExit as exit:
        code = exit.code
    said = capsys.readouterr().err
    assert code == 2 and words in said.splitlines()[-1] and not list(tmp_path.iterdir())
