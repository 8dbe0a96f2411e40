"""Tests that bite: for each equation one oracle in plain loops and a few laws.

README's table names them beside Eqs. 1–16. Sizes are pairwise different, so that a wrong axis cannot
pass; structure is drawn by hypothesis, values are seeded. Then the metrics, one training run, README.
"""

import ast
import functools
import itertools
import json
import math
import re
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

import data
import msfn
import plumbing
import train
from msfn import MODALITIES, MSFN, MSFNConfig
from plumbing import encoders
from plumbing.packing import Packed
from plumbing.runs import RunFolder

settings.register_profile("msfn", deadline=None, derandomize=True, database=None, max_examples=25)
settings.load_profile("msfn")
torch.set_num_threads(1)  # the tensors are tiny: threads only wait for each other

HERE = Path(__file__).resolve().parent

seeds = st.integers(0, 2**31 - 1)
floats = functools.partial(st.floats, allow_subnormal=False)  # train.prepare flushes those to 0
labels = st.lists(
    st.sampled_from([-3.0, -1.5, -1.0, -0.4, 0.0, 0.5, 0.6, 1.0, 2.5, 3.0]), min_size=1, max_size=9
)


def normal(seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def features(seed, B, d=4):
    """{m: (B, d)} in float64, different in each modality"""
    return {m: normal(seed + i, B, d) for i, m in enumerate(MODALITIES)}


def scores(seed, B):
    """logits[m][k]: (B,), nine different vectors"""
    values = iter(normal(seed, 9, B))
    return {m: {k: next(values) for k in MODALITIES} for m in MODALITIES}


def close(a, b, atol=1e-9):
    torch.testing.assert_close(
        torch.as_tensor(a), torch.as_tensor(b), atol=atol, rtol=1e-6, check_dtype=False
    )


# ── Eqs. 1–3: embedding ───────────────────────────────────────────────────────────────────────────

lengths_lists = st.lists(st.integers(0, 5), min_size=1, max_size=6)


@given(seeds, lengths_lists, st.integers(0, 3))
def test_lstms_read_each_sequence_as_if_alone(seed, lengths, extra):
    """Eqs. 1, 2: the outputs at the two ends; whatever the padding is, it changes nothing."""
    block = msfn.LSTMs(3, 7, width=2).double().eval()
    X = normal(seed + 99, len(lengths), max(1, *lengths, 0) + extra, 3)
    for i, n in enumerate(lengths):
        X[i, :n] = normal(seed + i, n, 3)
    x = block(X, torch.tensor(lengths))
    for i, n in enumerate(lengths):
        end = torch.zeros(4, dtype=torch.float64)
        if n:
            there, back = block.forward_lstm(X[i, :n])[0], block.backward_lstm(X[i, :n].flip(0))[0]
            end = torch.cat([there[-1], back[-1]])
        close(x[i], block.dense(end))
    with pytest.raises(IndexError):
        block(X, torch.tensor(lengths) + X.shape[1] + 1)


@given(seeds, st.permutations(range(5)))
def test_lstms_follow_the_order_of_the_batch(seed, order):
    block = msfn.LSTMs(3, 7, width=2).double().eval()
    X, lengths = normal(seed, 5, 6, 3), torch.tensor([6, 0, 2, 1, 5])
    close(block(X[order], lengths[order]), block(X, lengths)[order])


def tiny_bert(seed=0):
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": 50,
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 12,
    }
    return BertModel(BertConfig(**sizes, max_position_embeddings=16))


def tiny_roberta():
    torch.manual_seed(0)
    sizes = tiny_bert().config.to_dict()
    sizes = {name: sizes[name] for name in sizes if name.endswith(("size", "layers", "heads"))}
    return RobertaModel(RobertaConfig(**sizes, max_position_embeddings=16, pad_token_id=1))


ENCODERS = {"bert": tiny_bert, "packed": lambda: Packed(tiny_bert(), 6), "roberta": tiny_roberta}


@given(seeds, lengths_lists, st.integers(0, 3), st.sampled_from(["mean", "cls"]))
@pytest.mark.parametrize("kind", ENCODERS)
def test_berts_read_each_sentence_as_if_alone(kind, seed, lengths, extra, pooling):
    """Eq. 3: the mean, or the first, of the true tokens' last states; no words: the bias."""
    block = msfn.BERTs(ENCODERS[kind](), 7, pooling).double().eval()
    alone = getattr(block.bert, "encoder", None) if kind == "packed" else block.bert
    shape = len(lengths), max(1, *lengths, 0) + extra
    ids = torch.randint(5, 50, shape, generator=torch.Generator().manual_seed(seed))
    x = block(ids, torch.tensor(lengths))
    for i, n in enumerate(lengths):
        pooled = torch.zeros(8, dtype=torch.float64)
        if n:
            states = alone(input_ids=ids[i : i + 1, :n]).last_hidden_state[0]
            pooled = states.mean(0) if pooling == "mean" else states[0]
        close(x[i], block.dense(pooled))


def test_berts_leave_no_parameter_without_gradient():
    block = msfn.BERTs(encoders.pack(tiny_bert()), 7)
    block(torch.ones(3, 4, dtype=torch.long), torch.tensor([4, 1, 0])).sum().backward()
    assert all(p.grad is not None for p in block.parameters())


# ── Eqs. 4, 11: generators and decoders ───────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "block",
    [msfn.Generator(5, dropout=0), msfn.Decoder(5), msfn.Discriminator(5)],
    ids=lambda b: type(b).__name__,
)
def test_blocks_work_row_by_row(block):
    """Eqs. 4, 11: segment i is unaffected by segment j, in training too."""
    block.double()
    x = normal(0, 6, 5)
    close(block(x), torch.stack([block(row[None])[0] for row in x]))
    assert block(x).shape == ((6,) if isinstance(block, msfn.Discriminator) else (6, 5))


# ── Eqs. 5–8: adversarial loss ────────────────────────────────────────────────────────────────────


def each_game(logits, form="literal"):
    """{m: L_m of Eqs. 5–7}"""
    return {
        m: msfn.minimax_loss(row[m], [z for k, z in row.items() if k != m], form)
        for m, row in logits.items()
    }


def log_sigmoid(z):
    return -math.log1p(math.exp(-z))


@given(seeds, st.integers(1, 6), st.sampled_from(["literal", "bounded"]))
def test_adversarial_loss_term_by_term(seed, B, form):
    """Eqs. 5–7 for each modality by name, in loops; Eq. 8 their mean."""
    logits = scores(seed, B)
    total, each = msfn.adversarial_loss(logits, form), each_game(logits, form)
    others = {"l": ("v", "a"), "a": ("v", "l"), "v": ("a", "l")}
    for m, (k1, k2) in others.items():
        expected = 0.0
        for i in range(B):
            expected += log_sigmoid(logits[m][m][i].item())
            for k in (k1, k2):
                z = logits[m][k][i].item()
                expected += (
                    -log_sigmoid(z) if form == "literal" else math.log(1 - 1 / (1 + math.exp(-z)))
                )
        close(each[m], expected / B)
    close(total, (each["l"] + each["a"] + each["v"]) / 3)


@given(seeds, st.integers(1, 6), st.sampled_from(["literal", "bounded"]))
def test_adversarial_loss_has_the_signs_of_the_game(seed, B, form):
    """L^a rises with D(real) and falls with D(fake): ascend to tell apart, descend to deceive."""
    logits = scores(seed, B)
    for m, k in itertools.product(MODALITIES, MODALITIES):
        logits[m][k].requires_grad_()
    msfn.adversarial_loss(logits, form).backward()
    for m, k in itertools.product(MODALITIES, MODALITIES):
        assert (logits[m][k].grad > 0).all() if k == m else (logits[m][k].grad < 0).all()


@given(seeds, st.permutations(MODALITIES), st.sampled_from(["literal", "bounded"]))
def test_adversarial_loss_follows_a_relabelling(seed, names, form):
    logits, new = scores(seed, 4), dict(zip(MODALITIES, names, strict=True))
    renamed = {new[m]: {new[k]: z for k, z in row.items()} for m, row in logits.items()}
    close(msfn.adversarial_loss(logits, form), msfn.adversarial_loss(renamed, form))
    for m, value in each_game(logits, form).items():
        close(value, each_game(renamed, form)[new[m]])


def test_adversarial_loss_at_chance_and_at_the_extremes():
    chance = {m: {k: torch.zeros(3) for k in MODALITIES} for m in MODALITIES}
    close(msfn.adversarial_loss(chance, "literal"), math.log(2))
    close(msfn.adversarial_loss(chance, "bounded"), -3 * math.log(2), atol=1e-6)
    for z in (-1e4, 1e4):
        extreme = {
            m: {k: torch.full((3,), z, requires_grad=True) for k in MODALITIES} for m in MODALITIES
        }
        for form in ("literal", "bounded"):
            loss = msfn.adversarial_loss(extreme, form)
            loss.backward()
            assert loss.isfinite() and extreme["a"]["v"].grad.isfinite().all()
    perfect = {
        m: {k: torch.full((3,), 1e4 if k == m else -1e4) for k in MODALITIES} for m in MODALITIES
    }
    assert msfn.adversarial_loss(perfect, "literal") == 2e4  # unbounded above
    assert msfn.adversarial_loss(perfect, "bounded") == 0  # bounded


def test_adversarial_loss_of_a_modality_without_samples():
    """E is over each modality's own samples: without any, its terms and its own game vanish."""
    logits = scores(0, 4)
    for m in MODALITIES:
        logits[m]["v"] = logits[m]["v"][:0]
    each = each_game(logits)
    assert each["v"] == 0
    lone = msfn.adversarial_loss({"l": {k: logits["l"][k][: 4 * (k == "l")] for k in MODALITIES}})
    assert lone == 0  # nothing but reals
    close(
        each["a"],
        nn.functional.logsigmoid(logits["a"]["a"]).mean()
        - nn.functional.logsigmoid(logits["a"]["l"]).mean(),
    )


@pytest.mark.parametrize("form", ["literal", "bounded"])
def test_one_optimiser_plays_both_sides(form):
    """A step on the discriminators alone raises L^a; a step on everything else alone lowers L."""
    batch = small_batch()
    for side, sign in ((0, -1), (1, +1)):
        model = small_model(adversarial=form, alpha=1.0).eval()
        groups = model.parameter_groups()
        for p in groups[1 - side]["params"]:
            p.requires_grad_(False)
        optimizer = torch.optim.SGD(groups, lr=1e-3)
        before = model.losses(model(batch.inputs, batch.video), batch.y, batch.lengths)
        before.total.backward()
        optimizer.step()
        after = model.losses(model(batch.inputs, batch.video), batch.y, batch.lengths)
        change = after.adversarial - before.adversarial if side else after.total - before.total
        assert sign * change.item() > 0


def test_the_discriminators_are_the_side_that_ascends():
    model = small_model()
    rest, adversary = model.parameter_groups()
    assert adversary["maximize"] and not rest.get("maximize")
    assert {id(p) for p in adversary["params"]} == {
        id(p) for p in model.discriminators.parameters()
    }
    assert len(rest["params"]) + len(adversary["params"]) == len(list(model.parameters()))


# ── Eqs. 9, 10: triplet loss ──────────────────────────────────────────────────────────────────────


def triplets_by_loops(h, y, margin):
    """-> (sum of the hinges, number of valid triplets)"""
    h, y, n = h.tolist(), y.tolist(), len(y)
    total, count = 0.0, 0
    for a, p, q in itertools.product(range(n), range(n), range(n)):
        if a != p and y[a] == y[p] != y[q]:
            total += max(math.dist(h[a], h[p]) - math.dist(h[a], h[q]) + margin, 0)
            count += 1
    return total, count


@given(seeds, labels, st.sampled_from([0.2, 1.0, 3.0]))
def test_triplet_loss_by_three_loops(seed, y, margin):
    h, classes = normal(seed, len(y), 5), msfn.sentiment_classes(torch.tensor(y))
    total, count = triplets_by_loops(h, classes, margin)
    close(msfn.triplet_loss(h, classes, margin, "sum"), total)
    close(msfn.triplet_loss(h, classes, margin), total / max(count, 1))


@given(seeds, labels)
def test_triplet_loss_gradient(seed, y):
    """Against autograd through the loops, written with differentiable distances."""
    h = normal(seed, len(y), 3).requires_grad_()
    classes = msfn.sentiment_classes(torch.tensor(y))
    total = h.sum() * 0
    for a, p, q in itertools.product(range(len(y)), repeat=3):
        if a != p and classes[a] == classes[p] != classes[q]:
            total = total + ((h[a] - h[p]).norm() - (h[a] - h[q]).norm() + 0.7).clamp(min=0)
    expected = torch.autograd.grad(total, h)[0]
    close(torch.autograd.grad(msfn.triplet_loss(h, classes, 0.7, "sum"), h)[0], expected)


@given(seeds, labels, floats(0.1, 9))
def test_triplet_loss_laws(seed, y, scale):
    h, classes = normal(seed, len(y), 3), msfn.sentiment_classes(torch.tensor(y))
    loss = msfn.triplet_loss(h, classes, 0.5)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    rotation = torch.linalg.qr(normal(seed + 1, 3, 3)).Q
    assert loss >= 0
    close(msfn.triplet_loss(h[order], classes[order], 0.5), loss)
    close(msfn.triplet_loss(h @ rotation + normal(seed + 2, 3), classes, 0.5), loss)
    close(msfn.triplet_loss(scale * h, classes, scale * 0.5), scale * loss)
    assert msfn.triplet_loss(h, classes, 0.6) >= loss


@given(seeds, labels, st.sampled_from([0.2, 1.0, 3.0]))
def test_the_triplet_loss_of_the_docstring_is_the_same(seed, y, margin):
    """The B × B × B form that a reader meets first, executed as it stands there."""
    h, y = normal(seed, len(y), 5), msfn.sentiment_classes(torch.tensor(y))
    lines = [line for line in msfn.triplet_loss.__doc__.splitlines() if line.startswith(" " * 8)]
    code = textwrap.dedent(
        "\n".join(lines[: 1 + next(i for i, s in enumerate(lines) if "loss =" in s)])
    )
    names = {"torch": torch, "h": h, "y": y, "margin": margin}
    exec(code, names)  # noqa: S102 (our own docstring)
    close(msfn.triplet_loss(h, y, margin), names["loss"].nan_to_num())


def test_a_triplet_exactly_at_the_margin_counts_alike_on_both_sides():
    """d_an = d_ap + δ: value 0, and no pull without its push."""
    h = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0, 0, 1])
    close(msfn.triplet_loss(h, y, 2.0, "sum"), triplets_by_loops(h, y, 2.0)[0])
    gradient = torch.autograd.grad(msfn.triplet_loss(h, y, 2.0, "sum"), h)[0]
    close(gradient.flatten(), gradient_at_ties(h, y, 2.0))


def gradient_at_ties(h, y, margin):
    """By loops, with the strict d_an < d_ap + δ."""
    h = h.detach().requires_grad_()
    total = h.sum() * 0
    for a, p, q in itertools.product(range(len(y)), repeat=3):
        if a != p and y[a] == y[p] != y[q]:
            term = (h[a] - h[p]).norm() - (h[a] - h[q]).norm() + margin
            total = total + term * (term > 0)
    return torch.autograd.grad(total, h)[0].flatten()


def test_triplet_loss_takes_integer_classes_and_is_exact_in_the_dtype_of_h():
    h, y = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64), torch.tensor([0, 0, 1])
    # anchors 0 and 1: 1 − 3 + 2.3 and 1 − 2 + 2.3
    assert abs(msfn.triplet_loss(h, y, 2.3).item() - 0.8) < 1e-15
    for wrong in ((h, y.double()), (h[None], y[None]), (h, y[:2])):
        with pytest.raises(ValueError, match=r"h must be \(B, d\)"):
            msfn.triplet_loss(*wrong)


@pytest.mark.parametrize("y", [[], [1], [1, 1, 1], [1, 2, 3]])
def test_triplet_loss_without_a_valid_triplet_is_zero(y):
    h = normal(0, len(y), 3).requires_grad_()
    loss = msfn.triplet_loss(h, torch.tensor(y, dtype=torch.long))
    loss.backward()
    assert loss == 0 and (h.grad == 0).all()


def test_triplet_loss_of_equal_rows_has_finite_gradients():
    h = torch.ones(6, 3, requires_grad=True)
    loss = msfn.triplet_loss(h, torch.tensor([0, 0, 1, 1, 2, 2]), margin=0.4)
    loss.backward()
    close(loss, 0.4, atol=1e-6)
    assert h.grad.isfinite().all()


def test_triplet_loss_in_float32_far_from_the_origin():
    """Rows around 100: cdist's default, the matrix product, is off by about 1 there."""
    h, y = normal(0, 64, 16) * 0.5 + 100, torch.arange(64) % 5
    total, count = triplets_by_loops(h.float(), y, 1.0)
    close(msfn.triplet_loss(h.float(), y), total / count, atol=1e-4)


def test_distance_loss_is_the_mean_over_modalities():
    """Eq. 10, with modalities that hold different segments."""
    h = {m: normal(i, 5 + i, 3) for i, m in enumerate(MODALITIES)}
    y = {m: torch.arange(5 + i) % 2 for i, m in enumerate(MODALITIES)}
    expected = [t / c for t, c in (triplets_by_loops(h[m], y[m], 0.3) for m in MODALITIES)]
    close(msfn.distance_loss(h, y, 0.3), sum(expected) / 3)


@given(st.lists(floats(-4, 4), min_size=1))
def test_sentiment_classes(y):
    seven, sign = (
        msfn.sentiment_classes(torch.tensor(y, dtype=torch.float64), kind)
        for kind in ("seven", "sign")
    )
    assert seven.tolist() == [round(max(-3, min(3, v))) for v in y]
    assert sign.tolist() == [(v > 0) - (v < 0) for v in y]


# ── Eq. 12: reconstruction loss ───────────────────────────────────────────────────────────────────


@given(seeds, st.integers(1, 5))
def test_reconstruction_loss_by_loops(seed, B):
    x, x_hat = features(seed, B), features(seed + 9, B)
    squares = [
        (x[m][i, j] - x_hat[m][i, j]).item() ** 2
        for m in MODALITIES
        for i in range(B)
        for j in range(4)
    ]
    close(msfn.reconstruction_loss(x, x_hat, "sum"), sum(squares) / 3)
    close(msfn.reconstruction_loss(x, x_hat), sum(squares) / 3 / (B * 4))
    assert msfn.reconstruction_loss(x, x) == 0
    doubled = {m: x[m] + 2 * (x_hat[m] - x[m]) for m in MODALITIES}
    close(msfn.reconstruction_loss(x, doubled), 4 * msfn.reconstruction_loss(x, x_hat))


def test_reconstruction_loss_of_modalities_without_a_segment():
    x, x_hat = features(0, 3), features(9, 3)
    nothing = {m: v[:0] for m, v in x.items()}
    assert msfn.reconstruction_loss(nothing, nothing).item() == 0
    rest = {m: (x[m] - x_hat[m]).square().mean() for m in "vl"}
    x["a"], x_hat["a"] = nothing["a"], nothing["a"]
    close(msfn.reconstruction_loss(x, x_hat), (rest["v"] + rest["l"]) / 3)


# ── Eqs. 13–15: fusion ────────────────────────────────────────────────────────────────────────────


@given(
    seeds,
    st.lists(st.integers(-1, 2), min_size=1, max_size=6),
    st.sampled_from(["video", "batch", "segment"]),
)
def test_self_attention_by_double_loop(seed, video, over):
    """Eqs. 13, 14, and what N is: segment i attends to those that the reading allows."""
    block = msfn.SelfAttention(5).double()
    for i, p in enumerate(block.parameters()):
        p.data = normal(seed + 1 + i, 5, 5)
    h = normal(seed, len(video), 5)
    q, k, v = (
        [p.data @ row for row in h] for p in (block.w_q.weight, block.w_k.weight, block.w_v.weight)
    )
    F = block(h, msfn.attention_mask(torch.tensor(video), over))
    for i, mine in enumerate(video):
        same = [j for j, other in enumerate(video) if j == i or (other == mine and mine >= 0)]
        allowed = {"video": same, "batch": range(len(video)), "segment": [i]}[over]
        weights = {j: math.exp((q[i] @ k[j]).item() / math.sqrt(5)) for j in allowed}
        close(F[i], sum(w * v[j] for j, w in weights.items()) / sum(weights.values()))


@given(seeds, st.permutations(range(5)))
def test_self_attention_laws(seed, order):
    block, everyone = msfn.SelfAttention(3).double(), torch.ones(5, 5, dtype=torch.bool)
    h = normal(seed, 5, 3)
    close(block(h[order], everyone), block(h, everyone)[order])
    close(block(h[:1], everyone[:1, :1]), block.w_v(h[:1]))
    equal = h[:1].expand(5, 3)
    close(block(equal, everyone), block.w_v(equal))


def test_fusion_predictor_by_hand():
    block, F = msfn.FusionPredictor(4, 3).double().eval(), normal(0, 6, 12)
    first, last = block[0], block[3]
    for row, y_hat in zip(F, block(F), strict=True):
        hidden = (first.weight @ row + first.bias).clamp(min=0)
        close(y_hat, (last.weight[0] @ hidden + last.bias)[0])


@given(labels, seeds)
def test_task_loss_by_hand(y, seed):
    y_hat = normal(seed, len(y))
    squares = [(a - b) ** 2 for a, b in zip(y, y_hat.tolist(), strict=True)]
    y = torch.tensor(y, dtype=torch.float64)
    close(msfn.task_loss(y, y_hat, "sum"), sum(squares))
    close(msfn.task_loss(y, y_hat), sum(squares) / len(y))


# ── Eq. 16 and the whole model ────────────────────────────────────────────────────────────────────


@given(floats(0, 9), floats(0, 9), floats(0, 9))
def test_total_loss_by_hand(alpha, beta, gamma):
    """Eq. 16; a weight of 0 takes its term out, which is a row of Table 4."""
    model, batch = small_model(alpha=alpha, beta=beta, gamma=gamma).eval(), small_batch()
    losses = model.losses(model(batch.inputs, batch.video), batch.y, batch.lengths)
    terms = alpha * losses.adversarial + beta * losses.distance + gamma * losses.reconstruction
    close(losses.total, losses.task + terms, atol=1e-4)


class SmallBatch:
    """Six segments of videos 0, 0, 1, 1, 1 and unknown, with empty sequences in each modality."""

    def __init__(self):
        self.y = torch.tensor([1.0, 1.2, -2.0, -1.8, 1.0, 2.9])
        self.video = torch.tensor([0, 0, 1, 1, 1, -1])
        self.lengths = {"a": [4, 0, 2, 3, 1, 4], "v": [2, 1, 5, 0, 0, 3], "l": [3, 2, 1, 4, 2, 0]}
        self.lengths = {m: torch.tensor(n) for m, n in self.lengths.items()}
        ids = torch.randint(0, 50, (6, 4), generator=torch.Generator().manual_seed(1))
        values = {"a": normal(0, 6, 4, 3).float(), "v": normal(1, 6, 5, 2).float(), "l": ids}
        self.inputs = {m: (values[m], self.lengths[m]) for m in MODALITIES}

    def select(self, rows):
        return {
            m: (values[rows], lengths[rows]) for m, (values, lengths) in self.inputs.items()
        }, self.video[rows]


small_batch = SmallBatch


def small_model(**choices):
    torch.manual_seed(0)
    return MSFN(MSFNConfig(d=6, lstm_width=4, **choices), {"a": 3, "v": 2}, tiny_bert())


def test_forward_connects_each_modality_to_its_own_blocks():
    model, batch = small_model().eval(), small_batch()
    out = model(batch.inputs, batch.video)
    mask = msfn.attention_mask(batch.video, "video")
    for m in MODALITIES:
        close(out.x[m], model.embeddings[m](*batch.inputs[m]))
        close(out.h[m], model.generators[m](out.x[m]))
        close(out.x_hat[m], model.decoders[m](out.h[m]))
        for k in MODALITIES:
            close(out.logits[m][k], model.discriminators[m](out.h[k]))
    F = {m: model.attentions[m](out.h[m], mask) for m in MODALITIES}
    close(out.prediction, model.predictor(torch.cat([F["a"], F["v"], F["l"]], dim=1)))


CHOICES = {
    "adversarial": ["literal", "bounded"],
    "classes": ["seven", "sign"],
    "triplet_features": ["h", "x"],
    "reduction": ["mean", "sum"],
    "detach_target": [False, True],
    "margin": [0.5, 1.0],
}


@given(st.fixed_dictionaries({name: st.sampled_from(values) for name, values in CHOICES.items()}))
def test_losses_are_the_equations_over_the_segments_that_have_the_modality(choices):
    """Each choice reaches its equation; an empty sequence is no sample of its modality."""
    model, batch = small_model(alpha=0.3, beta=0.7, gamma=1.1, **choices).eval(), small_batch()
    out, have = model(batch.inputs, batch.video), {m: batch.lengths[m] > 0 for m in MODALITIES}
    losses = model.losses(out, batch.y, batch.lengths)
    logits = {m: {k: out.logits[m][k][have[k]] for k in MODALITIES} for m in MODALITIES}
    near, reduction = getattr(out, choices["triplet_features"]), choices["reduction"]
    classes = msfn.sentiment_classes(batch.y, choices["classes"])
    hinge = [
        msfn.triplet_loss(near[m][have[m]], classes[have[m]], choices["margin"], reduction)
        for m in MODALITIES
    ]
    x, x_hat = ({m: part[m][have[m]] for m in MODALITIES} for part in (out.x, out.x_hat))
    close(losses.task, msfn.task_loss(batch.y, out.prediction, reduction), atol=1e-6)
    close(losses.adversarial, msfn.adversarial_loss(logits, choices["adversarial"]), atol=1e-6)
    close(losses.distance, sum(hinge) / 3, atol=1e-5)
    close(losses.reconstruction, msfn.reconstruction_loss(x, x_hat, reduction), atol=1e-6)
    reaches_x = torch.autograd.grad(losses.reconstruction, out.x["a"], retain_graph=True)[0]
    detached = {m: value.detach() for m, value in x.items()}
    detached = msfn.reconstruction_loss(detached, x_hat, reduction)
    same = torch.equal(reaches_x, torch.autograd.grad(detached, out.x["a"], retain_graph=True)[0])
    assert same == choices["detach_target"]
    expected = (
        losses.task + 0.3 * losses.adversarial + 0.7 * losses.distance + 1.1 * losses.reconstruction
    )
    close(losses.total, expected, atol=1e-5)


def test_a_prediction_is_independent_of_other_videos():
    """Whatever else shares the batch: the reading of Eq. 13 that is the default."""
    model, batch = small_model().eval(), small_batch()
    whole = model(batch.inputs, batch.video).prediction
    for rows in ([0, 1], [2, 3, 4], [5], [5, 4, 3, 2], [1, 0, 5]):
        close(model(*batch.select(torch.tensor(rows))).prediction, whole[rows], atol=1e-5)
    assert not torch.allclose(
        model(*batch.select(torch.tensor([2]))).prediction, whole[[2]], atol=1e-4
    )
    alone = model(batch.inputs, torch.full((6,), -1)).prediction  # no video known
    close(model(*batch.select(torch.tensor([3]))).prediction, alone[[3]], atol=1e-5)


def test_an_absent_modality_leaves_the_loss_finite():
    model, batch = small_model(), small_batch()
    for m in MODALITIES:
        values, lengths = batch.inputs[m]
        batch.inputs[m] = (values[:, :1], lengths * 0)
        batch.lengths[m] = lengths * 0
        losses = model.losses(model(batch.inputs, batch.video), batch.y, batch.lengths)
        losses.total.backward()
        assert losses.total.isfinite()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_observed_is_what_the_discriminators_say():
    model, batch = small_model().eval(), small_batch()
    out = model(batch.inputs, batch.video)
    have = {m: batch.lengths[m] > 0 for m in MODALITIES}
    real = torch.cat([out.logits[m][m][have[m]].sigmoid() for m in MODALITIES]).mean()
    pairs = [(m, k) for m in MODALITIES for k in MODALITIES if m != k]
    fake = torch.cat([out.logits[m][k][have[k]].sigmoid() for m, k in pairs]).mean()
    seen = model.observed(out, batch.lengths)
    close(seen["d_real"], real, atol=1e-6)
    close(seen["d_fake"], fake, atol=1e-6)
    only_text = {m: n * (m == "l") for m, n in batch.lengths.items()}
    assert model.observed(out, only_text) == {}


def test_dropout_and_pooling_reach_the_components():
    model = small_model(dropout=0.3, pooling="cls")
    own = [block for name, block in model.named_modules() if ".bert." not in name]
    rates = [block.p for block in own if isinstance(block, torch.nn.Dropout)]
    assert len(rates) == 7 and set(rates) == {0.3}  # three embeddings and generators, f
    assert model.embeddings["l"].pooling == "cls"


@pytest.mark.parametrize(
    "call",
    (
        lambda: msfn.BERTs(tiny_bert(), 7, "max")(torch.ones(1, 1).long(), torch.ones(1).long()),
        lambda: msfn.minimax_loss(torch.zeros(2), [], "max"),
        lambda: msfn.sentiment_classes(torch.zeros(2), "max"),
        lambda: msfn.triplet_loss(torch.zeros(2, 1), torch.zeros(2).long(), reduction="max"),
        lambda: msfn.reconstruction_loss(features(0, 2), features(1, 2), "max"),
        lambda: msfn.attention_mask(torch.zeros(2), "max"),
        lambda: msfn.task_loss(torch.zeros(2), torch.zeros(2), "max"),
    ),
)
def test_a_component_refuses_a_choice_that_it_does_not_have(call):
    with pytest.raises((KeyError, ValueError), match="max"):
        call()


def test_a_component_works_where_its_text_alone_is_copied():
    """Each with the functions that it calls and torch, and nothing else of this file."""
    tree = ast.parse(Path(msfn.__file__).read_text(encoding="utf-8"))
    parts = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    calls = {"adversarial_loss": ["minimax_loss"], "distance_loss": ["triplet_loss"]}
    x, y, z, video = normal(0, 5, 4), torch.tensor([0, 0, 1, 1, 2]), scores(0, 5), torch.zeros(5)
    mask, pair = torch.ones(5, 5, dtype=torch.bool), ({"a": x}, {"a": 2 * x})
    sequences = normal(1, 5, 3, 4), torch.tensor([3, 1, 0, 2, 3])
    ids = torch.ones(5, 3).long(), sequences[1]
    uses = {
        "LSTMs": lambda block: block(4, 6, 2).double().eval()(*sequences),
        "BERTs": lambda block: block(tiny_bert(), 6).double().eval()(*ids),
        "Generator": lambda block: block(4, 0.0).double()(x),
        "Discriminator": lambda block: block(4).double()(x),
        "minimax_loss": lambda loss: loss(z["a"]["a"], [z["a"]["v"]]),
        "adversarial_loss": lambda loss: loss(z, "bounded"),
        "gradient_penalty": lambda penalty: penalty({"a": lambda h: h @ x[0]}, {"a": x}),
        "sentiment_classes": lambda classes: classes(x[:, 0]),
        "triplet_loss": lambda loss: loss(x, y),
        "distance_loss": lambda loss: loss({"a": x}, {"a": y}),
        "Decoder": lambda block: block(4).double()(x),
        "reconstruction_loss": lambda loss: loss(*pair),
        "SelfAttention": lambda block: block(4).double()(x, mask),
        "attention_mask": lambda attend: attend(video),
        "FusionPredictor": lambda block: block(4, 1, 0.0).double()(x),
        "task_loss": lambda loss: loss(x[:, 0], x[:, 1]),
    }
    assert set(uses) == set(parts) - {"option", "MSFNConfig", "Output", "Losses", "MSFN"}
    for name, use in uses.items():
        names = {"torch": torch, "nn": nn, "F": nn.functional, "Tensor": torch.Tensor}
        for each in [*calls.get(name, []), name]:
            exec(compile(ast.Module([parts[each]], []), each, "exec"), names)  # noqa: S102
        results = []
        for copy in (names[name], getattr(msfn, name)):
            torch.manual_seed(0)
            results.append(use(copy))
        assert torch.equal(*results), name


def test_walls():
    """plumbing/ knows no equation: nothing of the top level. msfn.py knows torch alone."""
    top = {path.stem for path in HERE.glob("*.py")} | {"experiments"}
    for path in [HERE / "msfn.py", *HERE.glob("plumbing/*.py")]:
        if path.name.startswith("test_"):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        nodes = list(ast.walk(tree))
        found = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
        found |= {n.module for n in nodes if isinstance(n, ast.ImportFrom)}
        roots = {name.split(".")[0] for name in found}
        assert not roots & top, path
        assert path.name != "msfn.py" or roots == {"torch", "dataclasses", "typing"}
    lines = (HERE / "msfn.py").read_text(encoding="utf-8").splitlines()
    assert lines.index("class LSTMs(nn.Module):") < 75


# ── Metrics ───────────────────────────────────────────────────────────────────────────────────────

pairs = st.lists(
    st.tuples(floats(-4, 4), st.sampled_from([-3, -2.6, -0.5, 0, 0, 0.4, 1, 2.5])),
    min_size=1,
    max_size=9,
)


def f1_by_loops(p, t):
    total = 0
    for c in (False, True):
        tp = sum(a == c and b == c for a, b in zip(p, t, strict=True))
        precision = tp / p.count(c) if p.count(c) else 0
        recall = tp / t.count(c) if t.count(c) else 0
        total += t.count(c) * (2 * precision * recall / (precision + recall) if tp else 0)
    return total / len(t)


@given(pairs)
def test_metrics_by_loops(pairs):
    p, t = map(list, zip(*pairs, strict=True))
    result, n = train.metrics(np.array(p), np.array(t)), len(p)
    assert result["mae"] == pytest.approx(sum(abs(a - b) for a, b in pairs) / n)
    for name, bound in (("acc7", 3), ("acc5", 2)):
        hits = sum(
            round(max(-bound, min(bound, a))) == round(max(-bound, min(bound, b))) for a, b in pairs
        )
        assert result[name] == pytest.approx(hits / n)
    p0, t0 = [a >= 0 for a in p], [b >= 0 for b in t]
    assert result["acc2_has0"] == pytest.approx(
        sum(a == b for a, b in zip(p0, t0, strict=True)) / n
    )
    assert result["f1_has0"] == pytest.approx(f1_by_loops(p0, t0))
    p1, t1 = [a > 0 for a, b in pairs if b != 0], [b > 0 for b in t if b != 0]
    if t1:
        assert result["acc2_non0"] == pytest.approx(
            sum(a == b for a, b in zip(p1, t1, strict=True)) / len(t1)
        )
        assert result["f1_non0"] == pytest.approx(f1_by_loops(p1, t1))
    else:
        assert math.isnan(result["acc2_non0"]) and math.isnan(result["f1_non0"])


@given(seeds, floats(0.1, 9), floats(-9, 9))
def test_correlation_laws(seed, scale, shift):
    p, t = normal(seed, 2, 11).numpy()
    assert train.metrics(p, t)["corr"] == pytest.approx(np.corrcoef(p, t)[0, 1])
    assert train.metrics(scale * p + shift, t)["corr"] == pytest.approx(train.metrics(p, t)["corr"])
    assert train.metrics(p * 0 + shift, t)["corr"] == 0


@given(pairs)
def test_the_two_conventions_differ_only_on_zeros(pairs):
    p, t = map(
        np.array, zip(*[(a, b) for a, b in pairs if a != 0 and b != 0] or [(1, 1)], strict=True)
    )
    result = train.metrics(p, t)
    assert result["acc2_has0"] == result["acc2_non0"] and result["f1_has0"] == result["f1_non0"]


# ── Training ──────────────────────────────────────────────────────────────────────────────────────


def test_the_model_overfits_eight_segments():
    """Gradients reach all that they should: 8 segments are learned by heart."""
    torch.manual_seed(0)
    model, y = small_model(dropout=0.0).eval(), torch.linspace(-3, 3, 8)
    ids = torch.randint(0, 50, (8, 4), generator=torch.Generator().manual_seed(1))
    inputs = {
        "a": (normal(0, 8, 4, 3).float(), torch.full((8,), 4)),
        "v": (normal(1, 8, 5, 2).float(), torch.full((8,), 5)),
        "l": (ids, torch.full((8,), 4)),
    }
    video = torch.full((8,), -1)
    lengths = {m: n for m, (_, n) in inputs.items()}
    optimizer = torch.optim.Adam(model.parameter_groups(), lr=3e-3)
    for _ in range(200):
        losses = model.losses(model(inputs, video), y, lengths)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
    assert train.metrics(model(inputs, video).prediction.detach().numpy(), y.numpy())["mae"] < 0.2


def quick(**typed):
    """The synthetic run of the README, cut short."""
    typed = {"epochs": 2, "d": 16, "lstm_width": 8, **typed}
    return train.Config(dataset="synthetic", **{**train.PRESETS["synthetic"], **typed})


@pytest.fixture(autouse=True, scope="module")
def one_synthetic_corpus():
    """Generated once: no test changes it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "synthetic", functools.cache(data.synthetic))
        yield


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return folder, [train.train(quick(runs=str(folder))) for _ in range(2)]


def test_same_seed_same_bits(two_runs):
    folder, (first, second) = two_runs
    assert first == second
    files = "bert config.json metrics.jsonl model.safetensors results.json standardizer.json"
    for name in ("synthetic-seed0", "synthetic-seed0-2"):
        assert sorted(p.name for p in (folder / name).iterdir()) == files.split()
    weights = [p.read_bytes() for p in sorted(folder.glob("*/model.safetensors"))]
    assert len(weights) == 2 and weights[0] == weights[1]


def test_a_run_folder_says_what_was_run_and_found(two_runs):
    folder = two_runs[0] / "synthetic-seed0"
    config = json.loads((folder / "config.json").read_text())
    assert train.Config(**config) == quick(runs=str(two_runs[0]))
    results = json.loads((folder / "results.json").read_text())
    keys = {f"{name}_{kind}" for name in ("acc2", "f1") for kind in ("has0", "non0")}
    assert set(results["test"]) == set(results["valid"]) == keys | {"mae", "corr", "acc7", "acc5"}
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [entry["epoch"] for entry in log] == [0, 1]
    best = min(log, key=lambda entry: entry["valid"]["mae"])
    assert results["epoch"] == best["epoch"] and results["valid"] == best["valid"]


def test_the_test_split_is_read_once_when_the_epoch_is_fixed(tmp_path, monkeypatch):
    """Item by item: nothing of test before the last of train and valid, and each segment once."""
    read, original = [], data.Segments.__getitem__

    def recorded(segments, i):
        read.append((splits[id(segments)], i))
        return original(segments, i)

    def prepared(*arguments, prepare=train.prepare):
        run = prepare(*arguments)
        splits.update({id(segments): split for split, segments in run.segments.items()})
        sizes.update({split: len(segments) for split, segments in run.segments.items()})
        return run

    splits, sizes = {}, {}
    monkeypatch.setattr(data.Segments, "__getitem__", recorded)
    monkeypatch.setattr(train, "prepare", prepared)
    train.train(quick(runs=str(tmp_path)))
    order = [split for split, _ in read]
    assert order[-sizes["test"] :] == ["test"] * sizes["test"] == [s for s in order if s == "test"]
    assert len({i for split, i in read if split == "test"}) == sizes["test"]


def test_a_search_does_not_read_the_test_split(tmp_path, monkeypatch):
    read, original = set(), train.predict

    def recorded(run, segments, config):
        read.add(next(name for name, part in run.segments.items() if part is segments))
        return original(run, segments, config)

    monkeypatch.setattr(train, "predict", recorded)
    results = train.train(quick(epochs=1, test=False, runs=str(tmp_path)))
    assert read == {"valid"} and "test" not in results


def test_what_a_newcomer_runs_first_listens_to_each_modality(tmp_path):
    """README's first command: without any modality MAE is at least 15 % higher; signs are right."""
    config = train.Config(dataset="synthetic", runs=str(tmp_path), **train.PRESETS["synthetic"])
    whole = train.train(config)["test"]
    assert whole["corr"] > 0.8
    run = train.prepare(config)
    RunFolder(tmp_path / "synthetic-seed0").load_weights(run.model)
    for m in MODALITIES:
        kept = "avl".replace(m, "")
        rest = data.Segments(run.segments["test"].split, run.tokenizer, run.standardizer, kept)
        assert train.metrics(*train.predict(run, rest, config))["mae"] > 1.15 * whole["mae"]
    texts = [
        "the movie was superb the acting was brilliant",
        "the movie was awful the plot was bad",
    ]
    none = {m: (torch.zeros(1, 1, d), torch.zeros(1).long()) for m, d in (("a", 12), ("v", 8))}
    good, bad = encoders.tokenize(run.tokenizer, texts)
    for ids, sign in ((good, 1), (bad, -1)):
        inputs = {**none, "l": (torch.tensor([ids]), torch.tensor([len(ids)]))}
        assert sign * run.model(inputs, torch.tensor([-1])).prediction > 0


def test_presets_are_table_1():
    """Typed by hand from the paper: d, α, β, γ, r, batch size, Drop."""
    names = ("d", "alpha", "beta", "gamma", "learning_rate", "batch_size", "dropout")
    table = {
        "mosi": (128, 0.2, 0.5, 0.2, 1e-4, 64, 0.1),
        "mosei": (256, 0.4, 0.3, 0.1, 1e-4, 16, 0.1),
    }
    for dataset, values in table.items():
        config, _ = train.parse(["--dataset", dataset])
        assert tuple(getattr(config, name) for name in names) == values
    assert train.parse([])[0] == train.parse(["--dataset", "mosi"])[0]


def test_typed_beats_preset_beats_default():
    config, _ = train.parse(["--dataset", "mosei", "--batch-size", "8", "--no-test"])
    assert (config.batch_size, config.d, config.margin) == (8, 256, train.Config().margin)
    assert not config.test and train.Config().test


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("--dataset mosi --data nowhere.pkl", "nowhere.pkl"),
        ("--dataset synthetic --data x.pkl", "x.pkl"),
        ("--dataset synthetic --device cuda:77", "cuda:77"),
        ("--dataset synthetic --modalities aw", "aw"),
        ("--dataset synthetic --epochs 0", "epochs"),
        ("--dataset synthetic --bert-learning-rate -1", "bert-learning-rate"),
        ("--dataset synthetic --learning-rate nan", "learning-rate"),
        ("--resume nowhere", "nowhere"),
        ("--resume nowhere --d 8", "--d"),
        ("--dataset imdb", "imdb"),
    ],
)
def test_what_a_user_does_wrong_ends_in_one_sentence(argv, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        code = plumbing.run(train.main, argv.split())
    except SystemExit as stop:  # argparse's own
        code = stop.code
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == 2 and said in error and "error:" in error
    assert not (tmp_path / "runs").exists()


def test_bf16_changes_the_forward_pass_and_leaves_the_losses_in_float32():
    logged = []
    for amp in ("off", "bf16"):
        run = train.prepare(quick())
        run.model.eval()
        config = quick(amp=amp)
        batch = next(iter(train.loader(run.segments["valid"], config)))
        optimizer = train.make_optimizer(run, config)
        logged.append(train.train_step(run, run.model, optimizer, config, batch))
    exact, rough = (torch.stack(list(row.values())) for row in logged)
    assert exact.dtype == rough.dtype == torch.float32 and not torch.equal(exact, rough)
    torch.testing.assert_close(exact, rough, atol=0.05, rtol=0.05)


def test_both_sides_are_clipped_by_themselves_and_bert_may_be_slower(monkeypatch):
    config = quick(clip=0.5, bert_learning_rate=1e-9)
    run = train.prepare(config)
    optimizer = train.make_optimizer(run, config)
    before = {n: p.detach().clone() for n, p in run.model.named_parameters()}
    clipped, clip = [], train.clip_grad_norm_

    def constant(parameters, norm):
        for p in parameters:
            p.grad = torch.full_like(p, 7.0 if norm == 0.5 else 1.0)
        clip(parameters, norm)
        clipped.append(sum(p.grad.square().sum() for p in parameters).sqrt())

    monkeypatch.setattr(train, "clip_grad_norm_", constant)
    batch = next(iter(train.loader(run.segments["valid"], config)))
    train.train_step(run, run.model, optimizer, config, batch)
    close(clipped, [0.5, 0.5], atol=1e-4)
    for name, parameter in run.model.named_parameters():
        step = parameter.detach() - before[name]  # Adam's first step is the rate, times the sign
        rate = 1e-9 if ".bert." in name else config.learning_rate
        expected = torch.full_like(step, rate if "discriminators" in name else -rate)
        torch.testing.assert_close(step, expected, rtol=0.02, atol=2e-7)


def test_what_is_observed_stands_in_the_log(tmp_path):
    seen = []

    def observe(run, config):
        seen.append(run.model.training)
        return {"epoch_seen": len(seen)}

    train.train(quick(runs=str(tmp_path), name="seen"), observe=observe)
    lines = (tmp_path / "seen" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["observed"]["epoch_seen"] for line in lines] == [1, 2]


def test_a_loss_that_is_not_finite_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(msfn, "distance_loss", lambda *_: torch.tensor(math.nan))
    with pytest.raises(plumbing.UserError, match=r"distance is nan in epoch 0, segments synth"):
        train.train(quick(runs=str(tmp_path)))
    assert not list(tmp_path.glob("*/model.safetensors"))


def test_predictions_that_are_not_finite_end_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "metrics", lambda *_: {"mae": math.nan})
    with pytest.raises(plumbing.UserError, match="valid MAE is nan after epoch 0"):
        train.train(quick(runs=str(tmp_path)))


def test_patience_counts_the_epochs_without_a_better_one(tmp_path, monkeypatch):
    found = iter([0.9, 0.8, 0.8, 0.85, 0.1, 0.1])
    monkeypatch.setattr(train, "train_epoch", lambda *_: {})
    monkeypatch.setattr(train, "metrics", lambda *_: {"mae": next(found), "corr": 0.0})
    monkeypatch.setattr(train, "show", lambda *_: None)
    results = train.train(quick(runs=str(tmp_path), epochs=9, patience=2))
    assert results["epoch"] == 1 and results["valid"]["mae"] == 0.8 and next(found) == 0.1


# ── The map from equation to code to test ─────────────────────────────────────────────────────────


def test_readme_maps_every_equation_to_code_and_test_that_exist():
    readme = (HERE / "README.md").read_text(encoding="utf-8")
    section = readme.split("## The map")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")]
    source = (HERE / "msfn.py").read_text(encoding="utf-8")
    lines, mapped = source.splitlines(), set()
    for row in rows[2:]:
        first, *last = map(int, re.findall(r"\d+", row[0]))
        for number in [first, *last, *range(first, (last or [first])[-1] + ("–" in row[0]))]:
            mapped.add(number)
        links = re.findall(r"\[`([\w.]+)`\]\(msfn\.py#L(\d+)-L(\d+)\)", row[2])
        assert links, row
        for name, begin, end in links:
            defined = rf"\s*(def|class) {name.split('.')[-1]}\b"
            assert re.match(defined, lines[int(begin) - 1]), f"{name} is not at line {begin}"
            body = [
                i for i in range(int(begin), int(end)) if re.match(r"(def|class|@|#)", lines[i])
            ]
            assert not body, f"{name} ends before line {end}"
        tests = re.findall(r"`(test_\w+)`", row[-1])
        assert tests and all(test in globals() for test in tests), row
    assert mapped == set(range(1, 17))
