"""A GPU without a GPU: no step mixes its tensors with the CPU's, or waits for it without a reason.

The tests see what the code asks of a GPU, but not cuDNN, bf16, or what a kernel does inside.
"""

import json
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import train
from plumbing import processes
from plumbing.test_runs import quick, small_corpus  # noqa: F401

dispatch = pytest.importorskip("torch.utils._python_dispatch")  # private names of torch
pytestmark = pytest.mark.filterwarnings("ignore:PyTorch was compiled without cuDNN:UserWarning")


class Claimed(Tensor):
    """A tensor that says it is on a GPU; only `Gpu` computes with it. held: its twin on the CPU."""

    device, is_meta, is_cuda = torch.device("cuda", 0), False, True
    __torch_function__ = getattr(torch._C, "_disabled_torch_function_impl", None)
    __torch_dispatch__ = classmethod(lambda *_: NotImplemented)

    @staticmethod
    def __new__(cls, held: Tensor) -> "Claimed":
        # Autograd, which would look for CUDA's driver, is told "meta".
        claims = {"strides": held.stride(), "dtype": held.dtype, "device": "meta"}
        made = Tensor._make_wrapper_subclass(cls, held.shape, **claims)
        made.held = held
        return made

    def __format__(self, how: str) -> str:
        return format(self.held, how)

    def __reduce_ex__(self, protocol: int) -> tuple:  # saved as map_location="cpu" would read it
        return self.held.__reduce_ex__(protocol)


INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")
READS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}  # item, nonzero, unique …


class Gpu(dispatch.TorchDispatchMode):
    """Computes on the CPU what claimed tensors ask for, rejects a mix, and notes each wait."""

    def __init__(self):
        super().__init__()
        self._mode_key = torch._C._TorchDispatchModeKey.FAKE  # nor does a factory look for a driver
        self.waits = []  # "operation in module function"

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        given, behind = {}, []  # id of what is held: what was given; tensors on the CPU

        def lower(x: Any, listed: bool) -> Any:
            given[id(getattr(x, "held", x))] = x
            if isinstance(x, Tensor) and x.device.type == "cpu" and (listed or x.dim()):
                behind.append(x)  # what has no dimension may be on the CPU, but not in a list
            return torch.device("cpu") if isinstance(x, torch.device) else getattr(x, "held", x)

        def lift(x: Any, listed: bool) -> Any:
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


def mapped(change: Callable, x: Any, listed: bool = False) -> Any:
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


def works() -> str:
    """Why the fake GPU does not work in this version of torch, whose private names it uses."""
    try:
        with Gpu():
            assert (torch.ones(2, device="cuda") + 1).held.tolist() == [2.0, 2.0]
    except Exception as error:
        return repr(error)
    return ""


if reason := works():
    pytest.skip(f"torch's private names have changed: {reason}", allow_module_level=True)


def waits_of_a_step(folder: Path) -> list[str]:
    """Without those of `Packed`, which plans in Python: it reads the lengths from a mask on the GPU
    and sends back its plan, in two parts.
    """
    config = quick(folder, device="cuda", amp="off")
    with Gpu() as gpu:
        session = train.Session(config)
        batch = next(iter(train.loader(session.segments["train"], config, 0)))
        gpu.waits.clear()
        train.train_step(session, batch)
    packing = [wait for wait in gpu.waits if " in plumbing.packing " in wait]
    assert 1 <= len(packing) <= 3
    return [wait for wait in gpu.waits if wait not in packing]


@pytest.mark.parametrize("number", [1, 2])
def test_a_step_waits_for_the_plan_of_packing_alone(number, tmp_path, monkeypatch):
    """Alone, or as one of two processes, without what the other would add."""

    def parallel(model: Any, find_unused_parameters: bool) -> Any:
        return model  # with device_ids DDP would move the lengths

    monkeypatch.setattr(processes, "world_size", lambda: number)
    monkeypatch.setattr(processes, "DistributedDataParallel", parallel)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda _: None)
    monkeypatch.setattr(torch.random, "fork_rng", nullcontext)
    assert waits_of_a_step(tmp_path) == []


def test_a_run_stopped_and_resumed_on_a_gpu_is_that_on_the_cpu(tmp_path, monkeypatch):
    """Preparation, training, evaluation, checkpoints: no mix, and equal numbers."""
    logs = []
    for device in ("cuda", "cpu"):
        config = quick(tmp_path, device=device, amp="off", epochs=2, batch_size=60, name=device)
        with Gpu():
            with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
                patch.setattr(train, "epoch_line", lambda *_, **__: 1 // 0)
                train.train(config)
            train.main(["--resume", f"{tmp_path}/{device}"])
        lines = (tmp_path / device / "metrics.jsonl").read_text().splitlines()
        logs.append([json.loads(line)["train"] for line in lines])
    for gpu, cpu in zip(*logs, strict=True):
        assert gpu == pytest.approx(cpu, rel=1e-4)
