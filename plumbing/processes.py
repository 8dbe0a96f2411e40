"""torchrun: several processes that compute what one process would.

A loss that compares segments with each other needs the whole batch. So the processes share only the
embeddings, which cost nearly everything and work segment by segment: each process embeds its rows,
all rows are gathered, and every process computes the rest.
"""

import os
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from plumbing import UserError, explained


def joined() -> bool:
    """Whether this process works together with others."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if joined() else 0


def world_size() -> int:
    """The number of processes that work together."""
    return dist.get_world_size() if joined() else 1


def start() -> None:
    """Join the other processes if torchrun started this one; only process 0 prints.

    Raises UserError if another launcher left its variables behind.
    """
    if joined() or not dist.is_available():
        return
    if not dist.is_torchelastic_launched():
        for name, alone in {"RANK": "0", "WORLD_SIZE": "1"}.items():
            if (value := os.environ.get(name, alone)) != alone:
                raise UserError(
                    f"{name} is {value!r}, but torchrun did not start this process: "
                    "unset RANK and WORLD_SIZE, or start with torchrun"
                )
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    with explained("the processes of torchrun cannot connect"):
        dist.init_process_group()  # gloo for tensors on the CPU, nccl for those on a GPU
    if rank() > 0:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def wait_for_all() -> None:
    """Return when every process is here: then all can read what process 0 wrote before."""
    if world_size() > 1:
        dist.barrier()


def from_first(value: Any) -> Any:
    """The value that process 0 has, in every process."""
    values = [value]
    if world_size() > 1:
        dist.broadcast_object_list(values)
    return values[0]


def distribute(model: nn.Module, device: torch.device) -> nn.Module:
    """The model for the forward pass: the model itself, or one that shares out its embeddings.

    model.embeddings: modules called with (values, lengths) of B segments that return (B, d), row by
    row. model.forward must use every parameter, since DDP fails at one that only a loss uses.
    Loss and gradients equal those of one process.
    """
    if world_size() == 1:
        return model
    gpus = [device] if device.type == "cuda" else []
    for block in model.embeddings.values():
        block.forward = shared(block.forward, gpus)
    # find_unused_parameters: a share without text gives BERT's embeddings no gradient.
    # No device_ids: with them DDP would move the lengths, which stay on the CPU.
    return DistributedDataParallel(model, find_unused_parameters=True)


def shared(embed: Callable, gpus: list[torch.device]) -> Callable:
    """The function that embeds this process's share of a batch and gathers all rows."""

    def forward(values: Tensor, lengths: Tensor) -> Tensor:
        B = len(values)
        start, stop = (B * number // world_size() for number in (rank(), rank() + 1))
        some = slice(start, max(stop, start + 1))  # a module needs at least one row
        seed = int(torch.randint(1 << 60, ())) + rank()  # each share draws its own dropout
        with torch.random.fork_rng(gpus):
            torch.manual_seed(seed)
            mine = embed(values[some], lengths[some])[: stop - start]
        everyone = mine.new_zeros(B, *mine.shape[1:])
        everyone[start:stop] = mine.detach()
        dist.all_reduce(everyone)
        everyone[start:stop] = mine  # with its graph
        if mine.requires_grad:
            mine.register_hook(lambda gradient: gradient * world_size())  # DDP divides by it
        return everyone

    return forward
