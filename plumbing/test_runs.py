"""A run that is killed, that fills the disk or that loses its console goes on to the same bits."""

import io
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

import data
import plumbing
import train
from plumbing import UserError, encoders, runs
from plumbing.runs import RunFolder


def quick(folder, **typed):
    typed = {"epochs": 3, "d": 8, "lstm_width": 4, "device": "cpu", "runs": str(folder), **typed}
    return train.Config(dataset="synthetic", **{**train.PRESETS["synthetic"], **typed})


@pytest.fixture(autouse=True, scope="module")
def small_corpus():
    """60 segments of each split, and a narrower BERT."""
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
def whole(tmp_path_factory):
    """The folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    train.train(quick(folder, name="whole"))
    return folder / "whole"


def assert_same(folder, whole):
    """The same bits of weights and results; each epoch once in the log; nothing left behind."""
    names = [{p.name for p in each.iterdir() if p.suffix != ".tmp"} for each in (folder, whole)]
    assert names[0] == names[1] and "checkpoint.pt" not in names[1]  # .tmp: SIGKILL leaves it
    for name in ("model.safetensors", "results.json"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    logs = [(f / "metrics.jsonl").read_text().splitlines() for f in (folder, whole)]
    entries = [[{**json.loads(line), "seconds": 0} for line in log] for log in logs]
    assert entries[0] == entries[1] and [e["epoch"] for e in entries[0]] == [0, 1, 2]


def resume(folder):
    return plumbing.run(train.main, ["--resume", str(folder)])


# After bert, standardizer and config, an epoch's files: log, weights if it is the best, checkpoint.
@pytest.mark.parametrize("number", [3, 4, 5, 6, 8, 11, 12, None])
def test_a_killed_run_resumes_to_the_same_bits(number, whole, tmp_path, monkeypatch):
    """SIGKILL where a file, written, would be renamed to its own name; None: at a random moment."""

    def child():
        rename, count = runs.Path.replace, iter(range(99))

        def replace(path, target):
            if next(count) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(path, target)

        runs.Path.replace = replace
        train.train(quick(tmp_path, name="killed"))

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60 if number else random.uniform(0.15, 0.5))
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL or number is None
    if number == 12:  # results.json: the checkpoint must still be there, with every epoch in it
        monkeypatch.setattr(train, "train_epoch", None)
    if (tmp_path / "killed" / "config.json").exists():
        assert resume(tmp_path / "killed") == 0
        assert_same(tmp_path / "killed", whole)


def test_averaged_weights_resume_to_the_same_bits(tmp_path, monkeypatch):
    """The mean of the weights goes on where it stopped; the run itself does not see it."""
    train.train(quick(tmp_path, name="whole", average=0.9))
    train.train(quick(tmp_path, name="plain"))
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(train, "epoch_line", lambda *_: 1 // 0)
        train.train(quick(tmp_path, name="stopped", average=0.9))
    assert resume(tmp_path / "stopped") == 0
    assert_same(tmp_path / "stopped", tmp_path / "whole")
    both = [tmp_path / name for name in ("whole", "plain")]
    weights = [(folder / "model.safetensors").read_bytes() for folder in both]
    logs = [(folder / "metrics.jsonl").read_text().splitlines() for folder in both]
    losses = [[json.loads(line)["train"] for line in log] for log in logs]
    assert weights[0] != weights[1] and losses[0] == losses[1]


FULL = OSError(28, "No space left on device"), RuntimeError("file write failed")


@pytest.mark.parametrize("error", FULL)
def test_a_full_disk_leaves_the_last_checkpoint(error, stopped, whole, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(stopped, tmp_path / "full"))

    def full(state, path):
        path.write_bytes(b"half")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(UserError, match=f"checkpoint.pt cannot be written.*{error.args[-1]}"):
            train.main(["--resume", str(folder)])
    assert not list(folder.glob("*.tmp"))
    assert (folder / "checkpoint.pt").read_bytes() == (stopped / "checkpoint.pt").read_bytes()
    assert resume(folder) == 0
    assert_same(folder, whole)


@pytest.fixture(scope="module")
def stopped(whole, tmp_path_factory):
    """A run that is stopped after two epochs of three."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "epoch_line", lambda config, entry: 1 // (1 - entry["epoch"]))
        with pytest.raises(ZeroDivisionError):
            train.train(quick(folder, name="run"))
    return folder / "run"


def refused(folder, name, content, capsys):
    """With other bytes in a file: one sentence, code 2, no traceback. Then the folder as it was."""
    kept = {path: path.read_bytes() for path in folder.glob("*.*")}
    (folder / name).write_bytes(content)
    code, said = resume(folder), capsys.readouterr().err
    for path in folder.glob("*.*"):
        path.write_bytes(kept[path]) if path in kept else path.unlink()
    assert (code, said[:7], said.count("\n")) == (2, "error: ", 1), said
    return said


CUTS = (lambda b: b"", lambda b: b[:-9], lambda b: b[: len(b) // 2], lambda b: b"\xff" * 99)


@pytest.mark.parametrize("name", ["checkpoint.pt", "model.safetensors", "config.json"])
def test_a_damaged_file_is_refused(name, stopped, capsys, monkeypatch):
    monkeypatch.setattr(train, "train_epoch", lambda *_: {"total": 0.0})  # no better weights come
    monkeypatch.setattr(train, "metrics", lambda *_: {"mae": 9.0, "corr": 0.0})
    for damaged in CUTS:
        said = refused(stopped, name, damaged((stopped / name).read_bytes()), capsys)
        assert "damaged" in said or "is no folder of a run" in said


def without_step(state):
    del state["optimizer"][0]["step"]


def flipped(content):
    """One byte of the tensors' own: the sum of its part of the archive is no longer right."""
    spot = content.index(b"data/3") + 1000
    return content[:spot] + bytes([content[spot] ^ 4]) + content[spot + 1 :]


EDITS = {  # of a checkpoint's content
    "another model's": lambda s: s["model"].popitem(),
    "other weights": lambda s: s["model"].update({k: v[None] for k, v in s["model"].items()}),
    "whole numbers": lambda s: s["model"].update({k: v.int() for k, v in s["model"].items()}),
    "one moment": lambda s: s["optimizer"][0].update(exp_avg_sq=torch.zeros(1)),
    "one number for all": lambda s: s["optimizer"][0].update(
        exp_avg=torch.zeros(()).expand_as(s["optimizer"][0]["exp_avg"])
    ),
    "no step": without_step,
    "an epoch of text": lambda s: s["progress"].update(epoch="1"),
    "no best": lambda s: s["progress"].update(best=None),
    "a best of text": lambda s: s["progress"]["best"]["valid"].update(mae="0.5"),
    "no progress": lambda s: s.update(progress={}),
    "an object": lambda s: s["progress"].update(data=Path()),  # to load it would run what it names
    "nothing": lambda s: s.clear(),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_an_edited_checkpoint_is_refused(edit, stopped, capsys):
    """Of moments in another shape the fused optimiser makes a crash of the process."""
    state, buffer = torch.load(stopped / "checkpoint.pt"), io.BytesIO()
    edit(state)
    torch.save(state, buffer)
    said = refused(stopped, "checkpoint.pt", buffer.getvalue(), capsys)
    assert "is damaged, or of another model or data" in said


def test_one_flipped_byte_in_a_checkpoint_is_noticed(stopped, capsys):
    content = flipped((stopped / "checkpoint.pt").read_bytes())
    assert "other bytes" in refused(stopped, "checkpoint.pt", content, capsys)


def test_a_run_goes_on_with_its_own_data_alone(stopped, monkeypatch, capsys):
    monkeypatch.setattr(data.synthetic(), "fingerprint", "of another content")
    assert resume(stopped) == 2
    assert "is no longer the file that" in capsys.readouterr().err


def test_a_damaged_log_does_not_stop_a_run(stopped, whole, tmp_path):
    folder = Path(shutil.copytree(stopped, tmp_path / "run"))
    path = folder / "metrics.jsonl"
    path.write_bytes(b"\xff" + path.read_bytes())
    assert resume(folder) == 0
    assert path.read_bytes()[1:].count(b"\n") == 3 and path.read_bytes()[0] == 255


def test_what_a_killed_run_left_is_replaced(stopped, whole, tmp_path):
    folder = Path(shutil.copytree(stopped, tmp_path / "run"))
    os.mkfifo(folder / "checkpoint.pt.tmp")
    assert resume(folder) == 0
    assert_same(folder, whole)


@pytest.mark.parametrize("name", ["config.json", "checkpoint.pt", "metrics.jsonl"])
def test_a_pipe_in_a_run_is_not_opened(name, stopped, tmp_path, capsys):
    folder = Path(shutil.copytree(stopped, tmp_path / "run"))
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert resume(folder) == 2
    assert f"{name} cannot be read: no file is there" in capsys.readouterr().err


def test_a_config_with_other_types_is_refused(stopped, capsys):
    config, draw = json.loads((stopped / "config.json").read_text()), random.Random(0)
    for _ in range(20):
        name = draw.choice([key for key, value in config.items() if value is not None])
        kinds = [[1], {"a": 1}, ["x"]] + [1.5, None, True] * (type(config[name]) is int)
        kinds += ["x", None, True] * (type(config[name]) is float)
        content = json.dumps({**config, name: draw.choice(kinds)}).encode()
        said = refused(stopped, "config.json", content, capsys)
        assert f"--{name.replace('_', '-')} must be" in said
    refused(stopped, "config.json", b'{"unknown": 1}', capsys)


def test_names_and_modes(whole, tmp_path, capsys):
    assert RunFolder.create(tmp_path, "one", "default").path == tmp_path / "one"
    with pytest.raises(UserError, match="one exists already; choose another --name"):
        RunFolder.create(tmp_path, "one", "default")
    made = [RunFolder.create(tmp_path, None, "default").path.name for _ in range(3)]
    assert made == ["default", "default-2", "default-3"]
    umask = os.umask(0)
    os.umask(umask)
    mode = stat.S_IMODE((whole / "model.safetensors").stat().st_mode)
    assert mode == 0o666 & ~umask


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), FULL[0], None])
def test_a_console_that_cannot_print(error, whole, tmp_path, monkeypatch):
    """Ends the run once its epoch is in the checkpoint, or, if it is ASCII, prints ? and goes on."""
    out = io.TextIOWrapper(open(os.devnull, "wb"), encoding="ascii")  # noqa: SIM115

    write = out.write

    def broken(text):
        if error and "α" in text:
            raise error
        return write(text)

    typed = vars(quick(tmp_path, name="run")).items()
    argv = [f"--{k.replace('_', '-')}={v}" for k, v in typed if v is not None]
    with monkeypatch.context() as patch:
        out.write = broken
        patch.setattr(train, "epoch_line", lambda *_: "α")
        patch.setattr(sys, "stdout", out)
        assert plumbing.run(train.main, argv) == (2 if error else 0)
    if error:
        assert torch.load(tmp_path / "run" / "checkpoint.pt")["progress"]["epoch"] == 1
        assert resume(tmp_path / "run") == 0
    assert_same(tmp_path / "run", whole)
