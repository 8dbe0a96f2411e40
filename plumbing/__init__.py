"""What a run needs and no equation does: files, folders, processes. It knows nothing of MSFN.

Nothing in this folder imports a file of the top level.
"""

import os
import sys
from contextlib import contextmanager, suppress

import torch


class UserError(Exception):
    """Something that the user can mend, said in one clear sentence; exit code 2."""


def first_line(error: BaseException) -> str:
    """What an exception says, for a sentence: its first line, at most 200 printable characters."""
    lines = str(error).strip().splitlines() or [""]
    return printable(lines[0]) or type(error).__name__


def printable(text: str) -> str:
    """At most 200 characters of what a file or a library says, none of which moves a cursor."""
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[:201])
    return shown if len(shown) < 201 else f"{shown[:199]}…"


@contextmanager
def explained(what: str):
    """An exception of whatever class, in which a library says no, as a UserError: "what: why"."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        raise UserError(f"{what}: {first_line(error)}") from error


def run(main, *arguments) -> int:
    """main(*arguments) -> the exit code: 0; 2 for what the user can mend; 130 after Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a console that cannot print α prints ?
    try:
        main(*arguments)
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except torch.OutOfMemoryError:
        print("error: out of GPU memory: try --amp bf16 or a smaller --batch-size", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; train.py --resume RUN goes on after a run's last epoch", file=sys.stderr)
        return 130
    except OSError as error:  # `| head` and `> /dev/full`: nobody hears what is printed
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            print(f"error: {first_line(error)}", file=sys.stderr)
        return 2
    return 0
