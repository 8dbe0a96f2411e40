"""A dataclass as a command line. Its annotations are the legal values, wherever a value comes from.

This is plain argparse: HfArgumentParser spells each flag twice, has no groups in --help, and does
not tell what was typed from what is a default.
"""

import argparse
import inspect
import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from plumbing import UserError, printable

RESUMABLE = ("device", "data", "labels", "epochs", "patience")  # what may change in a run


Ranges = dict[str, tuple[Callable[[Any], bool], str]]  # {what a value must be: (test, fields)}


def check(config: Any, ranges: Ranges) -> None:
    """Raise UserError unless each field has its annotated type and is in its range.

    No number may be NaN or huge; None is in every range.
    """
    for name, kind in get_type_hints(type(config)).items():
        value, allowed = getattr(config, name), get_args(kind) or (kind,)
        is_number = type(value) in (int, float)
        if get_origin(kind) is Literal:
            valid = value in allowed
        else:
            valid = type(value) in allowed or (float in allowed and is_number)
        names = " or ".join(getattr(each, "__name__", str(each)) for each in allowed)
        demand(valid, name, value, names)
        demand(value != "", name, value, "some text")  # an unset variable of the shell
        demand(not is_number or abs(value) < 2**31, name, value, "a number below 2**31")  # no NaN
    for what, (holds, names) in ranges.items():
        for name in names.split():
            value = getattr(config, name)
            demand(value is None or holds(value), name, value, what)


def demand(holds: bool, name: str, value: Any, what: str) -> None:
    if not holds:
        raise UserError(f"{flag(name)} must be {what}, not {printable(repr(value))}")


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


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
) -> dict[str, Any]:
    """What was typed, by field; "resume" is RUN of --resume. Exits with code 2 after a typo.

    kind: a dataclass. presets: what differs from its defaults, by name, for --help.
    groups: {group of --help: names of its fields}
    """
    # Nothing has a default here, so that `kind` can tell what was typed.
    parser = argparse.ArgumentParser(
        prog="python train.py",
        usage="%(prog)s [options]; --help lists them",
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
    if "resume" in typed and not typed.keys() <= {"resume", *RESUMABLE}:
        parser.error(f"--resume takes no other options than {changes}")
    return typed


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
