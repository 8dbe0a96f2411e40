"""Several processes compute what one does, to rounding: loss, gradients, and a whole run."""

import json
import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import train
from plumbing import UserError, processes
from plumbing.runs import RunFolder
from plumbing.test_runs import needs_linux, quick, small_corpus  # noqa: F401

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def in_processes(number: int, folder: Path, work: Callable[[], Any]) -> list:
    """work() in each of `number` processes, started as torchrun does -> what each returned."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def child(rank: int) -> None:
        values = map(str, (rank, number, rank, "127.0.0.1", port))
        os.environ.update(zip(VARIABLES, values, strict=True), TORCHELASTIC_RUN_ID="none")
        processes.start()
        torch.save(work(), folder / f"{rank}.pt")
        processes.wait_for_all()
        torch.distributed.destroy_process_group()

    fork = multiprocessing.get_context("fork")
    children = [fork.Process(target=child, args=(rank,)) for rank in range(number)]
    for each in children:
        each.start()
    for each in children:
        each.join(60)
        each.kill()
    assert [each.exitcode for each in children] == [0] * number
    return [torch.load(folder / f"{rank}.pt") for rank in range(number)]


def loss_and_gradients(config: train.Config) -> dict[str, torch.Tensor]:
    """Of the first train batch, in float64."""
    session = train.Session(config, lambda *parts: train.build_msfn(*parts).double())
    batch = next(iter(train.loader(session.segments["train"], config, 0)))
    inputs = {m: (v.double() if m != "l" else v, n) for m, (v, n) in batch.inputs.items()}
    torch.manual_seed(0)
    loss = session.model.losses(session.forward(inputs, batch.video), batch.y.double()).total
    loss.backward()
    gradients = {n: p.grad for n, p in session.model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **gradients}


@needs_linux
@pytest.mark.parametrize("number, batch_size", [(2, 7), (3, 2), (2, 1)])
def test_processes_give_the_loss_and_gradients_of_one(number, batch_size, tmp_path):
    """Eqs. 5–10 and 13 see the whole batch; a batch may be smaller than the number of processes."""
    config = quick(tmp_path, dropout=0.0, batch_size=batch_size, attention="batch")
    alone = loss_and_gradients(config)
    for result in in_processes(number, tmp_path, lambda: loss_and_gradients(config)):
        torch.testing.assert_close(result, alone, atol=1e-10, rtol=1e-9)


@needs_linux
def test_with_dropout_all_processes_see_the_same(tmp_path):
    """The shares of a batch have different dropout, even if they hold the same segments."""
    config = quick(tmp_path, dropout=0.5, batch_size=6)

    def work() -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        session = train.Session(config)
        values, lengths = next(iter(train.loader(session.segments["valid"], config))).inputs["a"]
        x = session.model.embeddings["a"](values.repeat(2, 1, 1), lengths.repeat(2))
        return loss_and_gradients(config), x.detach()

    (one, x), (two, same_x) = in_processes(2, tmp_path, work)
    assert all(torch.equal(one[name], two[name]) for name in one) and torch.equal(x, same_x)
    assert (one["loss"] - loss_and_gradients(config)["loss"]).abs() > 1e-3
    first, second = x.chunk(2)
    assert (first - second).abs().max() > 1e-3


@needs_linux
def test_a_run_of_two_processes_predicts_as_the_run_of_one(tmp_path, capfd):
    """Process 0 alone writes and prints; both return what results.json holds."""
    chosen = {"dropout": 0.0, "learning_rate": 1e-3}
    configs = [quick(tmp_path, name=name, **chosen) for name in ("one", "two")]
    train.train(configs[0])
    alone = capfd.readouterr().out
    results = in_processes(2, tmp_path, lambda: train.train(configs[1]))
    assert results == [json.loads((tmp_path / "two" / "results.json").read_text())] * 2
    assert capfd.readouterr().out.count("\n") == alone.count("\n") > 5
    predictions = []
    for config in configs:
        session = train.Session(config)
        RunFolder(tmp_path / config.name).load_weights(session.model)
        predictions.append(torch.from_numpy(train.predict(session, session.segments["test"])[0]))
    torch.testing.assert_close(*predictions, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name, value", [("WORLD_SIZE", "2"), ("RANK", "1"), ("RANK", "")])
def test_variables_that_another_launcher_left_are_named(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"^{name} is '{value}', but torchrun did not start"):
        processes.start()
