"""A GPU without a GPU: no step mixes its tensors with the CPU's, or waits for it without a reason.

Seen is what the code asks of a GPU; cuDNN, bf16 and what a kernel does inside are not.
"""

import inspect
import json
import textwrap
import traceback
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import data
import msfn
import train
from plumbing import packing, processes
from plumbing.test_runs import quick, small_corpus  # noqa: F401


class Claimed(Tensor):
    """A tensor that says it is on a GPU; `Gpu` alone computes with it. held: its twin on the CPU."""

    device, is_meta, is_cuda = torch.device("cuda", 0), False, True
    __torch_function__ = torch._C._disabled_torch_function_impl
    __torch_dispatch__ = classmethod(lambda *_: NotImplemented)

    @staticmethod
    def __new__(cls, held: Tensor):
        # Autograd, which would look for CUDA's driver, is told "meta".
        claims = {"strides": held.stride(), "dtype": held.dtype, "device": "meta"}
        made = Tensor._make_wrapper_subclass(cls, held.shape, **claims)
        made.held = held
        return made

    def __reduce_ex__(self, protocol: int):  # saved as map_location="cpu" would read it
        return self.held.__reduce_ex__(protocol)


INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")
READS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}  # item, nonzero, unique …


class Gpu(TorchDispatchMode):
    """Computes on the CPU what claimed tensors ask for, refuses a mix, and notes each wait."""

    def __init__(self):
        super().__init__()
        self._mode_key = torch._C._TorchDispatchModeKey.FAKE  # nor does a factory look for a driver
        self.waits = []  # "operation in module function"

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        given, behind = {}, []  # id of what is held: what was given; tensors on the CPU

        def lower(x, listed):
            given[id(getattr(x, "held", x))] = x
            if isinstance(x, Tensor) and x.device.type == "cpu" and (listed or x.dim()):
                behind.append(x)  # what has no dimension may be on the CPU, but not in a list
            return torch.device("cpu") if isinstance(x, torch.device) else getattr(x, "held", x)

        def lift(x, listed):
            new = isinstance(x, Tensor) and id(x) not in given  # else done in place
            return Claimed(x) if new else given.get(id(x), x)

        held = [mapped(lower, x) for x in (*args, *kwargs.values())]
        claimed = any(isinstance(x, Claimed) for x in given.values())
        device = args[0].device if name == "copy_" else kwargs.get("device")
        on_gpu = device.type != "cpu" if device else claimed
        wait = claimed and READS & set(func.tags)
        if name in ("copy_", "_to_copy"):
            crosses = isinstance(args[name == "copy_"], Claimed) != on_gpu
            wait = crosses and not (on_gpu and (kwargs.get("non_blocking") or True in args[2:]))
        elif claimed:
            if name in INDEXING and isinstance(args[0], Claimed):
                # A mask is a nonzero(); an index on the CPU is legal, and copied.
                indices = [x for x in args[1] if x is not None]
                wait = any(x.dtype == torch.bool or x.device.type == "cpu" for x in indices)
                behind = [x for x in behind if not any(x is index for index in indices)]
            if behind:
                raise RuntimeError(f"{name} in {place()}: tensors on two devices")
        if wait:
            self.waits.append(f"{name} in {place()}")
        result = func(*held[: len(args)], **dict(zip(kwargs, held[len(args) :], strict=True)))
        return mapped(lift, result) if on_gpu else result


def mapped(change, x, listed=False):
    """Each part of (nested) lists and tuples changed."""
    if isinstance(x, (list, tuple)):
        return type(x)([mapped(change, part, True) for part in x])
    return change(x, listed)


def place() -> str:
    """The innermost of the project's functions."""
    for frame, _ in traceback.walk_stack(None):
        module = frame.f_globals["__name__"]
        if module in ("train", "data", "msfn", "plumbing.packing", "plumbing.processes"):
            return f"{module} {frame.f_code.co_name}"


def waits_of_a_step(folder) -> list[str]:
    config = quick(folder, device="cuda", amp="off", batch_size=20)
    with Gpu() as gpu:
        run = train.prepare(config)
        forward = processes.distribute(run.model, run.device)
        batch = next(iter(train.loader(run.segments["train"], config, 0)))
        optimizer = train.make_optimizer(run, config)
        gpu.waits.clear()
        train.train_step(run, forward, optimizer, config, batch)
    return gpu.waits


WAITS = [
    # `Packed` plans in Python, and is told the lengths, as any encoder is, by a mask on the GPU.
    "_to_copy in plumbing.packing forward",
    # The plan goes to a GPU that was waited for just now and has nothing else to do.
    *["_to_copy in plumbing.packing <genexpr>"] * 2,
]


@pytest.mark.parametrize("world", [1, 2])
def test_a_step_waits_where_it_must(world, tmp_path, monkeypatch):
    """Alone, or as one of two processes, without what the other would add."""
    monkeypatch.setattr(processes, "WORLD", world)
    monkeypatch.setattr(processes, "DistributedDataParallel", lambda model, *_, **__: model)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda _: None)
    monkeypatch.setattr(torch.random, "fork_rng", nullcontext)
    assert waits_of_a_step(tmp_path) == WAITS


def test_a_run_stopped_and_resumed_on_a_gpu_is_that_on_the_cpu(tmp_path, monkeypatch):
    """Preparation, training, evaluation, checkpoints: no mix, and equal numbers."""
    logs = []
    for device in ("cuda", "cpu"):
        config = quick(tmp_path, device=device, amp="off", epochs=2, name=device)
        with Gpu():
            with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
                patch.setattr(train, "epoch_line", lambda *_: 1 // 0)
                train.train(config)
            train.main(["--resume", f"{tmp_path}/{device}"])
        lines = (tmp_path / device / "metrics.jsonl").read_text().splitlines()
        logs.append([json.loads(line)[part] for line in lines for part in ("train", "valid")])
    for there, here in zip(*logs, strict=True):
        assert there == pytest.approx(here, rel=1e-4)


EDITS = [
    ("refused", data.Batch, "to", "self.y.to(**move)", "self.y"),
    ("refused", msfn, "attention_mask", ", device=video.device", ""),
    ("refused", msfn.LSTMs, "forward", ", device=X.device", ""),
    ("refused", packing.Packed, "forward", ".to(input_ids.device)", ""),
    ("refused", packing, "where_it_stands", ", device=sentence.device", ""),
    ("noted", data.Batch, "to", ', "non_blocking": device.type == "cuda"', ""),
    ("noted", msfn.MSFN, "rows_with", ".to(**move)", ""),
    ("noted", msfn.MSFN, "losses", "task_loss(y,", "task_loss(y[y < 9],"),
    ("noted", train, "train_step", "optimizer.step()", "optimizer.step(), losses[0].item()"),
]


@pytest.mark.parametrize("outcome, owner, name, old, new", EDITS)
def test_it_bites(outcome, owner, name, old, new, tmp_path, monkeypatch):
    """One device taken away, or one wait put in."""
    source = textwrap.dedent(inspect.getsource(getattr(owner, name)))
    assert old in source
    exec(source.replace(old, new), vars(inspect.getmodule(owner)), made := {})  # noqa: S102
    monkeypatch.setattr(owner, name, made[name])
    refusal = pytest.raises(RuntimeError, match="tensors on two devices")
    with refusal if outcome == "refused" else nullcontext():
        assert len(waits_of_a_step(tmp_path)) > len(WAITS)


def test_bf16_changes_the_forward_pass_and_leaves_the_losses_in_float32(tmp_path):
    logged = []
    for amp in ("off", "bf16"):
        config = quick(tmp_path, amp=amp)
        run = train.prepare(config)
        batch = next(iter(train.loader(run.segments["valid"], config)))
        optimizer = train.make_optimizer(run, config)
        step = train.train_step(run, run.model.eval(), optimizer, config, batch)
        logged.append(torch.stack(list(step.values())))
    exact, rough = logged
    assert exact.dtype == rough.dtype == torch.float32 and not torch.equal(exact, rough)
    torch.testing.assert_close(exact, rough, atol=0.05, rtol=0.05)
