"""CPU, GPU and number formats."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from plumbing import explained


def pick(name: str) -> torch.device:
    """The device of this name; "auto" is the accelerator, or the CPU on a machine without one.

    Raises UserError if the device is unavailable.
    """
    if name == "auto":
        name = str(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    with explained(f"--device {name} is unavailable on this machine; use --device cpu"):
        probe = torch.zeros(1, device=name)
        probe.item()  # tensors on the device "meta" have no values
    return probe.device


def autocast(amp: str, device: torch.device) -> torch.autocast:
    """bf16 in the forward pass. amp: "bf16", "off", or "auto": on if the GPU computes in bf16."""
    on = amp == "bf16"
    if amp == "auto" and device.type == "cuda":
        with torch.cuda.device(device):
            on = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(device.type, torch.bfloat16, enabled=on)


def float32(part: Any) -> Any:
    """Convert the floating-point tensors of nested dicts and NamedTuples to float32."""
    if isinstance(part, dict):
        return {key: float32(value) for key, value in part.items()}
    if isinstance(part, tuple):
        return getattr(part, "_make", tuple)(map(float32, part))
    return part.float() if isinstance(part, Tensor) and part.is_floating_point() else part


@contextmanager
def flush_denormals() -> Iterator[None]:
    """Round numbers below 1e-38 to zero in a block or function, then restore the previous mode.

    A gradient that fades over hundreds of frames ends in such numbers, with which a CPU computes 5
    times slower. Threads of a CPU's pool inherit the mode from the thread that starts them, so the
    block should contain everything from preparation on.
    """
    smallest = torch.full((), torch.finfo(torch.float32).tiny)
    before = (smallest / 2).item() == 0  # torch has no getter
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
