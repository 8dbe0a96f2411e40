"""Many processes compute what one does: loss, gradients, and a whole run, to rounding."""

import contextlib
import functools
import io
import json
import multiprocessing

import pytest
import torch
import torch.distributed as dist

import train
from plumbing import encoders, processes, runs
from plumbing.runs import RunFolder
from plumbing.test_runs import quick, small_corpus  # noqa: F401

FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def no_dropout_in_bert(monkeypatch, small_corpus):  # noqa: F811
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    monkeypatch.setattr(encoders, "BertConfig", functools.partial(encoders.BertConfig, **off))


def in_processes(world, folder, work):
    """work() in each of `world` processes that know each other -> what each returned."""

    def child(rank):
        processes.RANK, processes.WORLD, runs.RANK = rank, world, rank
        meet = f"file://{folder}/meet"
        dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=world)
        with contextlib.redirect_stdout(io.StringIO()):
            torch.save(work(), folder / f"{rank}.pt")
        dist.barrier()
        dist.destroy_process_group()

    children = [FORK.Process(target=child, args=(rank,)) for rank in range(world)]
    for each in children:
        each.start()
    for each in children:
        each.join(60)
        each.kill()
    assert [each.exitcode for each in children] == [0] * world
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]


def loss_and_gradients(config):
    """Of the first train batch, in float64."""
    run = train.prepare(config)
    forward, model = processes.distribute(run.model.double(), run.device), run.model
    batch = next(iter(train.loader(run.segments["train"], config, 0)))
    inputs = {m: (v.double() if m != "l" else v, n) for m, (v, n) in batch.inputs.items()}
    torch.manual_seed(0)
    output = forward(inputs, batch.video)
    loss = model.losses(output, batch.y.double(), {m: n for m, (_, n) in inputs.items()})[0]
    loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **gradients}


@pytest.mark.parametrize("world, batch_size", [(2, 7), (3, 2), (2, 1)])
def test_processes_give_the_loss_and_gradients_of_one(world, batch_size, tmp_path):
    """Eqs. 5–10 and 13 see the whole batch; a batch may be smaller than the number of processes."""
    config = quick(tmp_path, dropout=0.0, batch_size=batch_size, attention="batch")
    alone = loss_and_gradients(config)
    for found in in_processes(world, tmp_path, lambda: loss_and_gradients(config)):
        torch.testing.assert_close(found, alone, atol=1e-10, rtol=1e-9)


def test_with_dropout_all_processes_see_the_same(tmp_path):
    config = quick(tmp_path, dropout=0.5, batch_size=6)
    one, two = in_processes(2, tmp_path, lambda: loss_and_gradients(config))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert (one["loss"] - loss_and_gradients(config)["loss"]).abs() > 1e-3


def test_a_run_of_two_processes_is_the_run_of_one(tmp_path):
    """And its test metrics are those of the weights it leaves, which process 0 alone writes."""
    config = quick(tmp_path, dropout=0.0, name="two")
    one, two = in_processes(2, tmp_path, lambda: train.train(config))
    alone = train.train(quick(tmp_path, dropout=0.0, name="one"))
    assert one == two == json.loads((tmp_path / "two" / "results.json").read_text())
    assert one["test"] == pytest.approx(alone["test"], abs=1e-5)
    run = train.prepare(config)
    RunFolder(tmp_path / "two").load_weights(run.model)
    again = train.metrics(*train.predict(run, run.segments["test"], config))
    assert again == pytest.approx(one["test"], abs=1e-6)
