"""Experiments: what goes beyond the paper's model. README.md lists the modules and their results.

python -m experiments.tables --help
"""

import argparse


def parser(doc: str) -> argparse.ArgumentParser:
    """A command line whose help is the module's docstring."""
    formatter = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(description=doc, formatter_class=formatter, allow_abbrev=False)


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def split_options(argv: list[str]) -> tuple[list[str], list[str]]:
    """The words before `--`, and those after it, which are train.py's."""
    end = argv.index("--") if "--" in argv else len(argv)
    return argv[:end], argv[end + 1 :]
