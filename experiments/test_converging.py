"""converging.py, triplets.py and game.py: oracles by loops. test_baselines.py resumes a run."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import msfn
import train
from experiments import game
from experiments.converging import (
    Averaged,
    CMDInstead,
    Converging,
    build,
    gradient_penalty,
    mean_cmd,
)
from experiments.test_baselines import close, normal, seeds
from experiments.triplets import triplet_loss_large
from plumbing.test_runs import quick, small_corpus  # noqa: F401

MODALITIES = "avl"
labels = st.lists(st.integers(-3, 3), min_size=1, max_size=9)


def a_step(kind, chosen=None, **arguments):
    """A session of a model of converging.py, and its output and losses on one batch."""
    session = train.Session(quick(**chosen or {}), build(kind, **arguments))
    batch = next(iter(train.loader(session.segments["valid"], session.config)))
    session.model.eval()
    output = msfn.MSFN.forward(session.model, batch.inputs, batch.video)
    return session, output, batch.y


# ── The game ──────────────────────────────────────────────────────────────────────────────────────
@given(seeds, st.tuples(*[st.integers(0, 3)] * 3))
def test_gradient_penalty_sample_by_sample(seed, sizes):
    """The mean of ‖∇_h z‖² over the samples of all pairs (m, k) of present modalities."""
    torch.manual_seed(seed)
    D = {m: msfn.Discriminator(4).double() for m in MODALITIES}
    h = {m: normal(seed, n, 4) for m, n in zip(MODALITIES, sizes, strict=True)}
    squares = []
    for m in (m for m in MODALITIES if len(h[m])):
        for row in torch.cat(list(h.values())):
            slope = torch.autograd.functional.jacobian(lambda r, m=m: D[m](r[None])[0], row)
            squares.append(sum(float(s) ** 2 for s in slope))
    close(gradient_penalty(D, h), sum(squares) / max(len(squares), 1))


def test_the_penalty_moves_no_generator():
    h = {m: normal(i, 3, 4).requires_grad_() for i, m in enumerate(MODALITIES)}
    R = gradient_penalty(dict.fromkeys(h, lambda x: x.square().sum(1)), h)
    assert torch.autograd.grad(R, list(h.values()), allow_unused=True) == (None,) * 3


def test_the_discriminators_alone_pay_the_penalty():
    """ρ changes the gradient of the side that ascends, and no other, and takes its momentum."""
    slopes = []
    for rho, betas in ((0.0, None), (3.0, (0.0, 0.999))):
        session, output, y = a_step(Converging, decay=0.9, rho=rho)
        model, losses = session.model, session.model.losses(output, y)
        assert [group.get("betas") for group in model.parameter_groups()] == [None, betas]
        R = gradient_penalty(model.discriminators, msfn.select_present(output.h, output.rows))
        printed = msfn.MSFN.losses(model, output, y).total
        close(losses.total.item(), printed.item() - 0.2 * rho / 2 * R.item(), atol=1e-5)
        losses.total.backward()
        slopes.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    for name, printed in slopes[0].items():
        pays = "discriminators" in name and "weight" in name  # a bias has no slope
        assert torch.allclose(printed, slopes[1][name], atol=1e-7) != pays, name


def test_cmd_replaces_the_game():
    session, output, y = a_step(CMDInstead, {"alpha": 3.0}, decay=0.9)
    config, losses = session.config, session.model.losses(output, y)
    h = msfn.select_present(output.h, output.rows)
    close(losses.adversarial.item(), mean_cmd(h).item())
    rest = config.beta * losses.distance + config.gamma * losses.reconstruction
    close(losses.total.item(), (losses.task + 3 * losses.adversarial + rest).item(), atol=1e-5)
    losses.total.backward()
    assert not any(p.grad.any() for p in session.model.discriminators.parameters())
    alone = output._replace(rows={m: r[: len(r) * (m == "l")] for m, r in output.rows.items()})
    assert session.model.losses(alone, y).adversarial == 0


def test_the_mean_follows_each_step_and_evaluation_uses_it_alone():
    """And it changes no step: the weights are those of plain MSFN."""
    config = quick(batch_size=12)  # several batches
    plain, session = train.Session(config), train.Session(config, build(Averaged, decay=0.9))
    model, expected = session.model, None
    live = {n: p for n, p in model.named_parameters() if not n.startswith("mean.")}
    trained = [p for group in session.optimizer.param_groups for p in group["params"]]
    assert set(map(id, trained)) == set(map(id, live.values()))
    for batch in train.loader(session.segments["train"], session.config, 0):
        for each in plain, session:
            torch.manual_seed(0)
            train.train_step(each, batch)
        weights = {name: p.detach().clone() for name, p in live.items()}
        before = expected or weights
        expected = {name: 0.9 * before[name] + 0.1 * w for name, w in weights.items()}
    assert all(torch.equal(p, weights[name]) for name, p in plain.model.named_parameters())
    model.eval()
    evaluated = model(batch.inputs, batch.video).prediction
    for name, p in model.mean.named_parameters():
        close(p, expected[name], atol=1e-6)
        assert not p.requires_grad
        live[name].data.zero_()
    assert torch.equal(model(batch.inputs, batch.video).prediction, evaluated)


def test_the_game_moves_generators_and_discriminators_alone(tmp_path, monkeypatch, capsys):
    states = []

    def measure(model, valid, measure=game.measure):
        states.append({name: p.detach().clone() for name, p in model.named_parameters()})
        return measure(model, valid)

    monkeypatch.setattr(game, "measure", measure)
    monkeypatch.setattr(game, "GAMES", [("literal", 0.0), ("bounded", 0.0), ("bounded", 10.0)])
    game.main(["--steps", "1", "--seeds", "1", "--", "--d", "16"])
    start, *ends = states
    for end in ends:
        moved = {n.split(".")[0] for n, p in start.items() if not torch.equal(p, end[n])}
        assert moved == {"generators", "discriminators"}
    judges = [{n: p for n, p in end.items() if n.startswith("disc")} for end in ends]
    for one, two in itertools.combinations(judges, 2):  # form and penalty reach the game
        assert not all(torch.allclose(one[n], two[n]) for n in one)
    assert capsys.readouterr().out.count("\n| ") == 2 + 1 + 3  # head, rule; before; three games


# ── Eq. 9 in O(B²) memory ─────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("ties", [False, True])
@given(seeds, labels, st.sampled_from([0.0, 0.5, 1.0, 2.0]), st.sampled_from(["mean", "sum"]))
def test_counting_triplets_gives_the_loss_and_its_gradient(ties, seed, y, margin, reduction):
    """On a line of whole numbers rows are equal and d_an = d_ap + δ: gradient 0 in both forms."""
    h = normal(seed, len(y), 1).mul(2).round() if ties else normal(seed, len(y), 5)
    h, y = h.requires_grad_(), torch.tensor(y)
    both = [form(h, y, margin, reduction) for form in (msfn.triplet_loss, triplet_loss_large)]
    close(*both)
    close(*(torch.autograd.grad(each, h)[0] for each in both))


def test_counting_in_half_precision_and_with_wrong_arguments():
    h, y = 100 * normal(0, 300, 8).float(), torch.arange(300) % 2
    with torch.autocast("cpu", torch.bfloat16):
        close(triplet_loss_large(h, y), triplet_loss_large(h.double(), y), atol=1e-3)
    assert triplet_loss_large(h.half(), y).dtype == torch.float32
    for wrong in ((h, y.double()), (h[None], y[None]), (h, y[:2]), (h, y, 1.0, "no")):
        with pytest.raises(ValueError, match="must be"):
            triplet_loss_large(*wrong)
