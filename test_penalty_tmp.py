"""The laws of gradient_penalty, the addition beside Eqs. 5–8."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import msfn
from msfn import MODALITIES
from test_msfn import close, features, normal, seeds, small_batch, small_model


def judges(seed, d=4):
    """{m: Discriminator} in float64, different in each modality"""
    torch.manual_seed(seed)
    return {m: msfn.Discriminator(d).double() for m in MODALITIES}


@given(seeds, st.lists(st.integers(0, 5), min_size=3, max_size=3))
def test_gradient_penalty_sample_by_sample(seed, numbers):
    """The mean of ‖∇_h z‖² over the samples of all pairs (m, k) of modalities that have some."""
    D = judges(seed)
    h = {m: normal(seed, n, 4) for m, n in zip(MODALITIES, numbers, strict=True)}
    squares = []
    for m in MODALITIES:
        for row in torch.cat(list(h.values())) if len(h[m]) else []:
            slope = torch.autograd.functional.jacobian(lambda r, m=m: D[m](r[None])[0], row)
            squares.append(sum(float(s) ** 2 for s in slope))
    close(msfn.gradient_penalty(D, h), sum(squares) / max(len(squares), 1))


def test_gradient_penalty_of_a_linear_discriminator_is_its_squared_norm():
    w = {m: normal(i, 4) for i, m in enumerate(MODALITIES)}
    D = {m: lambda h, m=m: h @ w[m] + 1 for m in w}
    h = {m: normal(9, B, 4) for m, B in zip(MODALITIES, (3, 0, 5), strict=True)}
    close(msfn.gradient_penalty(D, h), (w["a"] @ w["a"] + w["l"] @ w["l"]) / 2)
    constant = {m: lambda h: 0 * h.sum(1) + 7 for m in MODALITIES}
    assert msfn.gradient_penalty(constant, h) == 0
    assert msfn.gradient_penalty(D, {m: v[:0] for m, v in h.items()}) == 0


@given(seeds, st.permutations(MODALITIES))
def test_gradient_penalty_follows_a_relabelling(seed, names):
    D, h, new = judges(seed), features(seed, 5), dict(zip(MODALITIES, names, strict=True))
    renamed = [{new[m]: part[m] for m in MODALITIES} for part in (D, h)]
    close(msfn.gradient_penalty(D, h), msfn.gradient_penalty(*renamed))


def test_gradient_penalty_is_paid_by_the_discriminators_alone():
    D, h = judges(0), {m: v.requires_grad_() for m, v in features(1, 5).items()}
    msfn.gradient_penalty(D, h).backward()
    assert all(v.grad is None for v in h.values())
    assert all(D[m][0].weight.grad.abs().sum() > 0 for m in D)


@pytest.mark.parametrize("absent", ["", "v", "av", "avl"])
def test_the_penalty_is_taken_from_the_value_of_the_game(absent):
    """L = L^task + α (L^a − ρ/2 R) + …: the side that ascends lowers R, the other does not see it."""
    batch, losses, slopes = small_batch(), {}, {}
    for m in absent:
        batch.lengths[m].zero_()
    for rho in (0.0, 3.0):
        model = small_model(alpha=0.7, penalty=rho).eval()
        out = model(batch.inputs, batch.video)
        losses[rho] = model.losses(out, batch.y, batch.lengths)
        rest, adversary = (group["params"] for group in model.parameter_groups())
        every = {"allow_unused": True, "materialize_grads": True}
        slopes[rho] = torch.autograd.grad(losses[rho].total, rest + adversary, **every)
    h = {m: out.h[m][batch.lengths[m] > 0] for m in MODALITIES}
    R = msfn.gradient_penalty(model.discriminators, h)
    assert (R > 0) == (absent != "avl")
    close(losses[3.0].total, losses[0.0].total - 0.7 * 3.0 / 2 * R, atol=1e-6)
    assert losses[3.0][1:] == losses[0.0][1:]
    n = len(rest)
    assert all(map(torch.equal, slopes[3.0][:n], slopes[0.0][:n]))
    of_R = torch.autograd.grad(R, adversary, **every) if R > 0 else slopes[0.0][n:]
    for penalised, printed, slope in zip(slopes[3.0][n:], slopes[0.0][n:], of_R, strict=True):
        close(penalised, printed - 0.7 * 3.0 / 2 * slope, atol=1e-6)
