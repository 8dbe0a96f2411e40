"""Which device, which number format, and that a step mixes no two devices."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import train
from plumbing import UserError, devices
from plumbing.test_runs import logged, quick, small_corpus, stop  # noqa: F401


@pytest.mark.parametrize("name", ["cuda:77", "meta", "gpu"])
def test_an_unavailable_device_is_one_sentence(name):
    with pytest.raises(UserError, match=f"^--device {name} is unavailable .*; use --device cpu: "):
        devices.pick(name)


@pytest.mark.parametrize("native", [True, False])
def test_auto_is_bf16_only_on_a_gpu_that_computes_in_it(native, monkeypatch):
    """A T4 or V100 only emulates it, more slowly than float32."""
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    computes = lambda including_emulation: native or including_emulation
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", computes)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(torch, "autocast", lambda *_, enabled: enabled)
    on = [devices.autocast(amp, each) for amp in ("auto", "bf16", "off") for each in (cpu, gpu)]
    assert on == [False, native, True, True, False, False]


def test_denormals_are_flushed_inside_and_treated_as_before_outside():
    """Training flushes them around each prediction, which does so, too."""
    if not torch.set_flush_denormal(False):
        pytest.skip("this CPU cannot flush denormals")
    smallest = torch.full((1,), torch.finfo(torch.float32).tiny)
    with devices.flush_denormals():
        with pytest.raises(ZeroDivisionError), devices.flush_denormals():
            raise ZeroDivisionError
        assert (smallest / 2).item() == 0
    assert (smallest / 2).item() > 0


def test_bf16_changes_the_forward_pass_and_leaves_the_losses_in_float32():
    steps = []
    for amp in ("off", "bf16"):
        session = train.Session(quick(amp=amp, dropout=0.0))
        session.model.eval()
        batch = next(iter(train.loader(session.segments["valid"], session.config)))
        values = list(train.train_step(session, batch).values())
        assert {value.dtype for value in values} == {torch.float32}
        steps.append(torch.stack(values))
    exact, rough = steps
    assert not torch.equal(exact, rough)
    torch.testing.assert_close(exact, rough, atol=0.05, rtol=0.05)


class Embeddings(nn.Embedding):
    """In place of BERT, whose packing must read the lengths."""

    config = SimpleNamespace(hidden_size=4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        states = super().forward(input_ids) * attention_mask[:, :, None]
        return SimpleNamespace(last_hidden_state=states)


def test_a_step_leaves_no_tensor_on_the_cpu(monkeypatch):
    """On "meta", which rejects a mix with the CPU as a GPU does, and any number that is read."""
    monkeypatch.setattr(devices, "autocast", lambda *_: nullcontext())
    session = train.Session(quick())
    model = train.build_msfn(session.config, session.corpus.widths, Embeddings(5000, 4))
    session.device = torch.device("meta")
    session.model = session.forward = model.to("meta")
    session.optimizer = torch.optim.SGD(model.parameter_groups(), 0.1)
    batch = next(iter(train.loader(session.segments["train"], session.config)))
    assert {value.device.type for value in train.train_step(session, batch).values()} == {"meta"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_run_stopped_and_resumed_on_a_gpu_is_that_on_the_cpu(tmp_path):
    for device in ("cuda", "cpu"):
        config = quick(tmp_path, device=device, amp="off", dropout=0.0, epochs=2, name=device)
        stop(config, epoch=0)
        train.main(["--resume", f"{tmp_path}/{device}"])
    for gpu, cpu in zip(logged(tmp_path / "cuda"), logged(tmp_path / "cpu"), strict=True):
        assert gpu["train"] == pytest.approx(cpu["train"], rel=0.01)
