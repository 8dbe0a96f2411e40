"""Which device, which number format, and what is restored afterwards."""

from contextlib import nullcontext
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import train
from plumbing import UserError, devices
from plumbing.test_runs import quick, small_corpus  # noqa: F401


class Part(NamedTuple):
    x: Tensor
    rows: dict[str, Tensor]
    name: str = "a"


@pytest.mark.parametrize("name", ["cuda:77", "meta", "gpu", "cpu:x"])
def test_an_unavailable_device_is_one_sentence(name):
    with pytest.raises(UserError, match=f"^--device {name} is unavailable .*; use --device cpu: "):
        devices.pick(name)


@pytest.mark.parametrize("native", [True, False])
def test_auto_is_bf16_only_on_a_gpu_that_computes_in_it(native, monkeypatch):
    """A T4 or V100 only emulates it, more slowly than float32."""
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(torch, "autocast", lambda *_, enabled: enabled)
    on = [devices.autocast(amp, each) for amp in ("auto", "bf16", "off") for each in (cpu, gpu)]
    assert on == [False, native, True, True, False, False]


def test_float32_converts_numbers_and_leaves_integers():
    part = Part(torch.ones(2, dtype=torch.bfloat16), {"a": torch.tensor([2**40 + 1])})
    nested = devices.float32({"part": part, "pair": (part.x, None)})
    assert nested["part"].x.dtype == nested["pair"][0].dtype == torch.float32
    assert nested["part"].rows["a"].item() == 2**40 + 1
    assert nested["part"].name == "a" and nested["pair"][1] is None


@pytest.mark.parametrize("before", [True, False])
def test_denormals_are_flushed_inside_and_treated_as_before_outside(before):
    smallest = torch.full((1,), torch.finfo(torch.float32).tiny)

    @devices.flush_denormals()
    def half(fail: bool) -> float:
        result = (smallest / 2).item()
        return 1 // 0 if fail else result

    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush denormals")
    torch.set_flush_denormal(before)
    try:
        assert half(fail=False) == 0
        with pytest.raises(ZeroDivisionError):
            half(fail=True)
        assert ((smallest / 2).item() == 0) == before
    finally:
        torch.set_flush_denormal(False)


def test_bf16_changes_the_forward_pass_and_leaves_the_losses_in_float32(tmp_path):
    logged = []
    for amp in ("off", "bf16"):
        session = train.Session(quick(tmp_path, amp=amp))
        session.model.eval()
        batch = next(iter(train.loader(session.segments["valid"], session.config)))
        values = list(train.train_step(session, batch).values())
        assert {value.dtype for value in values} == {torch.float32}
        logged.append(torch.stack(values))
    exact, rough = logged
    assert not torch.equal(exact, rough)
    torch.testing.assert_close(exact, rough, atol=0.05, rtol=0.05)
