"""A dataclass as a command line. Its annotations are the legal values, wherever a value comes from.

This is plain argparse: HfArgumentParser spells each flag twice, has no groups in --help, and does
not tell what was typed from what is a default.
"""

import argparse
import inspect
import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from plumbing import UserError, printable

RESUMABLE = ("device", "data", "labels", "epochs", "patience")  # what may change in a run


Ranges = dict[str, tuple[Callable[[Any], bool], str]]  # {what a value must be: (test, fields)}


def check(config: Any, ranges: Ranges) -> None:
    """Raise UserError unless each field has its annotated type and is in its range.

    No number may be NaN or huge; None is in every range.
    """
    for name, kind in get_type_hints(type(config)).items():
        value, allowed = getattr(config, name), get_args(kind) or (kind,)
        if get_origin(kind) is Literal:
            valid = value in allowed
        else:
            valid = type(value) in allowed or (float in allowed and type(value) is int)
        if not valid:
            names = " or ".join(getattr(each, "__name__", str(each)) for each in allowed)
            raise invalid(name, value, names)
        demand(config, name, lambda v: v != "", "some text")  # an unset variable of the shell
        if type(value) in (int, float):
            demand(config, name, lambda n: abs(n) < 2**31, "a number below 2**31")  # NaN is not
    for what, (holds, names) in ranges.items():
        for name in names.split():
            demand(config, name, holds, what)


def demand(config: Any, name: str, holds: Callable[[Any], bool], what: str) -> None:
    """Raise UserError unless the field is None or holds(its value)."""
    value = getattr(config, name)
    if value is not None and not holds(value):
        raise invalid(name, value, what)


def invalid(name: str, value: Any, what: str) -> UserError:
    return UserError(f"{flag(name)} must be {what}, not {printable(repr(value))}")


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


class Parser(argparse.ArgumentParser):
    """Raises UserError with two lines for a typo, instead of printing the usage and exiting."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}\n{self.prog} --help lists the options")


def comments(kind: type) -> dict[str, str]:
    """{field: the comment beside it in the source} of a dataclass and of those it extends."""
    source = "".join(inspect.getsource(each) for each in kind.__mro__ if is_dataclass(each))
    return dict(re.findall(r"^    (\w+): .*  # (.+)$", source, re.M))


def parse(
    kind: type,
    argv: list[str],
    description: str,
    presets: dict[str, dict[str, Any]],
    groups: dict[str, str],
) -> tuple[Any, str | None, dict[str, Any]]:
    """Parse a command line. Raises UserError for a typo.

    kind: a dataclass. presets: what differs from its defaults, by name, for --help.
    groups: {group of --help: names of its fields}
    -> (kind(**typed), None, {}), or (None, RUN, typed) after --resume RUN, beside which only
    RESUMABLE can be typed
    """
    # Nothing has a default here: `kind` must be able to tell what was typed.
    parser = Parser(
        prog="python train.py",
        usage="%(prog)s [options]",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        add_help=False,
    )
    hints, by_name = get_type_hints(kind), {each.name: each for each in fields(kind)}
    texts = comments(kind)
    for title, names in groups.items():
        group = parser.add_argument_group(title)
        for name in names.split():
            defaults = {"default": by_name[name].default}
            defaults |= {key: preset[name] for key, preset in presets.items() if name in preset}
            add(group, name, hints[name], defaults, texts[name].replace("%", "%%"))
    changes = ", ".join(map(flag, RESUMABLE))
    text = f"continue this run; of the other options it takes {changes}"
    group.add_argument("--resume", metavar="RUN", help=text)
    group.add_argument("-h", "--help", action="help", help="show this help and exit")
    typed = vars(parser.parse_args(argv))
    if "resume" not in typed:
        return kind(**typed), None, {}
    run = typed.pop("resume")
    if not typed.keys() <= set(RESUMABLE):
        parser.error(f"--resume takes no other options than {changes}")
    return None, run, typed


def add(
    group: argparse._ArgumentGroup, name: str, kind: Any, defaults: dict[str, Any], text: str
) -> None:
    """Add a field to a group of --help. defaults: "default" and those of presets that differ"""
    default = defaults["default"]
    if kind is bool:  # one flag, which changes the default
        typed = flag(f"no_{name}" if default else name)
        group.add_argument(typed, action="store_const", const=not default, dest=name, help=text)
        return
    if default is not None:  # otherwise the text says what happens
        text += f" ({'; '.join(f'{key}: {value}' for key, value in defaults.items())})"
    if get_origin(kind) is Literal:
        group.add_argument(flag(name), choices=get_args(kind), help=text)
    else:
        kind = (get_args(kind) or (kind,))[0]  # X of X | None
        group.add_argument(flag(name), type=kind, metavar=kind.__name__, help=text)
