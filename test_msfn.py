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
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

import data
import msfn
import plumbing
import train
from msfn import MODALITIES, MSFN, MSFNConfig
from plumbing.packing import Packed

HERE = Path(__file__).resolve().parent

seeds = st.integers(0, 2**31 - 1)
forms = st.sampled_from(["literal", "bounded"])
readings = st.sampled_from(["video", "batch", "segment"])
floats = functools.partial(st.floats, allow_subnormal=False)  # train.prepare flushes those to 0
sizes_lists = st.lists(st.integers(0, 5), min_size=3, max_size=3)  # of three modalities
labels = st.lists(
    st.sampled_from([-3.0, -1.5, -1.0, -0.4, 0.0, 0.5, 0.6, 1.0, 2.5, 3.0]), min_size=1, max_size=9
)


def normal(seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def features(seed, sizes=(5, 6, 7), d=4):
    """{m: (B_m, d)} in float64, different in each modality"""
    return {m: normal(seed + i, sizes[i], d) for i, m in enumerate(MODALITIES)}


def scores(seed, sizes=(5, 6, 7)):
    """logits[m][k]: (B_k,), nine different vectors"""
    drawn = {m: features(seed + 3 * i, sizes) for i, m in enumerate(MODALITIES)}
    return {m: {k: values[:, 0] for k, values in row.items()} for m, row in drawn.items()}


def close(a, b, atol=1e-9):
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    torch.testing.assert_close(a, b, atol=atol, rtol=1e-6, check_dtype=False)


# ── Eqs. 1–3: embedding ───────────────────────────────────────────────────────────────────────────

lengths_lists = st.lists(st.integers(0, 5), min_size=1, max_size=6)


@given(seeds, lengths_lists, st.integers(0, 3))
def test_lstms_read_each_sequence_as_if_alone(seed, lengths, extra):
    """Eqs. 1, 2: the outputs at the two ends; whatever the padding is, it changes nothing."""
    block = msfn.LSTMs(3, 7, width=2).double().eval()
    X = normal(seed, len(lengths), max(1, *lengths, 0) + extra, 3)
    x = block(X, torch.tensor(lengths))
    for i, n in enumerate(lengths):
        end = torch.zeros(4, dtype=torch.float64)
        if n:
            there, back = block.forward_lstm(X[i, :n])[0], block.backward_lstm(X[i, :n].flip(0))[0]
            end = torch.cat([there[-1], back[-1]])
        close(x[i], block.dense(end))
    with pytest.raises(IndexError):
        block(X, torch.tensor(lengths) + X.shape[1] + 1)


def tiny_encoder(kind="bert"):
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "vocab_size": 50}
    sizes |= {"num_attention_heads": 2, "max_position_embeddings": 16}
    if kind == "roberta":
        return RobertaModel(RobertaConfig(**sizes, pad_token_id=1))
    bert = BertModel(BertConfig(**sizes))
    return Packed(bert, 6) if kind == "packed" else bert


@given(seeds, lengths_lists, st.integers(0, 3), st.sampled_from(["mean", "cls"]))
@pytest.mark.parametrize("kind", ["bert", "packed", "roberta"])
def test_berts_read_each_sentence_as_if_alone(kind, seed, lengths, extra, pooling):
    """Eq. 3: the mean, or the first, of the true tokens' last states; no words: the bias."""
    block = msfn.BERTs(tiny_encoder(kind), 7, pooling).double().eval()
    alone = block.bert.encoder if kind == "packed" else block.bert
    shape = len(lengths), max(1, *lengths, 0) + extra
    ids = torch.randint(5, 50, shape, generator=torch.Generator().manual_seed(seed))
    x = block(ids, torch.tensor(lengths))
    for i, n in enumerate(lengths):
        pooled = torch.zeros(8, dtype=torch.float64)
        if n:
            states = alone(input_ids=ids[i : i + 1, :n]).last_hidden_state[0]
            pooled = states.mean(0) if pooling == "mean" else states[0]
        close(x[i], block.dense(pooled))


# ── Eqs. 4, 11: generators and decoders ───────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", [msfn.Generator, msfn.Decoder, msfn.Discriminator])
def test_blocks_work_row_by_row(kind):
    """Eqs. 4, 11: segment i is unaffected by segment j, in training too; more than a linear map."""
    block = (kind(5, dropout=0) if kind is msfn.Generator else kind(5)).double()
    x = normal(0, 6, 5)
    close(block(x), torch.stack([block(row[None])[0] for row in x]))
    assert block(x).shape == ((6,) if kind is msfn.Discriminator else (6, 5))
    assert not torch.allclose(block(x) + block(-x), 2 * block(0 * x))
    assert kind is msfn.Generator or block(99 * x).abs().max() > 9  # D: before its sigmoid


# ── Eqs. 5–8: adversarial loss ────────────────────────────────────────────────────────────────────


def each_game(logits, form="literal"):
    """{m: L_m of Eqs. 5–7}"""
    others = {m: [z for k, z in row.items() if k != m] for m, row in logits.items()}
    return {m: msfn.minimax_loss(logits[m][m], others[m], form) for m in logits}


@example(0, [3, 0, 0], "literal")
@given(seeds, sizes_lists, forms)
def test_adversarial_loss_term_by_term(seed, sizes, form):
    """Eqs. 5–7 for each modality by name, in loops over its own samples; Eq. 8 their mean.

    Of a modality without samples the terms vanish, and so does a game with one side alone.
    """
    logits = scores(seed, sizes)
    each = each_game(logits, form)
    for m, others in {"l": ("v", "a"), "a": ("v", "l"), "v": ("a", "l")}.items():
        D = {k: [1 / (1 + math.exp(-z)) for z in logits[m][k].tolist()] for k in logits[m]}
        against = {"literal": lambda p: -math.log(p), "bounded": lambda p: math.log(1 - p)}[form]
        fakes = [sum(map(against, D[k])) / len(D[k]) for k in others if D[k]]
        real = sum(map(math.log, D[m])) / max(len(D[m]), 1)
        close(each[m], real + sum(fakes) if D[m] and fakes else 0.0)
    close(msfn.adversarial_loss(logits, form), (each["l"] + each["a"] + each["v"]) / 3)


@given(seeds, forms)
def test_adversarial_loss_has_the_signs_of_the_game(seed, form):
    """L^a rises with D(real) and falls with D(fake): ascend to tell apart, descend to deceive."""
    logits = scores(seed)
    for m, k in itertools.product(MODALITIES, MODALITIES):
        z = logits[m][k].requires_grad_()
        slope = torch.autograd.grad(msfn.adversarial_loss(logits, form), z)[0]
        assert (slope > 0).all() if k == m else (slope < 0).all()


@given(seeds, st.permutations(MODALITIES), forms)
def test_adversarial_loss_follows_a_relabelling(seed, names, form):
    logits, new = scores(seed), dict(zip(MODALITIES, names, strict=True))
    renamed = {new[m]: {new[k]: z for k, z in row.items()} for m, row in logits.items()}
    close(msfn.adversarial_loss(renamed, form), msfn.adversarial_loss(logits, form))


@pytest.mark.parametrize(
    "real, fake, literal, bounded",
    [
        (0, 0, math.log(2), -3 * math.log(2)),  # chance
        (1e4, -1e4, 2e4, 0),  # perfect discriminators: as printed, the loss has no bound above
        (-1e4, 1e4, -1e4, -3e4),
    ],
)
def test_adversarial_loss_at_chance_and_at_the_extremes(real, fake, literal, bounded):
    """D(real) = σ(real), D(fake) = σ(fake) of every sample: values by hand, finite gradients."""
    z = {True: torch.full((3,), float(real)), False: torch.full((3,), float(fake))}
    logits = {m: {k: z[k == m].requires_grad_() for k in MODALITIES} for m in MODALITIES}
    for form, expected in (("literal", literal), ("bounded", bounded)):
        loss = msfn.adversarial_loss(logits, form)
        close(loss, expected, atol=1e-6)
        assert all(g.isfinite().all() for g in torch.autograd.grad(loss, list(z.values())))


@pytest.mark.parametrize("form", ["literal", "bounded"])
def test_one_optimiser_plays_both_sides(form):
    """A step on the discriminators alone raises L^a; a step on everything else alone lowers L."""
    for side, sign, term in ((0, -1, "total"), (1, +1, "adversarial")):
        model = small_model(adversarial=form, alpha=1.0).eval()
        optimizer = torch.optim.SGD([model.parameter_groups()[side]], lr=1e-3)
        _, before = output_and_losses(model)
        before.total.backward()
        optimizer.step()
        _, after = output_and_losses(model)
        assert sign * (getattr(after, term) - getattr(before, term)).item() > 0


@given(seeds, st.lists(st.integers(0, 5), min_size=3, max_size=3))
def test_gradient_penalty_sample_by_sample(seed, sizes):
    """The mean of ‖∇_h z‖² over the samples of all pairs (m, k) of modalities that have some."""
    torch.manual_seed(seed)
    D = {m: msfn.Discriminator(4).double() for m in MODALITIES}
    h = {m: normal(seed, n, 4) for m, n in zip(MODALITIES, sizes, strict=True)}
    squares = []
    for m in (m for m in MODALITIES if len(h[m])):
        for row in torch.cat(list(h.values())):
            slope = torch.autograd.functional.jacobian(lambda r, m=m: D[m](r[None])[0], row)
            squares.append(sum(float(s) ** 2 for s in slope))
    close(msfn.gradient_penalty(D, h), sum(squares) / max(len(squares), 1))
    new = dict(zip("avl", "vla", strict=True))  # a relabelling permutes
    renamed = [{new[m]: part[m] for m in MODALITIES} for part in (D, h)]
    close(msfn.gradient_penalty(*renamed), msfn.gradient_penalty(D, h))


def test_gradient_penalty_of_linear_and_constant_discriminators():
    h, w = features(9), {m: normal(i, 4) for i, m in enumerate(MODALITIES)}
    linear = {m: lambda h, m=m: h @ w[m] + 1 for m in w}
    close(msfn.gradient_penalty(linear, h), sum(v @ v for v in w.values()) / 3)
    assert msfn.gradient_penalty({m: lambda h: 0 * h.sum(1) + 7 for m in w}, h) == 0


def test_the_discriminators_alone_pay_the_penalty():
    """ρ changes the gradient of the side that ascends, and no other; and takes its momentum."""
    slopes = []
    for rho, betas in ((0.0, None), (3.0, (0.0, 0.999))):
        model = small_model(penalty=rho).eval()
        assert [group.get("betas") for group in model.parameter_groups()] == [None, betas]
        output_and_losses(model)[1].total.backward()
        slopes.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    for name, printed in slopes[0].items():
        pays = "discriminators" in name and "weight" in name  # a bias moves no slope
        assert torch.equal(printed, slopes[1][name]) != pays, name


# ── Eqs. 9, 10: triplet loss ──────────────────────────────────────────────────────────────────────


def triplets(h, y, margin):
    """[d_ap − d_an + δ for each valid (a, p, n)], by loops"""
    d, y, rows = [[(one - other).norm() for other in h] for one in h], y.tolist(), range(len(y))
    return [
        d[a][p] - d[a][n] + margin
        for a, p, n in itertools.product(rows, rows, rows)
        if a != p and y[a] == y[p] != y[n]
    ]


LITERAL = re.search(r"\n( {8}same = .*?)\n\n", msfn.triplet_loss.__doc__, re.DOTALL)[1]


@example(0, [], 1.0)
@example(0, [1.0, 2.0, 3.0], 1.0)
@given(seeds, labels, st.sampled_from([0.2, 1.0, 3.0]))
@pytest.mark.parametrize("ties", [False, True])
def test_triplet_loss_by_three_loops(ties, seed, y, margin):
    """Value and gradient, 0 without a valid triplet. On a line of whole numbers rows are equal and
    d_an = d_ap + δ: such a triplet gives 0, and no pull without its push. The B × B × B form that a
    reader of the docstring meets first, executed as it stands there, is the same."""
    h = normal(seed, len(y), 1).mul(2).round() if ties else normal(seed, len(y), 5)
    h, classes = h.requires_grad_(), msfn.sentiment_classes(torch.tensor(y))
    terms = triplets(h, classes, margin)
    total = sum((term * (term > 0) for term in terms), h.sum() * 0)
    loss = msfn.triplet_loss(h, classes, margin, "sum")
    close(loss, total)
    close(msfn.triplet_loss(h, classes, margin), total / max(len(terms), 1))
    close(*(torch.autograd.grad(each, h)[0] for each in (loss, total)))
    names = {"torch": torch, "h": h, "y": classes, "margin": margin}
    exec(textwrap.dedent(LITERAL), names)  # noqa: S102 (our own docstring)
    close(msfn.triplet_loss(h, classes, margin), names["loss"].nan_to_num())


@given(seeds, labels, floats(0.1, 9))
def test_triplet_loss_laws(seed, y, scale):
    """≥ 0; permutation, rotation, translation; scaling with the margin; monotone in the margin."""
    h, classes = normal(seed, len(y), 3), msfn.sentiment_classes(torch.tensor(y))
    loss = msfn.triplet_loss(h, classes, 0.5)
    order = np.random.default_rng(seed).permutation(len(y))
    rotation, shift = torch.linalg.qr(normal(seed + 1, 3, 3)).Q, normal(seed + 2, 3)
    assert 0 <= loss <= msfn.triplet_loss(h, classes, 0.6)
    close(msfn.triplet_loss(h[order], classes[order], 0.5), loss)
    close(msfn.triplet_loss(h @ rotation + shift, classes, 0.5), loss)
    close(msfn.triplet_loss(scale * h, classes, scale * 0.5), scale * loss)


def test_triplet_loss_by_hand():
    """Exact at the margin, where it may count on neither side, and in the dtype of h."""
    h, y = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64), torch.tensor([0, 0, 1])
    assert msfn.triplet_loss(h, y, 2.0, "sum") == 1  # anchors 0 and 1: 1 − 3 + 2 and 1 − 2 + 2
    assert abs(msfn.triplet_loss(h, y, 2.3).item() - 0.8) < 1e-15  # (0.3 + 1.3) / 2
    for wrong in ((h, y.double()), (h[None], y[None]), (h, y[:2])):
        with pytest.raises(ValueError, match=r"h must be \(B, d\)"):
            msfn.triplet_loss(*wrong)


def test_triplet_loss_in_float32_far_from_the_origin():
    """Rows around 1,000: cdist's default, the matrix product, is off by more than 1 there."""
    h, y = (normal(0, 40, 16) * 0.5 + 1000).float(), torch.arange(40) % 5
    terms = torch.stack(triplets(h.double(), y, 1.0))
    close(msfn.triplet_loss(h, y), terms.clamp(min=0).mean(), atol=1e-4)


def test_distance_loss_by_loops():
    """Eq. 10, with modalities that hold different segments."""
    h = features(0)
    y = {m: torch.arange(len(h[m])) % 2 for m in h}
    each = [torch.stack(triplets(h[m], y[m], 0.3)).clamp(min=0) for m in MODALITIES]
    close(msfn.distance_loss(h, y, 0.3), sum(hinges.mean() for hinges in each) / 3)
    close(msfn.distance_loss(h, y, 0.3, "sum"), sum(hinges.sum() for hinges in each) / 3)


@given(st.lists(floats(-4, 4), min_size=1))
def test_sentiment_classes(values):
    y = torch.tensor(values, dtype=torch.float64)
    seven, sign = (msfn.sentiment_classes(y, kind).tolist() for kind in ("seven", "sign"))
    assert seven == [round(max(-3, min(3, v))) for v in values]
    assert sign == [(v > 0) - (v < 0) for v in values]


# ── Eq. 12: reconstruction loss ───────────────────────────────────────────────────────────────────


@given(seeds, sizes_lists)
def test_reconstruction_loss_by_loops(seed, sizes):
    """Over each modality's own segments; one that has none counts as 0."""
    x, x_hat, total, mean = features(seed, sizes), features(seed + 9, sizes), 0.0, 0.0
    for m, B in zip(MODALITIES, sizes, strict=True):
        for i, j in itertools.product(range(B), range(4)):
            square = (x[m][i, j] - x_hat[m][i, j]).item() ** 2
            total, mean = total + square / 3, mean + square / 3 / (B * 4)
    close(msfn.reconstruction_loss(x, x_hat, "sum"), total)
    close(msfn.reconstruction_loss(x, x_hat), mean)


# ── Eqs. 13–15: fusion ────────────────────────────────────────────────────────────────────────────


@given(seeds, st.lists(st.integers(-1, 2), min_size=1, max_size=6), readings)
def test_self_attention_by_double_loop(seed, video, over):
    """Eqs. 13, 14, and what N is: the segments to which row i of the mask lets i attend."""
    block, h = msfn.SelfAttention(5).double(), normal(seed, len(video), 5)
    for i, p in enumerate(block.parameters()):
        p.data = normal(seed + 1 + i, 5, 5)
    q, k, v = ([w.weight @ row for row in h] for w in (block.w_q, block.w_k, block.w_v))
    mask = msfn.attention_mask(torch.tensor(video), over)
    for i, mine in enumerate(video):
        same = [j for j, other in enumerate(video) if j == i or (other == mine and mine >= 0)]
        allowed = {"video": same, "batch": [*range(len(video))], "segment": [i]}[over]
        assert mask[i].nonzero()[:, 0].tolist() == allowed
    mask |= normal(seed + 9, *mask.shape) > 0.5  # any mask, symmetric or not
    F = block(h, mask)
    for i, row in enumerate(mask):
        weights = {j: math.exp((q[i] @ k[j]).item() / math.sqrt(5)) for j in row.nonzero()[:, 0]}
        close(F[i], sum(w * v[j] for j, w in weights.items()) / sum(weights.values()))


@given(seeds, st.permutations(range(5)))
def test_self_attention_laws(seed, order):
    """Equivariant; of one token, and of equal tokens, the value itself."""
    block, everyone = msfn.SelfAttention(3).double(), torch.ones(5, 5, dtype=torch.bool)
    h = normal(seed, 5, 3)
    close(block(h[order], everyone), block(h, everyone)[order])
    close(block(h[:1], everyone[:1, :1]), block.w_v(h[:1]))
    close(block(h[:1].expand(5, 3), everyone), block.w_v(h[:1].expand(5, 3)))


def test_fusion_predictor_by_hand():
    block, F = msfn.FusionPredictor(4, 3).double().eval(), normal(0, 6, 12)
    first, last = block[0], block[3]
    for row, y_hat in zip(F, block(F), strict=True):
        hidden = (first.weight @ row + first.bias).clamp(min=0)
        close(y_hat, (last.weight[0] @ hidden + last.bias)[0])


@given(labels, seeds)
def test_task_loss_by_hand(y, seed):
    y_hat = normal(seed, len(y))
    total = sum((a - b) ** 2 for a, b in zip(y, y_hat.tolist(), strict=True))
    y = torch.tensor(y, dtype=torch.float64)
    close(msfn.task_loss(y, y_hat, "sum"), total)
    close(msfn.task_loss(y, y_hat), total / len(y))


# ── Eq. 16 and the whole model ────────────────────────────────────────────────────────────────────


def small_model(**choices):
    torch.manual_seed(0)
    return MSFN(MSFNConfig(d=6, lstm_width=4, **choices), {"a": 3, "v": 2}, tiny_encoder())


def small_batch(rows=range(6)):
    """Of segments of videos 0, 0, 1, 1, 1 and unknown, with empty sequences in each modality."""
    rows = list(rows)
    ids = torch.randint(0, 50, (6, 4), generator=torch.Generator().manual_seed(1))
    values = {"a": normal(0, 6, 4, 3).float(), "v": normal(1, 6, 5, 2).float(), "l": ids}
    lengths = {"a": [4, 0, 2, 3, 1, 4], "v": [2, 1, 5, 0, 0, 3], "l": [3, 2, 1, 4, 2, 0]}
    inputs = {m: (values[m][rows], torch.tensor(lengths[m])[rows]) for m in MODALITIES}
    y, video = torch.tensor([1.0, 1.2, -2.0, -1.8, 1.0, 2.9]), torch.tensor([0, 0, 1, 1, 1, -1])
    return data.Batch(inputs, y[rows], video[rows], rows)


def lengths_of(batch):
    return {m: lengths for m, (_, lengths) in batch.inputs.items()}


def output_and_losses(model, batch=None):
    batch = batch or small_batch()
    output = model(batch.inputs, batch.video)
    return output, model.losses(output, batch.y, lengths_of(batch))


@given(floats(0, 9), floats(0, 9), floats(0, 9), st.sampled_from([0.0, 3.0]))
def test_total_loss_by_hand(alpha, beta, gamma, rho):
    """Eq. 16; a weight of 0 takes its term out, which is a row of Table 4; ρ is not the paper's."""
    model = small_model(alpha=alpha, beta=beta, gamma=gamma, penalty=rho).eval()
    out, losses = output_and_losses(model)
    h = {m: out.h[m][n > 0] for m, n in lengths_of(small_batch()).items()}
    game = losses.adversarial - rho / 2 * msfn.gradient_penalty(model.discriminators, h)
    terms = alpha * game + beta * losses.distance + gamma * losses.reconstruction
    close(losses.total, losses.task + terms, atol=1e-4)


@pytest.mark.parametrize("over", ["video", "batch", "segment"])
def test_forward_connects_each_modality_to_its_own_blocks(over):
    model, batch = small_model(attention=over).eval(), small_batch()
    out = model(batch.inputs, batch.video)
    mask = msfn.attention_mask(batch.video, over)
    for m in MODALITIES:
        close(out.x[m], model.embeddings[m](*batch.inputs[m]))
        close(out.h[m], model.generators[m](out.x[m]))
        close(out.x_hat[m], model.decoders[m](out.h[m]))
        for k in MODALITIES:
            close(out.logits[m][k], model.discriminators[m](out.h[k]))
    F = [model.attentions[m](out.h[m], mask) for m in ("a", "v", "l")]
    close(out.prediction, model.predictor(torch.cat(F, dim=1)))


CHOICES = {  # what the paper leaves open, the default first
    "adversarial": ["literal", "bounded"],
    "triplet_features": ["h", "x"],
    "margin": [1.0, 0.5],
    "classes": ["seven", "sign"],
    "detach_target": [False, True],
    "reduction": ["mean", "sum"],
    "attention": ["video", "batch", "segment"],
    "pooling": ["mean", "cls"],
}


@given(st.fixed_dictionaries({name: st.sampled_from(values) for name, values in CHOICES.items()}))
def test_losses_are_the_equations_over_the_segments_that_have_the_modality(choices):
    """Each choice reaches its equation; an empty sequence is no sample of its modality."""
    batch = small_batch()
    out, losses = output_and_losses(small_model(**choices).eval(), batch)
    have = {m: n > 0 for m, n in lengths_of(batch).items()}

    def there(part):
        return {m: part[m][have[m]] for m in MODALITIES}

    x, x_hat, reduction = there(out.x), there(out.x_hat), choices["reduction"]
    logits = {m: there(out.logits[m]) for m in MODALITIES}
    near = there(getattr(out, choices["triplet_features"]))
    y = {m: msfn.sentiment_classes(batch.y[have[m]], choices["classes"]) for m in MODALITIES}
    close(losses.task, msfn.task_loss(batch.y, out.prediction, reduction))
    close(losses.adversarial, msfn.adversarial_loss(logits, choices["adversarial"]))
    close(losses.distance, msfn.distance_loss(near, y, choices["margin"], reduction))
    close(losses.reconstruction, msfn.reconstruction_loss(x, x_hat, reduction))
    target = {m: value.detach() for m, value in x.items()}
    detached = msfn.reconstruction_loss(target, x_hat, reduction)
    slopes = [
        torch.autograd.grad(loss, out.x["a"], retain_graph=True)[0]
        for loss in (losses.reconstruction, detached)
    ]
    assert torch.equal(*slopes) == choices["detach_target"]


def test_a_prediction_is_independent_of_other_videos():
    """Whatever else shares the batch: the reading of Eq. 13 that is the default."""
    model = small_model().eval()

    def predict(rows, **changed):
        batch = small_batch(rows)._replace(**changed)
        return model(batch.inputs, batch.video).prediction

    whole, alone = predict(range(6)), predict(range(6), video=torch.full((6,), -1))
    for rows in ([0, 1], [2, 3, 4], [5], [5, 4, 3, 2], [1, 0, 5]):
        close(predict(rows), whole[rows], atol=1e-5)
    close(predict([2]), alone[[2]], atol=1e-5)  # a video that is unknown, or has no more segments
    assert not torch.allclose(alone[[2]], whole[[2]], atol=1e-4)


def test_an_absent_modality_leaves_the_loss_finite():
    model, batch = small_model(), small_batch()
    for m in MODALITIES:  # at last all are absent
        values, lengths = batch.inputs[m]
        batch.inputs[m] = (values[:, :1], lengths * 0)
        _, losses = output_and_losses(model, batch)
        losses.total.backward()
        assert losses.total.isfinite()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_observed_is_what_the_discriminators_say():
    model, batch = small_model().eval(), small_batch()
    out, lengths = model(batch.inputs, batch.video), lengths_of(batch)
    D = {
        (m, k): out.logits[m][k][lengths[k] > 0].sigmoid()
        for m, k in itertools.product(MODALITIES, MODALITIES)
    }
    seen = model.observed(out, lengths)
    close(seen["d_real"], torch.cat([D[m, k] for m, k in D if m == k]).mean(), atol=1e-6)
    close(seen["d_fake"], torch.cat([D[m, k] for m, k in D if m != k]).mean(), atol=1e-6)
    assert model.observed(out, {m: n * (m == "l") for m, n in lengths.items()}) == {}


def test_dropout_width_and_pooling_reach_the_components():
    """A dropout of 1 leaves of each block's last layer the bias."""
    model, batch = small_model(dropout=1.0, pooling="cls"), small_batch()
    out = model(batch.inputs, batch.video)
    for m in MODALITIES:
        close(out.x[m], model.embeddings[m].dense.bias.expand(6, 6))
        close(out.h[m], model.generators[m][-1].bias.expand(6, 6))
    audio, text, f = model.embeddings["a"], model.embeddings["l"], model.predictor
    assert (audio.dense.in_features, text.pooling, f[2].p) == (2 * 4, "cls", 1.0)


@pytest.mark.parametrize(
    "call",
    [
        lambda: msfn.BERTs(tiny_encoder(), 7, "max")(torch.ones(1, 1).long(), torch.ones(1)),
        lambda: msfn.minimax_loss(torch.zeros(2), [], "max"),
        lambda: msfn.sentiment_classes(torch.zeros(2), "max"),
        lambda: msfn.triplet_loss(torch.zeros(2, 1), torch.zeros(2).long(), reduction="max"),
        lambda: msfn.reconstruction_loss(features(0), features(1), "max"),
        lambda: msfn.attention_mask(torch.zeros(2), "max"),
        lambda: msfn.task_loss(torch.zeros(2), torch.zeros(2), "max"),
    ],
)
def test_a_component_refuses_a_choice_that_it_does_not_have(call):
    with pytest.raises((KeyError, ValueError), match="max"):
        call()


def test_a_component_works_where_its_text_alone_is_copied():
    """Each with the functions that it calls and torch, and nothing else of this file."""
    tree = ast.parse(Path(msfn.__file__).read_text(encoding="utf-8"))
    parts = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    calls = {"adversarial_loss": ["minimax_loss"], "distance_loss": ["triplet_loss"]}
    x, y, z, n = normal(0, 5, 4), torch.tensor([0, 0, 1, 1, 2]), scores(0), torch.arange(5) % 4
    uses = {
        "LSTMs": lambda block: block(4, 6, 2).double().eval()(normal(1, 5, 3, 4), n),
        "BERTs": lambda block: block(tiny_encoder(), 6).eval()(torch.ones(5, 3).long(), n),
        "Generator": lambda block: block(4, 0.0).double()(x),
        "Discriminator": lambda block: block(4).double()(x),
        "minimax_loss": lambda loss: loss(z["a"]["a"], [z["a"]["v"]]),
        "adversarial_loss": lambda loss: loss(z, "bounded"),
        "gradient_penalty": lambda penalty: penalty({"a": lambda h: h @ x[0]}, {"a": x}),
        "sentiment_classes": lambda classes: classes(x[:, 0]),
        "triplet_loss": lambda loss: loss(x, y),
        "distance_loss": lambda loss: loss({"a": x}, {"a": y}),
        "Decoder": lambda block: block(4).double()(x),
        "reconstruction_loss": lambda loss: loss({"a": x}, {"a": 2 * x}),
        "SelfAttention": lambda block: block(4).double()(x, torch.ones(5, 5, dtype=torch.bool)),
        "attention_mask": lambda attend: attend(y),
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
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        found = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
        found |= {n.module for n in nodes if isinstance(n, ast.ImportFrom)}
        roots = {name.split(".")[0] for name in found}
        assert path.name.startswith("test_") or not roots & top, path
        assert path.name != "msfn.py" or roots == {"torch", "dataclasses", "typing"}


# ── Metrics ───────────────────────────────────────────────────────────────────────────────────────

true_labels = st.sampled_from([-3, -2.6, -0.5, 0, 0, 0.4, 1, 2.5])
pairs = st.lists(st.tuples(floats(-4, 4), true_labels), min_size=1, max_size=9)


def accuracy_and_f1(pairs):
    """By loops, of pairs of bool: predicted, true. F1 of each class, weighted by its true count."""
    p, t = ([pair[i] for pair in pairs] for i in (0, 1))
    f1 = 0
    for c in (False, True):
        hits = pairs.count((c, c))
        precision, recall = hits / max(p.count(c), 1), hits / max(t.count(c), 1)
        f1 += t.count(c) * (2 * precision * recall / (precision + recall) if hits else 0)
    return sum(a == b for a, b in pairs) / len(pairs), f1 / len(pairs)


@given(pairs)
def test_metrics_by_loops(pairs):
    result, n = train.metrics(*map(np.array, zip(*pairs, strict=True))), len(pairs)
    expected = {"mae": sum(abs(a - b) for a, b in pairs) / n}
    for name, bound in (("acc7", 3), ("acc5", 2)):
        rounded = [[round(max(-bound, min(bound, v))) for v in pair] for pair in pairs]
        expected[name] = sum(a == b for a, b in rounded) / n
    has0 = [(a >= 0, b >= 0) for a, b in pairs]
    non0 = [(a > 0, b > 0) for a, b in pairs if b != 0]
    expected["acc2_has0"], expected["f1_has0"] = accuracy_and_f1(has0)
    nothing = math.nan, math.nan
    expected["acc2_non0"], expected["f1_non0"] = accuracy_and_f1(non0) if non0 else nothing
    assert {**result, "corr": 0} == pytest.approx({**expected, "corr": 0}, nan_ok=True)


@given(seeds, floats(0.1, 9), floats(-9, 9))
def test_correlation_laws(seed, scale, shift):
    p, t = normal(seed, 2, 11).numpy()
    assert train.metrics(p, t)["corr"] == pytest.approx(np.corrcoef(p, t)[0, 1])
    assert train.metrics(scale * p + shift, t)["corr"] == pytest.approx(train.metrics(p, t)["corr"])
    assert train.metrics(p * 0 + shift, t)["corr"] == 0


# ── Training ──────────────────────────────────────────────────────────────────────────────────────


def test_eight_segments_are_learnt_by_heart():
    """Gradients reach all that they should."""
    model, batch = small_model(dropout=0.0).eval(), small_batch([0, 1, 2, 3, 4, 5, 0, 2])
    batch = batch._replace(y=torch.linspace(-3, 3, 6)[[0, 1, 2, 3, 4, 5, 0, 2]])
    optimizer = torch.optim.Adam(model.parameter_groups(), lr=3e-3)
    for _ in range(200):
        optimizer.zero_grad()
        output, losses = output_and_losses(model, batch)
        losses.total.backward()
        optimizer.step()
    assert train.metrics(output.prediction.detach().numpy(), batch.y.numpy())["mae"] < 0.2


def quick(folder="runs", **typed):
    """The synthetic run of the README, cut short."""
    typed = {"epochs": 2, "d": 16, "lstm_width": 8, "runs": str(folder), **typed}
    return train.Config(dataset="synthetic", **{**train.PRESETS["synthetic"], **typed})


@pytest.fixture(autouse=True, scope="module")
def one_synthetic_corpus():
    """Generated once: no test changes it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "synthetic", functools.cache(data.synthetic))
        yield


def recorded(config, observe=None):
    """-> a run's results, and (split, i) of each segment in the order in which they were read."""
    read, original, splits = [], data.Segments.__getitem__, data.synthetic().splits

    def get(segments, i):
        read.append((next(s for s in splits if splits[s] is segments.split), i))
        return original(segments, i)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data.Segments, "__getitem__", get)
        return train.train(config, observe=observe), read


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return folder, recorded(quick(folder)), recorded(quick(folder))


def test_same_seed_same_bits(two_runs):
    folder, first, second = two_runs
    assert first == second
    files = "bert config.json metrics.jsonl model.safetensors results.json standardizer.json"
    for name in ("synthetic-seed0", "synthetic-seed0-2"):
        assert sorted(p.name for p in (folder / name).iterdir()) == files.split()
    weights = [p.read_bytes() for p in sorted(folder.glob("*/model.safetensors"))]
    assert len(weights) == 2 and weights[0] == weights[1]


def test_each_seed_and_each_epoch_draws_weights_batches_and_dropout_of_its_own(monkeypatch):
    monkeypatch.setattr(train, "train_step", lambda *_: {})
    drawn = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        run, config = train.prepare(quick(seed=seed)), quick(seed=seed)
        train.train_epoch(run, run.model, None, config, epoch)
        dropout, weight = torch.rand(()).item(), run.model.predictor[0].weight[0, 0].item()
        batch = next(iter(train.loader(run.segments["train"], config, epoch)))
        drawn.append((weight, dropout, batch.ids))
    assert drawn[0][0] == drawn[1][0]
    assert all(one != other for one, other in zip(drawn[0], drawn[2], strict=True))
    assert all(one != other for one, other in zip(drawn[0][1:], drawn[1][1:], strict=True))


def test_predictions_stand_in_the_order_of_the_split():
    """As in one batch of all, without dropout and vision; in bf16, if it is asked for, nearly."""
    run = train.prepare(quick(modalities="al"))
    part = run.segments["valid"]
    (found, y), (rough, _) = (train.predict(run, part, quick(amp=amp)) for amp in ("off", "bf16"))
    everyone = part.collate([part[i] for i in range(len(part))])
    assert [n.any().item() for n in lengths_of(everyone).values()] == [True, False, True]
    run.model.eval()
    close(found, run.model(everyone.inputs, everyone.video).prediction, atol=1e-5)
    assert y.tolist() == everyone.y.tolist() and 0 < np.abs(rough - found).max() < 0.05
    fitted = data.Standardizer.fit(data.synthetic()["train"])  # no other split is looked at
    assert run.standardizer.to_dict() == fitted.to_dict()


def test_the_test_split_is_read_once_when_the_epoch_is_fixed(two_runs):
    """Item by item: train and valid in each of two epochs; then test."""
    _, (_, read), _ = two_runs
    items = iter(read)
    for split, n in [("train", 900), ("valid", 200)] * 2 + [("test", 200)]:
        assert sorted(itertools.islice(items, n)) == [(split, i) for i in range(n)]
    assert not list(items)


def test_a_search_does_not_read_the_test_split_and_logs_what_is_observed(tmp_path):
    epochs = itertools.count(1)
    config = quick(tmp_path, name="search", test=False)
    results, read = recorded(config, observe=lambda run, config: {"epoch_seen": next(epochs)})
    assert "test" not in results and {split for split, _ in read} == {"train", "valid"}
    lines = (tmp_path / "search" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["observed"]["epoch_seen"] for line in lines] == [1, 2]


def test_presets_are_table_1_and_what_is_typed_beats_them():
    """By hand from the paper: d, α, β, γ, r, batch size, Drop; then what README says is ours."""
    names = ("d", "alpha", "beta", "gamma", "learning_rate", "batch_size", "dropout")
    mosei, mosi = (256, 0.4, 0.3, 0.1, 1e-4, 16, 0.1), (128, 0.2, 0.5, 0.2, 1e-4, 64, 0.1)
    for dataset, values in (("mosei", mosei), ("mosi", mosi)):
        config, _ = train.parse(["--dataset", dataset])
        assert tuple(getattr(config, name) for name in names) == values
    assert train.parse([])[0] == config
    ours = (config.lstm_width, config.epochs, config.patience, config.clip, config.bert)
    assert ours == (64, 30, 8, 1.0, "google-bert/bert-base-uncased")
    assert config.bert_learning_rate is None and config.modalities == "avl" and config.test
    assert all(getattr(config, name) == values[0] for name, values in CHOICES.items())
    typed, _ = train.parse(["--dataset", "mosei", "--batch-size", "8", "--no-test"])
    assert (typed.batch_size, typed.d, typed.test) == (8, 256, False)


def step(run, config):
    """-> what a step on a batch of valid logs"""
    batch = next(iter(train.loader(run.segments["valid"], config)))
    return train.train_step(run, run.model, train.make_optimizer(run, config), config, batch)


def test_both_sides_are_clipped_by_themselves_and_bert_may_be_slower(monkeypatch):
    config = quick(clip=0.5, bert_learning_rate=1e-9)
    run = train.prepare(config)
    before = {n: p.detach().clone() for n, p in run.model.named_parameters()}
    clipped, clip, number = [], train.clip_grad_norm_, []

    def constant(parameters, norm):
        assert all(p.grad is not None for p in parameters)  # L reaches all that is trained
        for p in parameters:
            p.grad = torch.ones_like(p)
        clip(parameters, norm)
        clipped.append(sum(p.grad.square().sum() for p in parameters).sqrt())
        number.append(len(parameters))

    monkeypatch.setattr(train, "clip_grad_norm_", constant)
    step(run, config)
    close(clipped, [0.5, 0.5], atol=1e-4)
    assert sum(number) == len(before)
    for name, parameter in run.model.named_parameters():
        change = parameter.detach() - before[name]  # Adam's first step: the rate, times the sign
        rate = 1e-9 if ".bert." in name else config.learning_rate
        expected = torch.full_like(change, rate if "discriminators" in name else -rate)
        torch.testing.assert_close(change, expected, rtol=0.02, atol=2e-7)


@pytest.mark.parametrize(
    "module, name, value, said",
    [
        (
            msfn,
            "distance_loss",
            torch.tensor(math.nan),
            "distance is nan in epoch 0, segments synt",
        ),
        (train, "metrics", {"mae": math.nan}, "valid MAE is nan after epoch 0"),
    ],
)
def test_what_is_not_finite_ends_a_run(module, name, value, said, tmp_path, monkeypatch):
    monkeypatch.setattr(module, name, lambda *_: value)
    with pytest.raises(plumbing.UserError, match=said):
        train.train(quick(tmp_path))
    assert not list(tmp_path.glob("*/model.safetensors"))


def test_patience_counts_the_epochs_without_a_better_one(tmp_path, monkeypatch):
    found = iter([0.9, 0.8, 0.8, 0.85, 0.1, 0.2])  # the fifth is test's
    monkeypatch.setattr(train, "train_epoch", lambda *_: {})
    monkeypatch.setattr(train, "metrics", lambda *_: {"mae": next(found), "corr": 0.0})
    monkeypatch.setattr(train, "show", lambda *_: None)
    results = train.train(quick(tmp_path, epochs=9, patience=2))
    assert results["epoch"] == 1 and results["valid"]["mae"] == 0.8 and next(found) == 0.2


# ── The map from equation to code to test ─────────────────────────────────────────────────────────


def test_readme_maps_every_equation_to_code_and_test_that_exist():
    readme = (HERE / "README.md").read_text(encoding="utf-8")
    section = readme.split("## The map")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")]
    lines, mapped = (HERE / "msfn.py").read_text(encoding="utf-8").splitlines(), set()
    for row in rows[2:]:
        numbers = [int(n) for n in re.findall(r"\d+", row[0])]  # of "5–7": both ends
        mapped |= set(range(numbers[0], numbers[-1] + 1))
        links = re.findall(r"\[`([\w.]+)`\]\(msfn\.py#L(\d+)-L(\d+)\)", row[2])
        assert links, row
        for name, begin, end in ((name, int(begin), int(end)) for name, begin, end in links):
            defined = rf"\s*(def|class) {name.split('.')[-1]}\b"
            assert re.match(defined, lines[begin - 1]), f"{name} is not at line {begin}"
            others = [line for line in lines[begin:end] if re.match(r"(def|class|@|#)", line)]
            assert not others, f"{name} ends before line {end}"
        tests = re.findall(r"`(test_\w+)`", row[-1])
        assert tests and all(test in globals() for test in tests), row
    assert mapped == set(range(1, 17))
