"""A run that is killed, fills the disk or loses its console resumes to the same bits."""

import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import stat
import sys
from collections.abc import Callable
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
QUICK = {"dataset": "synthetic", "epochs": 3, "batch_size": 20, "d": 8, "lstm_width": 4}


def quick(folder: Path, **chosen) -> train.Config:
    return train.Config(**{**QUICK, "runs": str(folder), **chosen})


@pytest.fixture(autouse=True, scope="module")
def small_corpus():
    """60 segments in each split, and a narrower BERT."""
    small, bert = data.synthetic(), encoders.BertConfig
    small.fingerprint = "of its content"
    for split in small.splits.values():
        split.__init__({key: values[:60] for key, values in split.part.items()}, generated=True)
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
        patch.setattr(train, "epoch_line", lambda entry, _: 1 // (1 - entry["epoch"]))
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


# ── Killed ────────────────────────────────────────────────────────────────────────────────────────
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


@forks
@needs_linux
def test_a_run_killed_before_it_has_a_configuration_cannot_be_resumed(tmp_path, capsys):
    killed_run(tmp_path, "config.json", 1)
    assert resume(tmp_path / "killed") == 2
    assert "killed is not the folder of a run" in capsys.readouterr().err


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


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), FULL[0], None])
def test_a_console_that_cannot_print(error, whole, tmp_path, monkeypatch):
    """It ends the run after the epoch's checkpoint; an ASCII console prints ? for α."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    write = out.write

    def broken(text):
        if error and "α" in text:
            raise error
        return write(text)

    chosen = {**QUICK, "runs": tmp_path, "name": "run"}
    argv = [f"--{k.replace('_', '-')}={v}" for k, v in chosen.items()]
    with monkeypatch.context() as patch:
        out.write = broken
        patch.setattr(train, "epoch_line", lambda *_: "α")
        patch.setattr(sys, "stdout", out)
        assert plumbing.run(train.main, argv) == (2 if error else 0)
    if error:
        assert torch.load(tmp_path / "run" / "checkpoint.pt")["progress"]["epoch"] == 1
        assert resume(tmp_path / "run") == 0
    assert_same(tmp_path / "run", whole)


# ── Resumed elsewhere ─────────────────────────────────────────────────────────────────────────────
def test_a_run_resumes_on_another_device_as_the_error_advises(whole, copy, monkeypatch, capsys):
    """Its configuration says so from then on; a change that fails is not recorded."""
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "device": "cuda:77"}))
    assert resume(copy) == 2 and "use --device cpu" in capsys.readouterr().err
    assert resume(copy, "--device", "cpu", "--epochs", "0") == 2
    assert json.loads((copy / "config.json").read_text())["device"] == "cuda:77"
    with monkeypatch.context() as patch:
        patch.setattr(train, "train_epoch", lambda *_: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            resume(copy, "--device", "cpu")
    assert json.loads((copy / "config.json").read_text()) == config
    assert resume(copy) == 0
    assert_same(copy, whole)


def test_a_run_resumes_for_more_epochs_with_a_moved_file(copy, monkeypatch, capsys):
    def load(dataset, path, labels):
        small = data.synthetic()
        small.path, small.fingerprint = path, {"moved": "of its content"}.get(path, "another")
        return small

    monkeypatch.setattr(data, "load", load)
    changes = "--epochs", "5", "--patience", "9", "--data"
    assert resume(copy, *changes, "other") == 2
    assert "was started with another data file" in capsys.readouterr().err
    assert resume(copy, *changes, "moved") == 0
    assert len((copy / "metrics.jsonl").read_text().splitlines()) == 5
    config = json.loads((copy / "config.json").read_text())
    assert [config[name] for name in ("epochs", "patience", "data")] == [5, 9, "moved"]
    assert resume(copy, *changes, "moved") == 2 and "is finished" in capsys.readouterr().err
    assert resume(copy) == 0


# ── Read back ─────────────────────────────────────────────────────────────────────────────────────
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


def with_moments(change: Callable) -> Callable:
    """Change the first parameter's `exp_avg`, of (rows, columns)."""

    def edit(state: dict) -> None:
        moments = state["optimizer"][0]
        moments["exp_avg"] = change(moments["exp_avg"])

    return edit


EDITS = {  # of a checkpoint's content
    "another model": lambda s: s["model"].popitem(),
    "other shapes": lambda s: s["model"].update({k: v[None] for k, v in s["model"].items()}),
    "integers": lambda s: s["model"].update({k: v.int() for k, v in s["model"].items()}),
    "one moment": with_moments(lambda m: m[:1, :1]),
    "a scalar moment": with_moments(lambda m: m.sum()),
    "one number as every moment": with_moments(lambda m: m.sum().expand_as(m)),
    "moments that are no tensor": with_moments(lambda m: m.tolist()),
    "another optimizer": lambda s: s["optimizer"][0].update(square_avg=torch.zeros(())),
    "no step": lambda s: s["optimizer"][0].pop("step"),
    "one parameter more": lambda s: s["optimizer"].update({999: s["optimizer"][0]}),
    "an epoch of text": lambda s: s["progress"].update(epoch="1"),
    "no best": lambda s: s["progress"].update(best=None),
    "a best of text": lambda s: s["progress"]["best"]["valid"].update(mae="0.5"),
    "no progress": lambda s: s.update(progress={}),
    "an object": lambda s: s["progress"].update(data=Path()),  # loading it would run code
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


def test_a_run_resumes_with_its_own_data_alone(stopped, monkeypatch, capsys):
    monkeypatch.setattr(data.synthetic(), "fingerprint", "of another content")
    assert resume(stopped) == 2
    assert "was started with another data file: pass it to --data" in capsys.readouterr().err


def test_a_damaged_log_does_not_stop_a_run(copy):
    path = copy / "metrics.jsonl"
    path.write_bytes(b"\xff" + path.read_bytes())
    assert resume(copy) == 0
    assert path.read_bytes()[1:].count(b"\n") == 3 and path.read_bytes()[0] == 255


@needs_linux
def test_what_a_killed_run_left_is_replaced(copy, whole):
    os.mkfifo(copy / "checkpoint.pt.tmp")
    assert resume(copy) == 0
    assert_same(copy, whole)


@needs_linux
@pytest.mark.parametrize("name", ["config.json", "checkpoint.pt", "metrics.jsonl"])
def test_a_pipe_in_a_run_is_not_opened(name, copy, capsys):
    (copy / name).unlink()
    os.mkfifo(copy / name)
    assert resume(copy) == 2
    assert f"{name} cannot be read: no such file, or not a regular" in capsys.readouterr().err


def test_a_configuration_with_other_types_is_rejected(stopped, capsys):
    config, draw = json.loads((stopped / "config.json").read_text()), random.Random(0)
    for _ in range(20):
        name = draw.choice([key for key, value in config.items() if value is not None])
        kinds = [[1], {"a": 1}, ["x"]] + [1.5, None, True] * (type(config[name]) is int)
        kinds += ["x", None, True] * (type(config[name]) is float)
        content = json.dumps({**config, name: draw.choice(kinds)}).encode()
        message = rejected(stopped, "config.json", content, capsys)
        assert f"--{name.replace('_', '-')} must be" in message
    rejected(stopped, "config.json", b'{"unknown": 1}', capsys)


# ── RunFolder ─────────────────────────────────────────────────────────────────────────────────────
OPTIMIZERS = {
    "SGD": {"momentum": 0.9, "nesterov": True},
    "RMSprop": {"momentum": 0.9, "centered": True},
    "Adam": {"fused": True},
    "AdamW": {"amsgrad": True},
    **{name: {} for name in ("Adagrad", "Adadelta", "Adamax", "ASGD", "NAdam", "RAdam", "Rprop")},
    "Adafactor": {},
}


def small(name: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model, of which one layer gets no gradient, and its optimizer."""
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Linear(3, 5), nn.Linear(5, 2), nn.Linear(2, 7)])
    return model, getattr(torch.optim, name)(model.parameters(), lr=0.1, **OPTIMIZERS[name])


def step(model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    torch.manual_seed(number)
    optimizer.zero_grad()
    model[1](model[0](torch.randn(4, 3))).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_resumes_with_any_optimizer(name, tmp_path):
    """Two steps, a checkpoint and two steps are four steps; other state is rejected."""
    (model, optimizer), (resumed, its) = small(name), small(name)
    folder, progress = RunFolder(tmp_path), {"epoch": 2, "data": None}
    for number in range(4):
        step(model, optimizer, number)
        if number == 1:
            folder.save_checkpoint(model, optimizer, progress)
    assert folder.load_checkpoint(resumed, its, {"epoch": 0, "data": None}) == progress
    for number in (2, 3):
        step(resumed, its, number)
    assert all(map(torch.equal, model.parameters(), resumed.parameters()))
    foreign = small("Adam" if name == "SGD" else "SGD")
    with pytest.raises(UserError, match="of another model, optimizer or data"):
        folder.load_checkpoint(*foreign, {"epoch": 0, "data": None})


def test_tied_weights_are_saved_once(tmp_path):
    def tied() -> nn.Module:
        model = nn.ModuleDict({"encoder": nn.Linear(3, 3), "decoder": nn.Linear(3, 3)})
        model["decoder"].weight = model["encoder"].weight
        return model

    model, loaded, folder = tied(), tied(), RunFolder(tmp_path)
    folder.keep_weights(model)
    folder.load_weights(loaded)
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name])
    assert loaded["decoder"].weight is loaded["encoder"].weight
    untied = nn.ModuleDict({"encoder": nn.Linear(3, 3), "decoder": nn.Linear(3, 3)})
    with pytest.raises(UserError, match=r"of another model: decoder\.weight is missing"):
        folder.load_weights(untied)


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
