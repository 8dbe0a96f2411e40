"""Tests that bite: for each equation one oracle in plain loops and a few laws.

README's map names them beside Eqs. 1–16. Sizes are pairwise different, so that a wrong axis cannot
pass; hypothesis draws the structure, seeds draw the values. The metrics of train.py come last.
"""

import ast
import functools
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

import msfn
import train
from msfn import MSFN, LSTMs, MSFNConfig, Output
from plumbing.packing import Packed

NAMES = ("a", "v", "l")

seeds = st.integers(0, 2**31 - 1)
forms = st.sampled_from(["bounded", "literal"])
readings = st.sampled_from(["video", "batch", "segment"])
floats = functools.partial(st.floats, allow_subnormal=False)
sizes_lists = st.lists(st.integers(0, 5), min_size=3, max_size=3)  # of three modalities
labels = st.lists(
    st.sampled_from([-3.0, -1.5, -1.0, -0.4, 0.0, 0.5, 0.6, 1.0, 2.5, 3.0]), min_size=1, max_size=9
)


def normal(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def features(seed, sizes=(5, 6, 7), d=4):
    """{m: (B_m, d)} in float64, different in each modality"""
    return {m: normal(seed + i, sizes[i], d) for i, m in enumerate(NAMES)}


def scores(seed, sizes=(5, 6, 7)):
    """logits[m][k]: (B_k,), nine different vectors"""
    drawn = {m: features(seed + 3 * i, sizes) for i, m in enumerate(NAMES)}
    return {m: {k: values[:, 0] for k, values in row.items()} for m, row in drawn.items()}


def close(a, b, atol=1e-9):
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    torch.testing.assert_close(a, b, atol=atol, rtol=1e-6, check_dtype=False)


# ── Eqs. 1–3: embedding ───────────────────────────────────────────────────────────────────────────

lengths_lists = st.lists(st.integers(0, 5), min_size=1, max_size=6)


@given(seeds, lengths_lists, st.integers(0, 3))
def test_lstms_read_each_sequence_as_if_alone(seed, lengths, extra):
    """Eqs. 1, 2: the end states of both directions; padding of any value changes nothing."""
    block = LSTMs(3, 7, width=2).double().eval()
    X = normal(seed, len(lengths), max(1, *lengths, 0) + extra, 3)
    x = block(X, torch.tensor(lengths))
    for i, n in enumerate(lengths):
        end = torch.zeros(4, dtype=torch.float64)
        if n:
            ahead, back = block.forward_lstm(X[i, :n])[0], block.backward_lstm(X[i, :n].flip(0))[0]
            end = torch.cat([ahead[-1], back[-1]])
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
    """Eq. 3: the mean, or the first, of the true tokens' last states; without words: the bias."""
    block = msfn.BERTs(tiny_encoder(kind), 7, pooling).double().eval()
    encoder = block.bert.encoder if kind == "packed" else block.bert
    shape = len(lengths), max(1, *lengths, 0) + extra
    ids = torch.randint(5, 50, shape, generator=torch.Generator().manual_seed(seed))
    x = block(ids, torch.tensor(lengths))
    for i, n in enumerate(lengths):
        pooled = torch.zeros(8, dtype=torch.float64)
        if n:
            states = encoder(input_ids=ids[i : i + 1, :n]).last_hidden_state[0]
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


def each_game(logits, form="bounded"):
    """{m: L^a_m of Eqs. 5–7}"""
    others = {m: [z for k, z in row.items() if k != m] for m, row in logits.items()}
    return {m: msfn.minimax_loss(logits[m][m], others[m], form) for m in logits}


@example(0, [3, 0, 0], "literal")
@given(seeds, sizes_lists, forms)
def test_adversarial_loss_term_by_term(seed, sizes, form):
    """Eqs. 5–7 for each modality by name, in loops over its own samples; Eq. 8 is their mean.

    The terms of a modality without samples vanish, and so does a game with one side alone.
    """
    logits = scores(seed, sizes)
    each = each_game(logits, form)
    for m, others in {"l": ("v", "a"), "a": ("v", "l"), "v": ("a", "l")}.items():
        D = {k: [1 / (1 + math.exp(-z)) for z in logits[m][k].tolist()] for k in logits[m]}
        term = {"literal": lambda p: -math.log(p), "bounded": lambda p: math.log(1 - p)}[form]
        fakes = [sum(map(term, D[k])) / len(D[k]) for k in others if D[k]]
        real = sum(map(math.log, D[m])) / max(len(D[m]), 1)
        close(each[m], real + sum(fakes) if D[m] and fakes else 0.0)
    close(msfn.adversarial_loss(logits, form), (each["l"] + each["a"] + each["v"]) / 3)


@given(seeds, forms)
def test_adversarial_loss_has_the_signs_of_the_game(seed, form):
    """L^a rises with D(real) and falls with D(fake): ascend to tell apart, descend to deceive."""
    logits = scores(seed)
    for m, k in itertools.product(NAMES, NAMES):
        z = logits[m][k].requires_grad_()
        slope = torch.autograd.grad(msfn.adversarial_loss(logits, form), z)[0]
        assert (slope > 0).all() if k == m else (slope < 0).all()


@given(seeds, st.permutations(NAMES), forms)
def test_adversarial_loss_follows_a_relabelling(seed, names, form):
    logits, new = scores(seed), dict(zip(NAMES, names, strict=True))
    renamed = {new[m]: {new[k]: z for k, z in row.items()} for m, row in logits.items()}
    close(msfn.adversarial_loss(renamed, form), msfn.adversarial_loss(logits, form))


@pytest.mark.parametrize(
    "real, fake, literal, bounded",
    [
        (0, 0, math.log(2), -3 * math.log(2)),  # chance
        (1e4, -1e4, 2e4, 0),  # perfect discriminators: as printed, the loss has no bound above
        (-1e4, 1e4, -1e4, -3e4),
        (-5, -5, 5.0067, -5.0201),  # "no" to everything wins the printed game: see minimax_loss
        (-50, -50, 50, -50),
    ],
)
def test_adversarial_loss_at_chance_at_the_extremes_and_of_always_no(real, fake, literal, bounded):
    """D(real) = σ(real), D(fake) = σ(fake) of every sample: values by hand, finite gradients."""
    z = {True: torch.full((3,), float(real)), False: torch.full((3,), float(fake))}
    logits = {m: {k: z[k == m].requires_grad_() for k in NAMES} for m in NAMES}
    for form, expected in (("literal", literal), ("bounded", bounded)):
        loss = msfn.adversarial_loss(logits, form)
        close(loss, expected, atol=1e-4)
        assert all(g.isfinite().all() for g in torch.autograd.grad(loss, list(z.values())))
    assert torch.equal(msfn.adversarial_loss(logits), loss)  # "bounded" is the default
    assert torch.equal(msfn.minimax_loss(z[True], [z[False]] * 2), loss)


@pytest.mark.parametrize("form", ["literal", "bounded"])
def test_one_optimizer_plays_both_sides(form):
    """A step of the discriminators alone raises L^a; a step of everything else alone lowers L."""
    for side, sign, term in ((0, -1, "total"), (1, +1, "adversarial")):
        model = small_model(adversarial=form, alpha=1.0).eval()
        optimizer = torch.optim.SGD([model.parameter_groups()[side]], lr=1e-3)
        _, before = output_and_losses(model)
        before.total.backward()
        optimizer.step()
        _, after = output_and_losses(model)
        assert sign * (getattr(after, term) - getattr(before, term)).item() > 0


# ── Eqs. 9, 10: triplet loss ──────────────────────────────────────────────────────────────────────


def triplets(h, y, margin):
    """[d_ap − d_an + δ for each valid (a, p, n)], by loops"""
    d, y, rows = [[(one - other).norm() for other in h] for one in h], y.tolist(), range(len(y))
    return [
        d[a][p] - d[a][n] + margin
        for a, p, n in itertools.product(rows, rows, rows)
        if a != p and y[a] == y[p] != y[n]
    ]


@example(0, [], 1.0)
@example(0, [1.0, 2.0, 3.0], 1.0)
@given(seeds, labels, st.sampled_from([0.2, 1.0, 3.0]))
@pytest.mark.parametrize("ties", [False, True])
def test_triplet_loss_by_three_loops(ties, seed, y, margin):
    """Value and gradient; 0 without a valid triplet.

    With ties, rows are whole numbers on a line, so that rows are equal and d_an = d_ap + δ: such a
    triplet gives 0 and no gradient.
    """
    h = normal(seed, len(y), 1).mul(2).round() if ties else normal(seed, len(y), 5)
    h, classes = h.requires_grad_(), msfn.sentiment_classes(torch.tensor(y))
    terms = triplets(h, classes, margin)
    total = sum((term * (term > 0) for term in terms), h.sum() * 0)
    loss = msfn.triplet_loss(h, classes, margin, "sum")
    close(loss, total)
    close(msfn.triplet_loss(h, classes, margin), total / max(len(terms), 1))
    close(*(torch.autograd.grad(each, h)[0] for each in (loss, total)))


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
    """Exact at the margin, in value and gradient, and in the dtype of h."""
    h, y = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64), torch.tensor([0, 0, 1])
    assert msfn.triplet_loss(h, y, 2.0, "sum") == 1  # anchors 0 and 1: 1 − 3 + 2 and 1 − 2 + 2
    assert abs(msfn.triplet_loss(h, y, 2.3).item() - 0.8) < 1e-15  # (0.3 + 1.3) / 2
    tie = torch.tensor([[0.0], [2.0], [3.0]], requires_grad=True)  # anchors: 2 − 3 + 1, 2 − 1 + 1
    msfn.triplet_loss(tie, y, 1.0).backward()
    assert tie.grad.flatten().tolist() == [-0.5, 1.0, -0.5]
    for wrong in ((h, y.double()), (h[None], y[None]), (h, y[:2])):
        with pytest.raises(ValueError, match=r"h must be \(B, d\)"):
            msfn.triplet_loss(*wrong)


def test_triplet_loss_in_float32_far_from_the_origin():
    """Rows around 1,000: cdist's default, the matrix product, is off by more than 1 there."""
    h, y = (normal(0, 40, 16) * 0.5 + 1000).float(), torch.arange(40) % 5
    terms = torch.stack(triplets(h.double(), y, 1.0))
    close(msfn.triplet_loss(h, y), terms.clamp(min=0).mean(), atol=1e-4)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_triplet_loss_is_float32_for_half_precision_features(dtype, autocast):
    """80 segments have more triplets than float16 can count."""
    h, y = normal(0, 80, 7).to(dtype), torch.arange(80) % 7
    with torch.autocast("cpu", dtype, enabled=autocast):
        loss = msfn.triplet_loss(h, y)
    assert loss.dtype == torch.float32
    close(loss, msfn.triplet_loss(h.float(), y), atol=1e-6)


def test_distance_loss_by_loops():
    """Eq. 10, with modalities that are present in different segments."""
    h = features(0)
    y = {m: torch.arange(len(h[m])) % 2 for m in h}
    each = [torch.stack(triplets(h[m], y[m], 0.3)).clamp(min=0) for m in NAMES]
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
    """Over each modality's own segments; a modality without segments counts as 0."""
    x, x_hat, total, mean = features(seed, sizes), features(seed + 9, sizes), 0.0, 0.0
    for m, B in zip(NAMES, sizes, strict=True):
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
    """Equivariant; one token, and equal tokens, give the value itself."""
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
    close(msfn.task_loss(y_hat, y, "sum"), total)
    close(msfn.task_loss(y_hat, y), total / len(y))


# ── Eq. 16 and the whole model ────────────────────────────────────────────────────────────────────


def small_model(pooling="mean", **choices):
    """Eqs. 1–16 over audio, vision and language, each 6 wide."""
    torch.manual_seed(0)
    config = MSFNConfig(d=6, **choices)
    lstms = {m: LSTMs(d_m, 6, 4, config.dropout) for m, d_m in (("a", 3), ("v", 2))}
    return MSFN(config, {**lstms, "l": msfn.BERTs(tiny_encoder(), 6, pooling, config.dropout)})


def small_batch(rows=range(6)):
    """inputs, y and video: videos 0, 0, 1, 1, 1 and unknown; each modality is absent somewhere."""
    rows = list(rows)
    ids = torch.randint(0, 50, (6, 4), generator=torch.Generator().manual_seed(1))
    values = {"a": normal(0, 6, 4, 3).float(), "v": normal(1, 6, 5, 2).float(), "l": ids}
    lengths = {"a": [4, 0, 2, 3, 1, 4], "v": [2, 1, 5, 0, 0, 3], "l": [3, 2, 1, 4, 2, 0]}
    inputs = {m: (values[m][rows], torch.tensor(lengths[m])[rows]) for m in NAMES}
    y, video = torch.tensor([1.0, 1.2, -2.0, -1.8, 1.0, 2.9]), torch.tensor([0, 0, 1, 1, 1, -1])
    return inputs, y[rows], video[rows]


def output_and_losses(model):
    inputs, y, video = small_batch()
    output = model(inputs, video)
    return output, model.losses(output, y)


@given(floats(0, 9), floats(0, 9), floats(0, 9))
def test_total_loss_by_hand(alpha, beta, gamma):
    """Eq. 16; a weight of 0 takes its term out, which is a row of Table 4."""
    _, losses = output_and_losses(small_model(alpha=alpha, beta=beta, gamma=gamma).eval())
    terms = alpha * losses.adversarial + beta * losses.distance + gamma * losses.reconstruction
    close(losses.total, losses.task + terms, atol=1e-4)


@pytest.mark.parametrize("over", ["video", "batch", "segment"])
def test_forward_connects_each_modality_to_its_own_blocks(over):
    model, (inputs, _, video) = small_model(attention=over).eval(), small_batch()
    out = model(inputs, video)
    mask = msfn.attention_mask(video, over)
    for m in NAMES:
        close(out.x[m], model.embeddings[m](*inputs[m]))
        close(out.h[m], model.generators[m](out.x[m]))
        close(out.x_hat[m], model.decoders[m](out.h[m]))
        for k in NAMES:
            close(out.logits[m][k], model.discriminators[m](out.h[k]))
    F = [model.attentions[m](out.h[m], mask) for m in ("a", "v", "l")]
    close(out.prediction, model.predictor(torch.cat(F, dim=1)))


CHOICES = {  # what the paper leaves open, the default first
    "adversarial": ["bounded", "literal"],
    "triplet_features": ["h", "x"],
    "margin": [1.0, 0.5],
    "classes": ["seven", "sign"],
    "detach_target": [False, True],
    "reduction": ["mean", "sum"],
    "attention": ["video", "batch", "segment"],
}


@given(st.fixed_dictionaries({name: st.sampled_from(values) for name, values in CHOICES.items()}))
def test_losses_are_the_equations_over_the_segments_that_have_the_modality(choices):
    """Each choice reaches its equation; an empty sequence is no sample of its modality."""
    inputs, y, _ = small_batch()
    out, losses = output_and_losses(small_model(**choices).eval())
    mask = {m: lengths > 0 for m, (_, lengths) in inputs.items()}

    def of_those(part):
        return {m: part[m][mask[m]] for m in NAMES}

    x, x_hat, reduction = of_those(out.x), of_those(out.x_hat), choices["reduction"]
    logits = {m: of_those(out.logits[m]) for m in NAMES}
    compared = of_those(getattr(out, choices["triplet_features"]))
    classes = {m: msfn.sentiment_classes(y[mask[m]], choices["classes"]) for m in NAMES}
    close(losses.task, msfn.task_loss(out.prediction, y, reduction))
    close(losses.adversarial, msfn.adversarial_loss(logits, choices["adversarial"]))
    close(losses.distance, msfn.distance_loss(compared, classes, choices["margin"], reduction))
    close(losses.reconstruction, msfn.reconstruction_loss(x, x_hat, reduction))
    detached = msfn.reconstruction_loss({m: x[m].detach() for m in x}, x_hat, reduction)
    slopes = [
        torch.autograd.grad(loss, out.x["a"], retain_graph=True)[0]
        for loss in (losses.reconstruction, detached)
    ]
    assert torch.equal(*slopes) == choices["detach_target"]


class MeanFrame(nn.Module):
    """An embedding that is not an LSTM: the mean of the true frames, through a dense layer."""

    def __init__(self, d_m: int, d: int):
        super().__init__()
        self.dense = nn.Linear(d_m, d)

    def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
        frames = torch.arange(values.shape[1]) < lengths[:, None]
        total = (values * frames[:, :, None]).sum(1)
        return self.dense(total / lengths.clamp(min=1)[:, None])


@pytest.mark.parametrize("names", [["eeg"], ["gaze", "eeg"], ["b", "a", "gaze"], [*"wxyz"]])
def test_any_number_of_modalities_by_any_name(names):
    """The loss reaches every block; other names change no number; video=None: each stands alone."""
    widths, y = dict(zip(names, (3, 2, 5, 7), strict=False)), torch.linspace(-3, 3, 8)
    lengths = {m: torch.arange(8).roll(i) % 4 for i, m in enumerate(names)}
    inputs = {m: (normal(i, 8, 3, widths[m]).float(), lengths[m]) for i, m in enumerate(names)}

    def built(new):
        torch.manual_seed(0)
        blocks = [LSTMs(widths[m], 6, 4) if m != "gaze" else MeanFrame(2, 6) for m in names]
        return MSFN(MSFNConfig(d=6), dict(zip(new, blocks, strict=True))).eval()

    if "gaze" in names:
        inputs["gaze"] = normal(9, 8, 3, 2).float(), inputs["gaze"][1]
        widths["gaze"] = 2
    model, new = built(names), [f"new {m}" for m in names]
    output = model(inputs)
    close(model(dict(reversed(inputs.items()))).prediction, output.prediction)
    losses = model.losses(output, y)
    losses.total.backward()
    idle = () if len(names) > 1 else ("discriminators",)  # one modality plays no game
    for name, p in model.named_parameters():
        assert name.startswith(("attentions", *idle)) or p.grad.any(), name
    renamed = built(new)
    other = renamed(dict(zip(new, inputs.values(), strict=True)), torch.arange(8))
    close(other.prediction, output.prediction)
    close(renamed.losses(other, y).total, losses.total)
    with pytest.raises(ValueError, match="inputs must be"):
        model({"typo": inputs[names[0]]})


def test_a_prediction_is_independent_of_other_videos():
    """Whatever else shares the batch: the reading of Eq. 13 that is the default."""
    model = small_model().eval()

    def predict(rows, video=None):
        inputs, _, videos = small_batch(rows)
        return model(inputs, videos if video is None else video).prediction

    whole, alone = predict(range(6)), model(small_batch()[0]).prediction
    for rows in ([0, 1], [2, 3, 4], [5], [5, 4, 3, 2], [1, 0, 5]):
        close(predict(rows), whole[rows], atol=1e-5)
    close(predict([2]), alone[[2]], atol=1e-5)  # a segment without neighbors
    assert not torch.allclose(alone[[2]], whole[[2]], atol=1e-4)


def test_an_absent_modality_leaves_the_loss_finite():
    model, (inputs, y, video) = small_model(), small_batch()
    for m in NAMES:  # in the end all are absent
        values, lengths = inputs[m]
        inputs[m] = (values[:, :1], lengths * 0)
        losses = model.losses(model(inputs, video), y)
        losses.total.backward()
        assert losses.total.isfinite()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_dropout_reaches_the_components():
    """A dropout of 1 leaves of each block's last layer the bias."""
    model, (inputs, _, video) = small_model(dropout=1.0), small_batch()
    out = model(inputs, video)
    for m in NAMES:
        close(out.h[m], model.generators[m][-1].bias.expand(6, 6))
    close(out.prediction, model.predictor[3].bias.expand(6))


@pytest.mark.parametrize("seed", range(3))
def test_eight_segments_are_learned_by_heart(seed):
    """Gradients reach what they should. Weights differ by 1e-6 from seed to seed."""
    rows = [0, 1, 2, 3, 4, 5, 0, 2]
    model, (inputs, _, video) = small_model(dropout=0.0).eval(), small_batch(rows)
    y = torch.linspace(-3, 3, 6)[rows]
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p += 1e-6 * normal(100 * seed + i, *p.shape).float()
    optimizer = torch.optim.Adam(model.parameter_groups(), lr=5e-3)
    errors = []
    for _ in range(100):
        output = model(inputs, video)
        errors.append((output.prediction - y).abs().mean().item())
        model.losses(output, y).total.backward()
        for group in optimizer.param_groups:
            nn.utils.clip_grad_norm_(group["params"], 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert min(errors) < 0.2


@pytest.mark.parametrize(
    "call, names",
    [
        (lambda: msfn.BERTs(tiny_encoder(), 7, "max"), '"mean" or "cls"'),
        (lambda: msfn.minimax_loss(torch.zeros(2), [], "max"), '"bounded" or "literal"'),
        (lambda: msfn.adversarial_loss(scores(0), "max"), '"bounded" or "literal"'),
        (lambda: msfn.sentiment_classes(torch.zeros(2), "max"), '"seven" or "sign"'),
        (lambda: msfn.triplet_loss(normal(0, 2, 1), torch.arange(2), 1, "max"), '"mean" or "sum"'),
        (lambda: msfn.reconstruction_loss(features(0), features(1), "max"), '"mean" or "sum"'),
        (lambda: msfn.attention_mask(torch.zeros(2), "max"), '"video", "batch" or "segment"'),
        (lambda: msfn.task_loss(torch.zeros(2), torch.zeros(2), "max"), '"mean" or "sum"'),
        *[
            (lambda name=name: MSFNConfig(**{name: "max"}), f"{name} must be one of .*{values[0]}")
            for name, values in CHOICES.items()
            if isinstance(values[0], str)
        ],
    ],
)
def test_a_wrong_name_is_an_error_that_lists_the_right_ones(call, names):
    with pytest.raises(ValueError, match=names + ".*, not 'max'"):
        call()


def test_a_component_works_where_its_text_alone_is_copied():
    """Each with the functions that it calls and torch, and nothing else of this file."""
    tree = ast.parse(Path(msfn.__file__).read_text(encoding="utf-8"))
    parts = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    needs = {"adversarial_loss": ["minimax_loss"], "distance_loss": ["triplet_loss"]}
    x, y, z, n = normal(0, 5, 4), torch.tensor([0, 0, 1, 1, 2]), scores(0), torch.arange(5) % 4
    examples = {
        "LSTMs": lambda block: block(4, 6, 2).double().eval()(normal(1, 5, 3, 4), n),
        "BERTs": lambda block: block(tiny_encoder(), 6).eval()(torch.ones(5, 3).long(), n),
        "Generator": lambda block: block(4, 0.0).double()(x),
        "Discriminator": lambda block: block(4).double()(x),
        "minimax_loss": lambda loss: loss(z["a"]["a"], [z["a"]["v"]]),
        "adversarial_loss": lambda loss: loss(z, "bounded"),
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
    of_the_model = {"MSFNConfig", "Output", "Losses", "select_present", "MSFN"}
    assert set(examples) == set(parts) - of_the_model
    for name, example_of in examples.items():
        names = {"torch": torch, "nn": nn, "Tensor": Tensor}
        for each in [*needs.get(name, []), name]:
            exec(compile(ast.Module([parts[each]], []), each, "exec"), names)  # noqa: S102
        results = []
        for component in (names[name], getattr(msfn, name)):
            torch.manual_seed(0)
            results.append(example_of(component))
        assert torch.equal(*results), name


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
@example([(-3.6, -3), (-3.6, -2.6)])  # equal after clipping alone
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


@given(seeds)
def test_discriminator_means_are_what_the_discriminators_say(seed):
    """Over the segments that have the modality; nothing without two modalities."""
    rows = {"a": torch.tensor([0, 2]), "v": torch.tensor([1]), "l": torch.tensor([0, 1, 2, 4])}
    logits = scores(seed, (5, 5, 5))
    D = {(m, k): logits[m][k][rows[k]].sigmoid() for m in NAMES for k in NAMES}
    output = Output(None, {}, {}, {}, logits, rows)
    logged = train.discriminator_means(output)
    close(logged["d_real"], torch.cat([D[m, k] for m, k in D if m == k]).mean())
    close(logged["d_fake"], torch.cat([D[m, k] for m, k in D if m != k]).mean())
    alone = {m: r[: 3 * (m == "l")] for m, r in rows.items()}
    assert train.discriminator_means(output._replace(rows=alone)) == {}
