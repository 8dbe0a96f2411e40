"""A dataclass as a command line: its fields' types are the legal values, wherever they come from."""

import argparse
from dataclasses import field
from typing import Literal, get_args, get_origin, get_type_hints

from transformers import HfArgumentParser

from plumbing import UserError, printable


def option(default, help: str):
    """A dataclass field that carries its help text to the command line."""
    return field(default=default, metadata={"help": help})


def check(config):
    """Each field has the type, or is one of the literals, that it says; no number is NaN or huge.

    What is typed and what is read back from a file meet the same test. Raises UserError.
    """
    for name, kind in get_type_hints(type(config)).items():
        value, allowed = getattr(config, name), get_args(kind) or (kind,)
        if get_origin(kind) is Literal:
            legal = value in allowed
        else:
            legal = type(value) in allowed or (float in allowed and type(value) is int)
        names = ", ".join(getattr(each, "__name__", str(each)) for each in allowed)
        if not legal:
            raise refusal(name, value, f"of {names}")
        demand(config, name, lambda v: v != "", "some text")  # an unset variable of the shell
        if type(value) in (int, float):
            demand(config, name, lambda n: abs(n) < 2**31, "a number below 2**31")  # NaN is not


def demand(config, name: str, holds, what: str):
    """Raises UserError unless holds(the field's value), or the value is None."""
    value = getattr(config, name)
    if value is not None and not holds(value):
        raise refusal(name, value, what)


def refusal(name: str, value, what: str) -> UserError:
    shown = printable(repr(value))
    return UserError(f"--{name.replace('_', '-')} must be {what}, not {shown}")


def parse(kind: type, presets: dict[str, dict], chosen_by: str, description: str, argv: list[str]):
    """What was typed, over the preset that `--chosen_by` names, over the fields' defaults.

    -> an instance of the dataclass `kind`, None; or None, RUN after `--resume RUN`, which stands
    alone. Exits with code 2 on a typo.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--resume", metavar="RUN", help="go on with a run; takes no other option")
    parser = HfArgumentParser(
        kind,
        parents=[first],
        allow_abbrev=False,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    resumed, others = first.parse_known_args(argv)
    if resumed.resume == []:  # what argparse makes of --resume=--
        parser.error("--resume takes the folder of a run")
    if resumed.resume is not None and others and "-h" not in others and "--help" not in others:
        parser.error(f"--resume takes no other option, not {others[0]}")
    if resumed.resume is not None and not others:
        return None, resumed.resume
    first.add_argument(f"--{chosen_by}", default=parser.get_default(chosen_by))
    preset = getattr(first.parse_known_args(argv)[0], chosen_by)
    parser.set_defaults(**presets.get(preset, {}))
    typed = vars(parser.parse_args(argv))
    del typed["resume"]
    return kind(**typed), None
