"""A run that is killed, fills the disk or loses its console resumes to the same bits."""

import dataclasses
import io
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import stat
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import data
import plumbing
import train
from plumbing import UserError, encoders, runs
from plumbing.runs import RunFolder

LINUX = hasattr(os, "fork") and hasattr(os, "mkfifo") and hasattr(signal, "SIGKILL")
needs_linux = pytest.mark.skipif(
    not LINUX or sys.platform == "darwin", reason="needs fork, mkfifo and SIGKILL as on Linux"
)
# Python 3.12 warns of a fork beside other threads; here those are tqdm's, which hold no lock.
forks = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
QUICK = {"dataset": "synthetic", "device": "cpu", "epochs": 3}
QUICK |= {"batch_size": 30, "d": 8, "lstm_width": 4}


def quick(folder: Path, **chosen) -> train.Config:
    return train.Config(**{**QUICK, "runs": str(folder), **chosen})


@pytest.fixture(autouse=True, scope="module")
def small_corpus():
    """60 segments in each split, and a narrower BERT."""
    small, bert = data.synthetic(), encoders.BertConfig
    small.fingerprint = "of its content"
    for split in small.splits.values():
        split.__init__({key: values[:60] for key, values in split.part.items()})
    sizes = {"hidden_size": 16, "intermediate_size": 16}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "synthetic", lambda: small)
        patch.setattr(encoders, "BertConfig", lambda **given: bert(**{**given, **sizes}))
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    train.train(quick(folder, name="whole"))
    return folder / "whole"


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """The folder of a run that stopped after two epochs of three. Tests leave it as it is."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "epoch_line", lambda entry, **_: 1 // (1 - entry["epoch"]))
        with pytest.raises(ZeroDivisionError):
            train.train(quick(folder, name="run"))
    return folder / "run"


@pytest.fixture
def copy(stopped, tmp_path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "run"))


def resume(folder: Path, *changes: str) -> int:
    return plumbing.run(train.main, ["--resume", str(folder), *changes])


def assert_same(folder: Path, whole: Path) -> None:
    """The same bits of weights and results; each epoch once in the log; nothing left behind."""
    names = [{p.name for p in each.iterdir() if p.suffix != ".tmp"} for each in (folder, whole)]
    assert names[0] == names[1] and "checkpoint.pt" not in names[1]  # .tmp: SIGKILL leaves it
    for name in ("model.safetensors", "results.json"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    logs = [(f / "metrics.jsonl").read_text().splitlines() for f in (folder, whole)]
    entries = [[{**json.loads(line), "seconds": 0} for line in log] for log in logs]
    assert entries[0] == entries[1] and [e["epoch"] for e in entries[0]] == [0, 1, 2]


def killed_run(folder: Path, name: str, number: int, calls: int = 0) -> None:
    """Train in a process that gets SIGKILL where a file, written, would be renamed to `name` for
    the number-th time, or `calls` function calls later.
    """
    rename, left = runs.Path.replace, iter(range(calls))

    def count(*_) -> None:
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    def replace(path: Path, target: Path) -> None:
        nonlocal number
        number -= target.name == name
        if number == 0 and calls == 0:
            count()
        rename(path, target)
        if number == 0:
            sys.setprofile(count)

    def child() -> None:
        runs.Path.replace = replace
        train.train(quick(folder, name="killed"))

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


MOMENTS = [(name, n) for n in (1, 2) for name in ("metrics.jsonl", "checkpoint.pt")]
MOMENTS += [("checkpoint.pt", 3), ("model.safetensors", 1), ("results.json", 1)]
MOMENTS += [("config.json", 1, random.Random(seed).randrange(20_000)) for seed in range(2)]


@forks
@needs_linux
@pytest.mark.parametrize("moment", MOMENTS, ids=str)
def test_a_killed_run_resumes_to_the_same_bits(moment, whole, tmp_path, monkeypatch):
    killed_run(tmp_path, *moment)
    if moment[0] == "results.json":  # the checkpoint still exists, with every epoch in it
        monkeypatch.setattr(train, "train_epoch", None)
    assert resume(tmp_path / "killed") == 0
    assert_same(tmp_path / "killed", whole)


FULL = OSError(28, "No space left on device"), RuntimeError("file write failed")


@pytest.mark.parametrize("error", FULL)
def test_a_full_disk_leaves_the_last_checkpoint(error, stopped, whole, copy, monkeypatch):
    def full(state, path):
        path.write_bytes(b"half")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(UserError, match=rf"checkpoint.pt cannot be written.*{error.args[-1]}"):
            train.main(["--resume", str(copy)])
    assert not list(copy.glob("*.tmp"))
    assert (copy / "checkpoint.pt").read_bytes() == (stopped / "checkpoint.pt").read_bytes()
    assert resume(copy) == 0
    assert_same(copy, whole)


def test_a_run_resumes_elsewhere(whole, copy, monkeypatch, capsys):
    """On another device, as the error advises, with a moved file, for more epochs.

    The changes are recorded, unless they fail.
    """

    def load(dataset: str, path: str | None, labels: str | None) -> data.Corpus:
        corpus = dataclasses.replace(data.synthetic(), path=path)
        corpus.fingerprint = "another" if path == "other" else corpus.fingerprint
        return corpus

    monkeypatch.setattr(data, "load", load)
    saved = json.loads((copy / "config.json").read_text()) | {"device": "cuda:77"}
    (copy / "config.json").write_text(json.dumps(saved))
    for changes, message in {
        "": "use --device cpu",
        "--device cpu --epochs 0": "--epochs must be at least 1",
        "--device cpu --data other": "started with another data file: pass it to --data",
    }.items():
        assert resume(copy, *changes.split()) == 2 and message in capsys.readouterr().err
    assert json.loads((copy / "config.json").read_text()) == saved
    changes = {"device": "cpu", "data": "moved", "epochs": 4, "patience": 9}
    argv = [f"--{name}={value}" for name, value in changes.items()]
    assert resume(copy, *argv) == 0
    assert json.loads((copy / "config.json").read_text()) == saved | changes
    logs = [(f / "metrics.jsonl").read_text().splitlines() for f in (copy, whole)]
    assert len(logs[0]) == 4 and json.loads(logs[0][2])["valid"] == json.loads(logs[1][2])["valid"]
    assert resume(copy, *argv) == 2 and "is finished" in capsys.readouterr().err


def rejected(folder: Path, name: str, content: bytes, capsys) -> str:
    """With other bytes in a file: one sentence, code 2, no traceback. Then the folder as it was."""
    before = {path: path.read_bytes() for path in folder.glob("*.*")}
    (folder / name).write_bytes(content)
    code, message = resume(folder), capsys.readouterr().err
    for path in folder.glob("*.*"):
        path.write_bytes(before[path]) if path in before else path.unlink()
    assert (code, message[:7], message.count("\n")) == (2, "error: ", 1), message
    return message


CUTS = (lambda b: b"", lambda b: b[:-9], lambda b: b[: len(b) // 2], lambda b: b"\xff" * 99)


@pytest.mark.parametrize("name", ["checkpoint.pt", "model.safetensors", "config.json"])
def test_a_damaged_file_is_rejected(name, stopped, capsys, monkeypatch):
    monkeypatch.setattr(train, "train_epoch", lambda *_: {"total": 0.0})  # no better weights come
    monkeypatch.setattr(train, "metrics", lambda *_: {"mae": 9.0, "corr": 0.0})
    for damaged in CUTS:
        message = rejected(stopped, name, damaged((stopped / name).read_bytes()), capsys)
        assert "damaged" in message or "is not the folder of a run" in message


def moments(state: dict) -> torch.Tensor:
    return state["optimizer"][0]["exp_avg"]


class Code:
    """Ends the process where it is loaded."""

    def __reduce__(self) -> tuple:
        return sys.exit, (9,)


EDITS = {  # of a checkpoint's content
    "another model": lambda s: s["model"].popitem(),
    "other shapes": lambda s: s["model"].update({k: v[None] for k, v in s["model"].items()}),
    "integers": lambda s: s["model"].update({k: v.int() for k, v in s["model"].items()}),
    "one moment": lambda s: s["optimizer"][0].update(exp_avg=moments(s).sum()),
    "one for all": lambda s: s["optimizer"][0].update(exp_avg=moments(s)[:1].expand_as(moments(s))),
    "another optimizer": lambda s: s["optimizer"][0].update(square_avg=torch.zeros(())),
    "no step": lambda s: s["optimizer"][0].pop("step"),
    "one parameter more": lambda s: s["optimizer"].update({999: s["optimizer"][0]}),
    "an epoch of text": lambda s: s["progress"].update(epoch="1"),
    "a best of text": lambda s: s["progress"]["best"]["valid"].update(mae="0.5"),
    "code": lambda s: s["progress"].update(data=Code()),
    "nothing": lambda s: s.clear(),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_an_edited_checkpoint_is_rejected(edit, stopped, capsys):
    """Moments of another shape would crash the process inside the fused optimizer."""
    state, buffer = torch.load(stopped / "checkpoint.pt"), io.BytesIO()
    edit(state)
    torch.save(state, buffer)
    message = rejected(stopped, "checkpoint.pt", buffer.getvalue(), capsys)
    assert "is damaged, or of another model, optimizer or data" in message


def test_one_flipped_bit_in_a_checkpoint_is_noticed(stopped, capsys):
    content = bytearray((stopped / "checkpoint.pt").read_bytes())
    weight = torch.load(stopped / "checkpoint.pt")["model"]["predictor.0.weight"]
    content[content.index(weight.numpy().tobytes())] ^= 4
    message = rejected(stopped, "checkpoint.pt", bytes(content), capsys)
    assert "the checksum of" in message


def test_a_damaged_log_does_not_stop_a_run(copy):
    path = copy / "metrics.jsonl"
    path.write_bytes(b"\xff" + path.read_bytes())
    assert resume(copy) == 0
    assert path.read_bytes()[1:].count(b"\n") == 3 and path.read_bytes()[0] == 255


@needs_linux
@pytest.mark.parametrize("name", ["config.json", "checkpoint.pt", "metrics.jsonl"])
def test_a_pipe_in_a_run_is_not_opened(name, copy, capsys):
    (copy / name).unlink()
    os.mkfifo(copy / name)
    assert resume(copy) == 2
    assert f"{name} cannot be read: no such file, or not a regular" in capsys.readouterr().err


def test_a_configuration_with_other_types_is_rejected(stopped, capsys):
    config = json.loads((stopped / "config.json").read_text())
    for name, value in zip(config, itertools.cycle([[1], {"a": 1}, True]), strict=False):
        if type(value) is not type(config[name]):
            content = json.dumps({**config, name: value}).encode()
            message = rejected(stopped, "config.json", content, capsys)
            assert f"--{name.replace('_', '-')} must be" in message
    rejected(stopped, "config.json", b'{"unknown": 1}', capsys)


PLAIN = ("Adafactor", "Adagrad", "Adadelta", "Adamax", "ASGD", "NAdam", "RAdam", "Rprop")
OPTIMIZERS = {name: {} for name in PLAIN} | {
    "Adam": {"fused": True},
    "AdamW": {"amsgrad": True},
    "SGD": {"momentum": 0.9},
    "RMSprop": {"momentum": 0.9, "centered": True},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_resumes_with_any_optimizer(name, tmp_path):
    """Two steps, a checkpoint and two steps are four steps; other state is rejected."""

    def small(name: str) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
        model.append(nn.Linear(2, 7))  # gets no gradient
        return model, getattr(torch.optim, name)(model.parameters(), lr=0.1, **OPTIMIZERS[name])

    def step(model: nn.Sequential, optimizer: torch.optim.Optimizer, number: int) -> None:
        torch.manual_seed(number)
        optimizer.zero_grad()
        model[:2](torch.randn(4, 3)).square().sum().backward()
        optimizer.step()

    whole, resumed, other = small(name), small(name), small("Adam" if name == "SGD" else "SGD")
    folder, start, progress = RunFolder(tmp_path), *({"epoch": n, "data": None} for n in (0, 2))
    for number in range(4):
        step(*whole, number)
        if number == 1:
            folder.save_checkpoint(*whole, progress)
    assert folder.load_checkpoint(*resumed, start) == progress
    for number in (2, 3):
        step(*resumed, number)
    assert all(map(torch.equal, whole[0].parameters(), resumed[0].parameters()))
    with pytest.raises(UserError, match="of another model, optimizer or data"):
        folder.load_checkpoint(*other, start)


def test_tied_weights_are_saved_once(tmp_path):
    def model(tied: bool) -> nn.ModuleList:
        layers = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
        if tied:
            layers[1].weight = layers[0].weight
        return layers

    saved, loaded, folder = model(tied=True), model(tied=True), RunFolder(tmp_path)
    folder.keep_weights(saved)
    folder.load_weights(loaded)
    assert all(map(torch.equal, saved.parameters(), loaded.parameters()))
    assert loaded[1].weight is loaded[0].weight
    with pytest.raises(UserError, match=r"of another model: 1\.weight is missing"):
        folder.load_weights(model(tied=False))


def test_names_and_modes(whole, tmp_path):
    assert RunFolder.create(tmp_path, "one", "default").path == tmp_path / "one"
    with pytest.raises(UserError, match="one exists already; choose another --name"):
        RunFolder.create(tmp_path, "one", "default")
    made = [RunFolder.create(tmp_path, None, "default").path.name for _ in range(3)]
    assert made == ["default", "default-2", "default-3"]
    if os.name != "nt":
        umask = os.umask(0)
        os.umask(umask)
        mode = stat.S_IMODE((whole / "model.safetensors").stat().st_mode)
        assert mode == 0o666 & ~umask
