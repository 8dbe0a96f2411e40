"""CPU, GPU and number formats."""

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
    return part.float()
