"""CPU, GPU and number formats."""

from contextlib import contextmanager

import torch

from plumbing import explained


def pick(name: str) -> torch.device:
    """ "auto": the accelerator if there is one, else the CPU. Raises UserError for none such."""
    if name == "auto":
        name = str(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    with explained(f"--device {name} is not on this machine; --device cpu always is"):
        probe = torch.zeros(1, device=name)
        probe.item()  # "meta" holds no numbers
    return probe.device


def autocast(amp: str, device: torch.device) -> torch.autocast:
    """bf16 in the forward pass. amp: "bf16", "off", or "auto", on CUDA alone"""
    on = amp == "bf16" or (amp == "auto" and device.type == "cuda")
    return torch.autocast(device.type, torch.bfloat16, enabled=on)


def float32(part):
    """A tensor, or the tensors of (nested) dicts and NamedTuples, in float32."""
    if isinstance(part, dict):
        return {key: float32(value) for key, value in part.items()}
    if isinstance(part, tuple):
        return type(part)(*map(float32, part))
    return part.float() if part.is_floating_point() else part


@contextmanager
def flush_denormals():
    """Denormal numbers count as 0 inside, as before after."""
    before = (torch.tensor(1e-300, dtype=torch.float64) * 1e-10).item() == 0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
