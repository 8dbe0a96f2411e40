"""A run that is killed, fills the disk or loses its console resumes to the same bits."""

import dataclasses
import functools
import io
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import data
import plumbing
import train
from plumbing import UserError, encoders
from plumbing.runs import RunFolder

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs fork and SIGKILL")


def quick(folder: Path | str = "runs", **chosen) -> train.Config:
    settings = {"device": "cpu", "epochs": 3, "batch_size": 30, "d": 8, "lstm_width": 4}
    return train.Config(**{"dataset": "synthetic", "runs": str(folder), **settings, **chosen})


@pytest.fixture(autouse=True, scope="module")
def small_corpus():
    """60 segments in each split, generated once: no test changes them; a BERT without dropout."""
    corpus = data.synthetic()
    corpus.fingerprint = "of its content"
    for name, split in corpus.splits.items():
        part = {key: values[:60] for key, values in split.part.items()}
        corpus.splits[name] = data.Split(part)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "synthetic", lambda: corpus)
        off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        bert = functools.partial(encoders.transformers.BertConfig, **off)
        patch.setattr(encoders.transformers, "BertConfig", bert)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    train.train(quick(folder, name="whole"))
    return folder / "whole"


def stop(config: train.Config, epoch: int, **parts) -> None:
    """Train, and fail when the checkpoint of this epoch is saved."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(train, "epoch_line", lambda entry, **_: 1 // (epoch - entry["epoch"]))
        train.train(config, **parts)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """The folder of a run that stopped after two epochs of three. Tests leave it as it is."""
    folder = tmp_path_factory.mktemp("stopped")
    stop(quick(folder, name="run"), epoch=1)
    return folder / "run"


@pytest.fixture
def copy(stopped, tmp_path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "run"))


def resume(folder: Path, *changes: str) -> int:
    return plumbing.run(train.main, ["--resume", str(folder), *changes])


def logged(folder: Path) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{**json.loads(line), "seconds": 0} for line in lines]


def assert_same(folder: Path, whole: Path) -> None:
    """The same bits of weights and results; each epoch once in the log; nothing left behind."""
    names = [sorted(path.name for path in each.iterdir()) for each in (folder, whole)]
    assert names[0] == names[1] and "checkpoint.pt" not in names[1]
    for name in ("model.safetensors", "results.json"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    assert logged(folder) == logged(whole)
    assert [entry["epoch"] for entry in logged(folder)] == [0, 1, 2]


def killed_run(folder: Path, name: str, number: int) -> None:
    """Train in a process that gets SIGKILL before it renames a file to `name` for the nth time."""
    rename, count = Path.replace, itertools.count(1)

    def replace(path: Path, target: Path) -> None:
        if target.name == name and next(count) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(path, target)

    def child() -> None:
        Path.replace = replace
        train.train(quick(folder, name="killed"))

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


MOMENTS = [(name, n) for name in ("metrics.jsonl", "checkpoint.pt") for n in (1, 2, 3)]
MOMENTS += [(name, 1) for name in ("standardizer.json", "model.safetensors", "results.json")]


@needs_linux
@pytest.mark.parametrize("name, number", MOMENTS)
def test_a_killed_run_resumes_to_the_same_bits(name, number, whole, tmp_path, monkeypatch):
    killed_run(tmp_path, name, number)
    if name == "results.json":  # the checkpoint still exists, with every epoch in it
        monkeypatch.setattr(train, "train_epoch", None)
    assert resume(tmp_path / "killed") == 0
    assert_same(tmp_path / "killed", whole)


def test_a_full_disk_leaves_the_last_checkpoint(stopped, whole, copy, monkeypatch, capsys):
    def full(state: dict, path: Path) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("file write failed")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        assert resume(copy) == 2
    assert "checkpoint.pt cannot be written; the old one was kept" in capsys.readouterr().err
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
    assert len(logged(copy)) == 4 and logged(copy)[:3] == logged(whole)
    assert resume(copy, *argv) == 2 and "is finished" in capsys.readouterr().err


class Code:
    """Ends the process where it is loaded."""

    def __reduce__(self) -> tuple:
        return sys.exit, (9,)


def edited(change: Callable[[dict], object]) -> Callable[[bytes], bytes]:
    """A function that changes the content of a checkpoint."""

    def damage(content: bytes) -> bytes:
        state, buffer = torch.load(io.BytesIO(content)), io.BytesIO()
        change(state)
        torch.save(state, buffer)
        return buffer.getvalue()

    return damage


def flip_a_bit(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


CHECKPOINT = "is damaged, or of another model"
DAMAGES = [  # file, change of its content, what the error says
    ("checkpoint.pt", lambda content: b"", CHECKPOINT),
    ("checkpoint.pt", lambda content: content[:-9], CHECKPOINT),
    ("checkpoint.pt", flip_a_bit, "the checksum of"),
    ("checkpoint.pt", edited(lambda state: state.clear()), CHECKPOINT),
    ("checkpoint.pt", edited(lambda state: state["model"].popitem()), CHECKPOINT),
    ("checkpoint.pt", edited(lambda state: state["progress"].update(data=Code())), CHECKPOINT),
    ("model.safetensors", lambda content: b"", "missing or damaged"),
    ("model.safetensors", lambda content: content[:-9], "missing or damaged"),
    ("model.safetensors", lambda content: content.replace(b"dense", b"dance"), "another model"),
    ("config.json", lambda content: content[:-9], "is not the folder of a run"),
    ("config.json", lambda content: b"[]", "is not the folder of a run"),
    ("config.json", lambda content: b'{"unknown": 1}', "is not the folder of a run"),
    ("config.json", lambda content: b'{"d": "8"}', "--d must be int"),
    *((name, None, "no such file, or not a regular") for name in ("config.json", "checkpoint.pt")),
]


@pytest.mark.parametrize("name, damage, says", DAMAGES)
def test_a_damaged_file_is_one_sentence(name, damage, says, copy, capsys, monkeypatch):
    monkeypatch.setattr(train, "train_epoch", lambda *_: {"total": 0.0})  # no better weights come
    monkeypatch.setattr(train, "metrics", lambda *_: {"mae": 9.0, "corr": 0.0})
    content = (copy / name).read_bytes()
    (copy / name).unlink()
    if damage:
        (copy / name).write_bytes(damage(content))
    elif hasattr(os, "mkfifo"):
        os.mkfifo(copy / name)  # a pipe, which could hang
    else:
        pytest.skip("this system has no pipes")
    assert resume(copy) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1 and says in message


def test_weights_that_share_memory_are_saved(tmp_path):
    """As those of an LSTM on a GPU, which are parts of one tensor, and tied weights do."""

    def model() -> nn.ModuleList:
        layers, both = nn.ModuleList(nn.Linear(3, 3, bias=False) for _ in range(3)), torch.randn(18)
        layers[0].weight.data, layers[1].weight.data = both.view(2, 3, 3)
        layers[2].weight = layers[1].weight
        return layers

    saved, loaded, folder = model(), model(), RunFolder(tmp_path)
    folder.keep_weights(saved)
    folder.load_weights(loaded)
    assert all(map(torch.equal, saved.parameters(), loaded.parameters()))


def test_names_and_modes(whole, tmp_path):
    assert RunFolder.create(tmp_path, "one", "default").path == tmp_path / "one"
    with pytest.raises(UserError, match="one exists already; choose another --name"):
        RunFolder.create(tmp_path, "one", "default")
    with pytest.raises(UserError, match="cannot be created"):
        RunFolder.create(tmp_path, "\0", "default")
    made = [RunFolder.create(tmp_path, None, "default").path.name for _ in range(3)]
    assert made == ["default", "default-2", "default-3"]
    assert len({path.stat().st_mode for path in whole.glob("*.*")}) == 1
