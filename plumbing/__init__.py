"""What a run needs and no equation does: files, folders, processes. It knows nothing of MSFN.

Nothing in this folder imports a file of the top level.
"""

import os
import re
import sys
from contextlib import contextmanager, suppress
from pathlib import Path


class UserError(Exception):
    """Something that the user can mend, said in one clear sentence; exit code 2."""

    def __init__(self, sentence: str):
        super().__init__(printable(sentence, 1000))


def printable(text: str, limit: int = 200) -> str:
    """The start of what a file or a library says, without what moves a cursor."""
    text = text if len(text) <= limit else f"{text[: limit - 1]}…"
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def first_line(error: BaseException) -> str:
    """What an exception says, for a sentence."""
    lines = str(error).strip().splitlines() or [""]
    return printable(lines[0]) or type(error).__name__


@contextmanager
def explained(what: str):
    """An exception of whatever class, in which a library says no, as a UserError: "what: why"."""
    try:
        yield
    except (UserError, MemoryError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a tokeniser's panic, in Rust, is no Exception
        raise UserError(f"{what}: {first_line(error)}") from error


def regular(path) -> Path:
    """The path of a file, to be opened: a pipe would hang, a device would never end."""
    if not os.path.isfile(path):
        raise UserError(f"{path} cannot be read: no file is there, or none of the regular kind")
    return Path(path)


def run(main, *arguments) -> int:
    """main(*arguments) -> the exit code: 0; 2 for what the user can mend; 130 after Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a console that cannot print α prints ?
    try:
        main(*arguments)
        print(end="", flush=True)
    except UserError as error:
        return failed(f"error: {error}")
    except KeyboardInterrupt:
        return failed("stopped; train.py --resume RUN goes on after a run's last epoch", 130)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or re.search("out of memory|allocate memory", str(error)):
            return failed("error: out of memory: try a smaller --batch-size or --d, or --amp bf16")
        raise
    except OSError as error:  # `| head` and `> /dev/full`: nobody hears what is printed
        with suppress(OSError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return failed(f"error: {first_line(error)}")
    return 0


def failed(sentence: str, code: int = 2) -> int:
    with suppress(OSError):
        print(sentence, file=sys.stderr, flush=True)
    return code


def while_importing(kind, error, traceback):
    """Ctrl-C before `run` is reached: the libraries take seconds to load."""
    if issubclass(kind, KeyboardInterrupt):
        failed("stopped")
    else:
        sys.__excepthook__(kind, error, traceback)


sys.excepthook = while_importing
