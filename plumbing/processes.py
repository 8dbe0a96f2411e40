"""torchrun: many processes that compute what one would.

A loss that compares segments with each other cannot be computed from a process's own share of a batch.
So only the embeddings, which cost nearly everything and work segment by segment, are shared out:
each process embeds its rows, all rows are gathered, and what follows is computed alike in each.
"""

import os
import sys

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

RANK, WORLD = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def start():
    """Join the other processes, if torchrun started any; only process 0 prints."""
    if WORLD > 1 and not dist.is_initialized():
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(RANK % torch.cuda.device_count())
        dist.init_process_group("nccl" if cuda else "gloo")
        if RANK > 0:
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def wait_for_all():
    """What process 0 wrote before this line can be read by all after it."""
    if WORLD > 1:
        dist.barrier()


def from_first(value):
    """The value that process 0 has, in each process."""
    values = [value]
    if WORLD > 1:
        dist.broadcast_object_list(values)
    return values[0]


class Gather(torch.autograd.Function):
    """The rows that each process computed -> all rows, in each; gradients are summed likewise."""

    @staticmethod
    def forward(ctx, mine: Tensor, rows: slice, B: int) -> Tensor:
        ctx.rows = rows
        everyone = mine.new_zeros(B, *mine.shape[1:])
        everyone[rows] = mine
        dist.all_reduce(everyone)
        return everyone

    @staticmethod
    def backward(ctx, gradient: Tensor):
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[ctx.rows], None, None


def distribute(model: nn.Module, device: torch.device) -> nn.Module:
    """The model for the forward pass: itself, or with the work of its embeddings shared out.

    model.embeddings: blocks that are called with (values, lengths) of B segments and give (B, d), row
    by row. model.forward has to use every parameter: DDP fails at one that only a loss uses. The
    gradient of what is gathered is a sum over the processes and DDP takes the mean, so loss and
    gradients are those of a single process.
    """
    if WORLD == 1:
        return model
    ids = [device] if device.type == "cuda" else None

    def shared(alone):
        def forward(values: Tensor, lengths: Tensor) -> Tensor:
            # Slices: an index of rows would be copied to the GPU, and each such copy waits for it.
            start, stop = (len(values) * rank // WORLD for rank in (RANK, RANK + 1))
            rows, some = slice(start, stop), slice(start, max(stop, start + 1))  # a block takes ≥ 1
            seed = int(torch.randint(1 << 60, ())) + RANK  # each share has a dropout of its own
            with torch.random.fork_rng(ids or ()):
                torch.manual_seed(seed)
                mine = alone(values[some], lengths[some])[: stop - start]
            return Gather.apply(mine, rows, len(values))

        return forward

    for block in model.embeddings.values():
        block.forward = shared(block.forward)
    # A process whose share has no text gives BERT's embeddings no gradient: find_unused_parameters.
    return DistributedDataParallel(
        model, ids, forward_sync_buffers=False, find_unused_parameters=True
    )
