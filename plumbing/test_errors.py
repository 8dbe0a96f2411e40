"""What ends in one message and an exit code; a fault of ours keeps its traceback."""

import io
import sys

import pytest

import plumbing
from plumbing import UserError, explained


class Panic(BaseException):
    """As the fast tokenizers raise it: not an Exception."""


def ends(error: BaseException, capsys: pytest.CaptureFixture) -> tuple[int, str]:
    def main() -> None:
        raise error

    code, message = plumbing.run(main), capsys.readouterr().err
    assert message.endswith("\n") and all(map(str.isprintable, message[:-1].split("\n")))
    return code, message


def test_exit_codes(capsys):
    assert plumbing.run(lambda: None) == 0
    assert ends(UserError("half \ud83d, \x1b[2J\r"), capsys) == (2, "error: half �, �[2J�\n")
    assert ends(UserError("two\nlines"), capsys) == (2, "error: two\nlines\n")
    assert ends(UserError("x" * 9999 + "\n" * 99), capsys)[1].count("x") == 999
    assert ends(UserError("x\n" * 99), capsys)[1].count("x") == 6
    assert ends(KeyboardInterrupt(), capsys)[0] == 130
    for error in (MemoryError(), RuntimeError("can't allocate memory"), OSError(28, "full")):
        assert ends(error, capsys)[0] == 2
    with pytest.raises(RuntimeError, match="a fault"):
        ends(RuntimeError("a fault"), capsys)


def test_a_console_that_is_missing_or_ascii(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert plumbing.run(print, "α") == 0
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert plumbing.run(print, "α") == 0 and sys.stdout.buffer.getvalue() == b"?\n"


@pytest.mark.parametrize("error", [ValueError("why\nwhere"), Panic("why"), RecursionError("why")])
def test_an_exception_of_a_library_is_explained(error):
    with pytest.raises(UserError, match=r"^what: why$"), explained("what"):
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(2), MemoryError()])
def test_an_exception_that_is_no_fault_of_a_file_goes_through(error):
    with pytest.raises(type(error)), explained("what"):
        raise error
