"""Everything a run needs that is not in the paper: files, folders, options, devices, processes.

No module of this package imports a file of the top level.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

OUT_OF_MEMORY = "out of memory|allocate memory"  # in torch's RuntimeErrors


class UserError(Exception):
    """A mistake that the user can fix. The message has one to six lines; the exit code is 2."""

    def __init__(self, message: str):
        super().__init__("\n".join(printable(line, 1000) for line in message.split("\n")[:6]))


def printable(text: str, limit: int = 200) -> str:
    """The first characters of a foreign text; control characters are replaced."""
    text = text if len(text) <= limit else f"{text[: limit - 1]}…"
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or the name of its class."""
    lines = str(error).strip().splitlines() or [""]
    return printable(lines[0]) or type(error).__name__


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Raise UserError("what: why") for any exception of a library inside the block."""
    try:
        yield
    except (UserError, MemoryError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the Rust tokenizers is not an Exception
        raise UserError(f"{what}: {first_line(error)}") from error


def regular(path: str | Path) -> Path:
    """The path of a file to open. Raises UserError for a pipe or a device, which could hang."""
    if not os.path.isfile(path):
        raise UserError(f"{path} cannot be read: no such file, or not a regular file")
    return Path(path)


def run(main: Callable, *arguments: Any) -> int:
    """Call main(*arguments). Returns the exit code: 0, 2 after UserError, 130 after Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a console that cannot print α prints ?
    code = 2
    try:
        main(*arguments)
        print(end="", flush=True)
        return 0
    except UserError as error:
        message = f"error: {error}"
    except KeyboardInterrupt:
        message = "stopped; python train.py --resume RUN continues a run, the same command a sweep"
        code = 130
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not re.search(OUT_OF_MEMORY, str(error)):
            raise
        message = "error: out of memory: try a smaller --batch-size or --d, or --amp bf16"
    except OSError as error:  # `| head` closes stdout, `> /dev/full` cannot be written
        with suppress(OSError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        message = f"error: {first_line(error)}"
    with suppress(OSError):
        print(message, file=sys.stderr, flush=True)
    return code
