"""What a user types: a mistake ends in one or two lines and exit code 2, and no run begins."""

import re
import sys
from dataclasses import fields

import pytest

import plumbing
import train

TYPOS = {  # argparse's own: two lines
    "--epoch 1": "unrecognized arguments: --epoch",
    "--test": "unrecognized arguments: --test",
    "--d x": "argument --d: invalid int value: 'x'",
    "--dataset x": "argument --dataset: invalid choice: 'x'",
    "--resume x --d 1": "--resume takes no other options than --device, --data, --labels, --ep",
}
VALUES = {
    "--name=": "--name must be some text",
    "--d 9999999999": "--d must be a number below 2**31",
    "--learning-rate nan": "--learning-rate must be a number below",
    "--bert-learning-rate -1": "--bert-learning-rate must be positive",
    "--alpha -1": "--alpha must be at least 0",
    "--epochs 0": "--epochs must be at least 1",
    "--modalities aw": "--modalities must be letters of avl, not 'aw'",
    "--dataset mosi --data missing.pkl": "missing.pkl",
    "--dataset synthetic --device cuda:77": "--device cuda:77 is unavailable",
    "--resume=": "is not the folder of a run",
    "--resume missing --epochs 9": "missing is not the folder of a run",
}


@pytest.mark.parametrize("argv, words", (TYPOS | VALUES).items())
def test_a_mistake_is_one_message(argv, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        sys.exit(plumbing.run(train.main, argv.split()))
    *usage, line = capsys.readouterr().err.splitlines()
    assert "error: " in line and words in line
    assert usage == ["usage: python train.py [options]; --help lists them"] * (argv in TYPOS)
    assert not list(tmp_path.iterdir())


def test_help_lists_each_option_once_with_its_defaults(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stop:
        train.parse(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert re.findall(r"^(\w+):\n", text, re.M) == ["data", "model", "losses", "training", "run"]
    entries = re.findall(r"^  (--\S+)(.*(?:\n {8}.*)*)", text, re.M)  # (flag, the rest)
    expected = {}
    for field in fields(train.Config):
        name = field.name.replace("_", "-")
        expected[f"--no-{name}" if field.default is True else f"--{name}"] = field.default
    assert entries[0][0] == "--dataset"
    assert sorted(flag for flag, _ in entries) == sorted([*expected, "--resume"])
    for flag, rest in entries:
        default = expected.get(flag)
        if default not in (None, True, False):
            assert f"(default: {default}" in " ".join(rest.split()), flag
    assert "(default: 128; mosei: 256; synthetic: 64)" in text


@pytest.mark.parametrize("name", [field.name for field in fields(train.Config)])
def test_a_value_of_another_type_is_rejected(name):
    """As a config.json can hold it that was edited."""
    for value in ([1], {"a": 1}, 7 if isinstance(getattr(train.Config, name), bool) else True):
        with pytest.raises(plumbing.UserError, match=f"--{name.replace('_', '-')} must be"):
            train.Config(**{name: value})
