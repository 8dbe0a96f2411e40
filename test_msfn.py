"""Tests that bite: for each equation one oracle in plain loops and a few laws.

README's table names them beside Eqs. 1–16. Sizes are pairwise different, so that a wrong axis cannot
pass; structure is drawn by hypothesis, values are seeded.
"""

import csv
import hashlib
import http.server
import importlib
import itertools
import json
import math
import mmap
import os
import pickle
import random
import re
import signal
import struct
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file
from torch import nn
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

import data
import msfn
import train
from msfn import MODALITIES, MSFN, MSFNConfig

settings.register_profile("msfn", deadline=None, derandomize=True, database=None, max_examples=25)
settings.load_profile("msfn")
torch.set_num_threads(1)  # the tensors are tiny: threads only wait for each other

HERE = Path(__file__).resolve().parent
REAL = HERE.parent / "shared" / "data"  # real MOSI, not part of the project
needs_real_data = pytest.mark.skipif(not REAL.is_dir(), reason="real MOSI is not here")

seeds = st.integers(0, 2**31 - 1)
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
    """Eqs. 1, 2: the outputs at the two ends; padding, even NaN, is never read."""
    block = msfn.LSTMs(3, 7, width=2).double().eval()
    T = max(lengths) + extra
    X = torch.full((len(lengths), T, 3), math.nan, dtype=torch.float64)
    for i, n in enumerate(lengths):
        X[i, :n] = normal(seed + i, n, 3)
    x = block(X, torch.tensor(lengths))
    for i, n in enumerate(lengths):
        end = torch.zeros(4, dtype=torch.float64)
        if n:
            there, back = block.forward_lstm(X[i, :n])[0], block.backward_lstm(X[i, :n].flip(0))[0]
            end = torch.cat([there[-1], back[-1]])
        close(x[i], block.dense(end))
    x.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in block.parameters())


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


@given(seeds, lengths_lists, st.integers(0, 3), st.sampled_from(["mean", "cls"]), st.integers(0, 9))
def test_berts_read_each_sentence_as_if_alone(seed, lengths, extra, pooling, row_length):
    """Eq. 3: the mean, or the first, of the true tokens' last states; no words: the bias."""
    block = msfn.BERTs(tiny_bert(), 7, pooling, row_length=row_length).double().eval()
    ids = torch.randint(
        0, 50, (len(lengths), max(lengths) + extra), generator=torch.Generator().manual_seed(seed)
    )
    x = block(ids, torch.tensor(lengths))
    for i, n in enumerate(lengths):
        pooled = torch.zeros(8, dtype=torch.float64)
        if n:
            states = block.bert(input_ids=ids[i : i + 1, :n]).last_hidden_state[0]
            pooled = states.mean(0) if pooling == "mean" else states[0]
        close(x[i], block.dense(pooled))


@given(lengths_lists.filter(any), st.integers(0, 9))
def test_packed_rows_hold_every_token_once(lengths, row_length):
    sentence, position = msfn.pack(torch.tensor(lengths), row_length)
    places = zip(sentence.flatten().tolist(), position.flatten().tolist(), strict=True)
    held = [(i, t) for i, t in places if i >= 0]
    assert sorted(held) == [(i, t) for i, n in enumerate(lengths) for t in range(n)]
    assert sentence.shape[1] <= max(row_length, *lengths, 0)
    if row_length == 0:
        assert all(len(set(row) - {-1}) == 1 for row in sentence.tolist())
    used = (sentence >= 0).sum(1)
    assert row_length == 0 or all(
        n + m > row_length for n, m in itertools.combinations(used.tolist(), 2)
    )


def test_an_encoder_that_is_no_bert_reads_each_sentence_in_its_own_row():
    """RoBERTa's positions begin at 2: those of packed rows would be wrong."""
    torch.manual_seed(0)
    sizes = tiny_bert().config.to_dict()
    sizes = {name: sizes[name] for name in sizes if name.endswith(("size", "layers", "heads"))}
    encoder = RobertaModel(RobertaConfig(**sizes, max_position_embeddings=16, pad_token_id=1))
    block = msfn.BERTs(encoder, 7).double().eval()
    ids, lengths = torch.arange(5, 23).view(3, 6), torch.tensor([4, 0, 6])
    x = block(ids, lengths)
    for i, n in ((0, 4), (2, 6)):
        states = encoder(input_ids=ids[i : i + 1, :n]).last_hidden_state[0]
        close(x[i], block.dense(states.mean(0)))


def test_berts_leave_no_parameter_without_gradient():
    block = msfn.BERTs(tiny_bert(), 7)
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


def log_sigmoid(z):
    return -math.log1p(math.exp(-z))


@given(seeds, st.integers(1, 6), st.sampled_from(["literal", "bounded"]))
def test_adversarial_loss_term_by_term(seed, B, form):
    """Eqs. 5–7 for each modality by name, in loops; Eq. 8 their mean."""
    logits = scores(seed, B)
    total, each = msfn.adversarial_loss(logits, form)
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
    msfn.adversarial_loss(logits, form)[0].backward()
    for m, k in itertools.product(MODALITIES, MODALITIES):
        assert (logits[m][k].grad > 0).all() if k == m else (logits[m][k].grad < 0).all()


@given(seeds, st.permutations(MODALITIES), st.sampled_from(["literal", "bounded"]))
def test_adversarial_loss_follows_a_relabelling(seed, names, form):
    logits, new = scores(seed, 4), dict(zip(MODALITIES, names, strict=True))
    total, each = msfn.adversarial_loss(logits, form)
    total2, each2 = msfn.adversarial_loss(
        {new[m]: {new[k]: z for k, z in row.items()} for m, row in logits.items()}, form
    )
    close(total, total2)
    for m in MODALITIES:
        close(each[m], each2[new[m]])


def test_adversarial_loss_at_chance_and_at_the_extremes():
    chance = {m: {k: torch.zeros(3) for k in MODALITIES} for m in MODALITIES}
    close(msfn.adversarial_loss(chance, "literal")[0], math.log(2))
    close(msfn.adversarial_loss(chance, "bounded")[0], -3 * math.log(2), atol=1e-6)
    for z in (-1e4, 1e4):
        extreme = {
            m: {k: torch.full((3,), z, requires_grad=True) for k in MODALITIES} for m in MODALITIES
        }
        for form in ("literal", "bounded"):
            loss = msfn.adversarial_loss(extreme, form)[0]
            loss.backward()
            assert loss.isfinite() and extreme["a"]["v"].grad.isfinite().all()
    perfect = {
        m: {k: torch.full((3,), 1e4 if k == m else -1e4) for k in MODALITIES} for m in MODALITIES
    }
    assert msfn.adversarial_loss(perfect, "literal")[0] == 2e4  # unbounded above
    assert msfn.adversarial_loss(perfect, "bounded")[0] == 0  # bounded


def test_adversarial_loss_of_a_modality_without_samples():
    """E is over each modality's own samples: without any, its terms and its own game vanish."""
    logits = scores(0, 4)
    for m in MODALITIES:
        logits[m]["v"] = logits[m]["v"][:0]
    _, each = msfn.adversarial_loss(logits)
    assert each["v"] == 0
    lone = msfn.adversarial_loss({"l": {k: logits["l"][k][: 4 * (k == "l")] for k in MODALITIES}})
    assert lone[0] == 0  # nothing but reals
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


@given(seeds, labels, st.floats(0.1, 9))
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


@given(st.lists(st.floats(-4, 4), min_size=1))
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


@pytest.mark.parametrize("detach", [False, True])
def test_reconstruction_target_is_trainable_unless_detached(detach):
    x, x_hat = features(0, 3), features(9, 3)
    x["a"].requires_grad_(), x_hat["a"].requires_grad_()
    msfn.reconstruction_loss(x, x_hat, detach_target=detach).backward()
    assert (x["a"].grad is None) == detach and x_hat["a"].grad.abs().sum() > 0


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


def test_fusion_predictor_joins_a_v_l():
    block, F = msfn.FusionPredictor(4).double().eval(), features(0, 6)
    close(
        block(F["a"], F["v"], F["l"]),
        block.layers(torch.cat([F["a"], F["v"], F["l"]], dim=1))[:, 0],
    )


@given(labels, seeds)
def test_task_loss_by_hand(y, seed):
    y_hat = normal(seed, len(y))
    squares = [(a - b) ** 2 for a, b in zip(y, y_hat.tolist(), strict=True)]
    y = torch.tensor(y, dtype=torch.float64)
    close(msfn.task_loss(y, y_hat, "sum"), sum(squares))
    close(msfn.task_loss(y, y_hat), sum(squares) / len(y))


# ── Eq. 16 and the whole model ────────────────────────────────────────────────────────────────────


@given(*[st.floats(-9, 9)] * 7)
def test_total_loss_by_hand(task, adversarial, distance, reconstruction, alpha, beta, gamma):
    """Eq. 16; a weight of 0 takes its term out, which is a row of Table 4."""
    loss = msfn.total_loss(task, adversarial, distance, reconstruction, alpha, beta, gamma)
    assert loss == task + alpha * adversarial + beta * distance + gamma * reconstruction
    assert msfn.total_loss(task, 1e9, 1e9, 1e9, 0, 0, 0) == task


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
    close(out.prediction, model.predictor(F["a"], F["v"], F["l"]))


CHOICES = {
    "adversarial": ["literal", "bounded"],
    "classes": ["seven", "sign"],
    "triplet_reduction": ["mean", "sum"],
    "triplet_normalize": [False, True],
    "reconstruction_reduction": ["mean", "sum"],
    "task_reduction": ["mean", "sum"],
    "margin": [0.5, 1.0],
}


@given(st.fixed_dictionaries({name: st.sampled_from(values) for name, values in CHOICES.items()}))
def test_losses_are_the_equations_over_the_segments_that_have_the_modality(choices):
    """Each choice reaches its equation; an empty sequence is no sample of its modality."""
    model, batch = small_model(alpha=0.3, beta=0.7, gamma=1.1, **choices).eval(), small_batch()
    out, have = model(batch.inputs, batch.video), {m: batch.lengths[m] > 0 for m in MODALITIES}
    losses = model.losses(out, batch.y, batch.lengths)
    logits = {m: {k: out.logits[m][k][have[k]] for k in MODALITIES} for m in MODALITIES}
    h = {
        m: out.h[m] / out.h[m].norm(dim=1, keepdim=True)
        if choices["triplet_normalize"]
        else out.h[m]
        for m in MODALITIES
    }
    classes = msfn.sentiment_classes(batch.y, choices["classes"])
    hinge = [
        msfn.triplet_loss(
            h[m][have[m]], classes[have[m]], choices["margin"], choices["triplet_reduction"]
        )
        for m in MODALITIES
    ]
    x, x_hat = ({m: part[m][have[m]] for m in MODALITIES} for part in (out.x, out.x_hat))
    close(
        losses.task, msfn.task_loss(batch.y, out.prediction, choices["task_reduction"]), atol=1e-6
    )
    close(losses.adversarial, msfn.adversarial_loss(logits, choices["adversarial"])[0], atol=1e-6)
    close(losses.distance, sum(hinge) / 3, atol=1e-5)
    close(
        losses.reconstruction,
        msfn.reconstruction_loss(x, x_hat, choices["reconstruction_reduction"]),
        atol=1e-6,
    )
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
    alone = model(batch.inputs).prediction  # no video known
    close(model(*batch.select(torch.tensor([3]))).prediction, alone[[3]], atol=1e-5)


def test_an_absent_modality_leaves_the_loss_finite():
    model, batch = small_model(), small_batch()
    for m in MODALITIES:
        values, lengths = batch.inputs[m]
        batch.inputs[m] = (values if m == "l" else values[:, :1], lengths * 0)
        batch.lengths[m] = lengths * 0
        losses = model.losses(model(batch.inputs, batch.video), batch.y, batch.lengths)
        losses.total.backward()
        assert losses.total.isfinite()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_presets_are_table_1():
    table = {
        "d": (128, 256),
        "alpha": (0.2, 0.4),
        "beta": (0.5, 0.3),
        "gamma": (0.2, 0.1),
        "batch_size": (64, 16),
        "dropout": (0.1, 0.1),
    }
    for i, name in enumerate(("mosi", "mosei")):
        config = MSFNConfig.preset(name)
        assert {key: getattr(config, key) for key in table} == {
            key: values[i] for key, values in table.items()
        }
        assert config.learning_rate == 1e-4
    assert MSFNConfig.preset("mosei", batch_size=8).batch_size == 8


@pytest.mark.parametrize(
    "wrong",
    [
        {"adversarial": "hinge"},
        {"d": 0},
        {"attention": "all"},
        {"classes": "five"},
        {"learning_rate": -1.0},
        {"dropout": 2.0},
        {"clip": -1.0},
        {"seed": 2**30},
    ],
)
def test_config_names_what_is_wrong(wrong):
    (name, value), *_ = wrong.items()
    with pytest.raises(ValueError, match=f"{name}.*{value}"):
        train.Config(**wrong)


def test_dropout_and_pooling_reach_the_components():
    model = small_model(dropout=0.3, pooling="cls")
    own = [block for name, block in model.named_modules() if ".bert." not in name]
    rates = [block.p for block in own if isinstance(block, torch.nn.Dropout)]
    assert len(rates) == 7 and set(rates) == {0.3}  # three embeddings and generators, f
    assert model.embeddings["l"].pooling == "cls"


@pytest.mark.parametrize(
    "call",
    (
        lambda: msfn.BERTs(tiny_bert(), 7, "max"),
        lambda: msfn.adversarial_loss({}, "max"),
        lambda: msfn.sentiment_classes(torch.zeros(2), "max"),
        lambda: msfn.triplet_loss(torch.zeros(2, 1), torch.zeros(2), reduction="max"),
        lambda: msfn.reconstruction_loss({}, {}, "max"),
        lambda: msfn.attention_mask(torch.zeros(2), "max"),
        lambda: msfn.task_loss(torch.zeros(2), torch.zeros(2), "max"),
    ),
)
def test_a_component_names_the_choice_that_it_does_not_have(call):
    with pytest.raises(ValueError, match=r"must be .* not 'max'"):
        call()


# ── Metrics ───────────────────────────────────────────────────────────────────────────────────────

pairs = st.lists(
    st.tuples(st.floats(-4, 4), st.sampled_from([-3, -2.6, -0.5, 0, 0, 0.4, 1, 2.5])),
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


@given(seeds, st.floats(0.1, 9), st.floats(-9, 9))
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


# ── data.py: small files of each family ───────────────────────────────────────────────────────────


def mmsa_split(n=6, t=4, d=(3, 2), seed=0, prefix="video"):
    """MMSA's keys; padding on the right, lengths 0..t, segment i is clip i of video i // 3."""
    rng = np.random.default_rng(seed)
    part = {
        "raw_text": np.array([f"SENTENCE NUMBER {i}" for i in range(n)]),
        "id": np.array([f"{prefix}{i // 3}$_${i}" for i in range(n)]),
        "regression_labels": rng.uniform(-3, 3, n).astype(np.float32),
        "text_bert": np.tile(
            np.array([[101, 7592, 102, 0], [1, 1, 1, 0], [0] * 4], float), (n, 1, 1)
        ),
        "annotations": ["Neutral"] * n,
    }
    for key, width in zip(("audio", "vision"), d, strict=True):
        lengths = [(i * 2 + len(key)) % (t + 1) for i in range(n)]
        x = rng.normal(size=(n, t, width)).astype(np.float32) + 5
        for i, length in enumerate(lengths):
            x[i, length:] = 0
        part[key], part[f"{key}_lengths"] = x, lengths
    return part


def mmsa(**changes):
    """A file of MMSA's family; each split's videos have their own names."""
    return {s: mmsa_split(seed=k, prefix=s) | changes for k, s in enumerate(data.SPLITS)}


def mult_split(n=6, seed=0, ids=None):
    part = mmsa_split(n, seed=seed)
    return {
        "vision": part["vision"].astype(np.float64),
        "audio": np.asfortranarray(part["audio"]),
        "text": np.zeros((n, 4, 5)),
        "labels": part["regression_labels"].reshape(n, 1, 1),
        "id": np.array([f"v{i // 3}[{i}]".encode() for i in range(n)]) if ids is None else ids,
    }


def misa_split(n=6, seed=0, actual=False):
    part, samples = mmsa_split(n, seed=seed), []
    for i in range(n):
        words = part["raw_text"][i].split()
        t = len(words)
        inputs = (words, np.ones((t, 47)), np.ones((t, 74)))
        if actual:
            inputs = (np.arange(t), *inputs[1:], words)
        samples.append((inputs, part["regression_labels"][i].reshape(1, 1), f"v{i // 3}[{i}]"))
    return samples


def write(path, content, protocol=4):
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def lengths_of(split, m):
    return [len(split.frames(m, i)) for i in range(len(split))]


class Words:
    """A tokeniser of words, without the tokenizers library."""

    pad_token_id, model_max_length, vocab_size = 9, 512, 30522

    def __call__(self, texts, truncation, max_length):
        return {"input_ids": [[1, *range(10, 10 + len(t.split())), 2][:max_length] for t in texts]}


def segments(split, modalities="avl"):
    return data.Segments(split, Words(), data.Standardizer.fit(split), modalities)


# ── data.py: every family ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("protocol", range(6))
def test_mmsa_is_read_alike_from_every_protocol(tmp_path, protocol):
    content = mmsa()
    corpus = data.load("mosi", write(tmp_path / "any.name", content, protocol))
    assert corpus.dims == {"a": 3, "v": 2}
    for name in data.SPLITS:
        split, part = corpus[name], content[name]
        assert split.text[1] == "sentence number 1"  # was in capitals
        assert split.ids == part["id"].tolist()
        assert split.video == [f"{name}{i // 3}" for i in range(6)]
        np.testing.assert_array_equal(split.y, part["regression_labels"])
        for m, key in data.FRAMES.items():
            for i, n in enumerate(part[f"{key}_lengths"]):
                np.testing.assert_array_equal(split.frames(m, i), part[key][i, :n])


@pytest.mark.parametrize("protocol", (3, 4, 5))
def test_arrays_are_views_into_the_file(tmp_path, protocol):
    path = write(
        tmp_path / "f.pkl",
        {"x": np.ones((300, 7)), "y": np.asfortranarray(np.ones((9, 99)))},
        protocol,
    )
    content = data.unpickle(path)
    for x in content.values():
        assert not x.flags.owndata and not x.flags.writeable
        while isinstance(x, np.ndarray):
            x = x.base
        assert isinstance(x, mmap.mmap)
    assert content["y"].flags.f_contiguous


@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 5),
    st.sampled_from(["U3", "f2", "f8", "i1", ">f4", "O", "S2", "bool"]),
)
def test_unpickle_agrees_with_pickle(tmp_path_factory, seed, protocol, dtype):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 99, rng.integers(0, 4, rng.integers(0, 4))).astype(dtype)
    content = {
        "x": x,
        "s": np.float32(1.5),
        b"k": [1, -2, 1 << 70, 2.5, None, True, ("t", b"b" * 300, "é")],
        "F": x.T,
    }
    found = data.unpickle(write(tmp_path_factory.mktemp("p") / "f", content, protocol))
    assert found["x"].dtype == x.dtype and found["F"].shape == x.T.shape
    np.testing.assert_array_equal(found["x"], x)
    np.testing.assert_array_equal(found["F"], x.T)
    assert found["s"] == 1.5 and type(found["s"]) is np.float32
    assert bytes(found["k"].pop()[1]) == b"b" * 300 and found["k"] == [
        1,
        -2,
        1 << 70,
        2.5,
        None,
        True,
    ]


def test_numpy_1_module_paths(tmp_path):
    old = pickle.dumps(mmsa(), 2).replace(b"numpy._core", b"numpy.core")
    (tmp_path / "f").write_bytes(old)
    assert b"numpy.core" in old and len(data.load("mosi", tmp_path / "f")["train"]) == 6


@pytest.mark.parametrize("missing", (True, False))
@pytest.mark.parametrize("side", ("left", "right"))
def test_padding_on_either_side_is_trimmed(tmp_path, side, missing):
    content = mmsa()
    x, lengths = content["train"]["audio"], content["train"]["audio_lengths"]
    want = [x[i, :n].copy() for i, n in enumerate(lengths)]
    if side == "left":
        for i, n in enumerate(lengths):
            x[i] = np.roll(x[i], len(x[i]) - n, 0)
    if missing:
        del content["train"]["audio_lengths"]
    split = data.read(write(tmp_path / "f", content))["train"]
    for i, rows in enumerate(want):
        np.testing.assert_array_equal(split.frames("a", i), rows)


@given(
    st.integers(0, 5),
    st.integers(0, 2**32 - 1),
    st.sampled_from([None, 0, 2, 5, 99, -1, math.nan]),
    st.booleans(),
)
def test_true_length(n, seed, given_length, left):
    """Against a loop: cut to the length given, or else trim zeros from the side that has more."""
    x = np.zeros((5, 2))
    x[5 - n if left else 0 : 5 if left else n] = np.random.default_rng(seed).normal(size=(n, 2))
    length = math.nan if given_length is None or given_length < 0 else given_length
    split = data.Split(
        "s", (), ["i"], None, np.zeros(1), [""], None, {"a": x[None]}, {"a": np.array([length])}
    )
    found = split.frames("a", 0)
    want = 0 if n == 0 else n if math.isnan(length) else min(length, 5)
    assert len(found) == want
    if 0 < want <= n:
        start = 5 - want if left and n < 5 else 0
        np.testing.assert_array_equal(found, x[start : start + want])


def test_one_frame_in_the_middle_is_kept(tmp_path):
    x = np.zeros((6, 4, 3), np.float32)
    x[:, 1] = np.nan
    x[:, 2] = 1
    split = data.read(write(tmp_path / "f", mmsa(audio=x, audio_lengths=[math.nan] * 6)))["train"]
    np.testing.assert_array_equal(split.frames("a", 0), x[0, 2:])


def test_zeros_at_the_start_are_frames_if_the_length_says_so():
    x = np.array([[[0.0], [0], [1], [1], [0]]])
    np.testing.assert_array_equal(split_of(x, [4]).frames("a", 0), x[0, :4])


def label_csv(path, part, video=lambda i: f"v{i // 3}", clip=lambda i: i):
    with open(path, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(
            ["video_id", "clip_id", "text", "label", "annotation", "mode", "start", "end"]
        )
        for i, y in enumerate(np.ravel(part["labels"])):
            table.writerow([video(i), clip(i), f"text {i}", y, "", "", 10.25 * i, 0])
    return path


TRIPLES = np.array([[f"v{i // 3}", f"{10.25 * i}", "99"] for i in range(6)])


@pytest.mark.parametrize("first_clip", (0, 1))
@pytest.mark.parametrize("ids", (None, TRIPLES, TRIPLES.astype("S")))
def test_mult_takes_its_text_from_a_csv(tmp_path, ids, first_clip):
    part = mult_split(ids=ids)
    path = write(tmp_path / "f.pkl", dict.fromkeys(data.SPLITS, part))
    label_csv(tmp_path / "mosi_label.csv", part, clip=lambda i: i + first_clip)
    corpus = data.load("mosi", path)
    assert corpus["valid"].text == [f"text {i}" for i in range(6)]
    assert corpus["valid"].video == [f"v{i // 3}" for i in range(6)]
    np.testing.assert_allclose(corpus["valid"].y, part["labels"].ravel())


def test_mult_without_its_text(tmp_path):
    part = mult_split()
    path = write(tmp_path / "f.pkl", dict.fromkeys(data.SPLITS, part))
    with pytest.raises(
        data.DataError, match=r"split 'train' has no text.*CSV of video_id, clip_id, text"
    ):
        data.load("mosi", path)
    strangers = label_csv(tmp_path / "l.csv", part, video=lambda i: f"w{i}")
    with pytest.raises(data.DataError, match=r"l.csv has other ids or labels.*v0\[0\]"):
        data.load("mosi", path, strangers)
    shuffled = label_csv(tmp_path / "l.csv", {"labels": -part["labels"]})
    with pytest.raises(data.DataError, match="labels"):
        data.load("mosi", path, shuffled)
    (tmp_path / "l.csv").write_text("no,such,columns\n1,2,3\n")
    with pytest.raises(data.DataError, match="l.csv is no CSV"):
        data.load("mosi", path, tmp_path / "l.csv")


@pytest.mark.parametrize("actual", (True, False))
@pytest.mark.parametrize("folder", (True, False))
def test_misa(tmp_path, folder, actual):
    parts = {s: misa_split(seed=k, actual=actual) for k, s in enumerate(("train", "dev", "test"))}
    path = tmp_path if folder else tmp_path / "f"
    for name, part in parts.items() if folder else ():
        write(tmp_path / f"{name}.pkl", part)
    if not folder:
        write(path, parts)
    corpus = data.load("mosi", path)
    assert corpus.dims == {"a": 74, "v": 47}
    assert corpus["valid"].text[2] == "sentence number 2" and corpus["valid"].video[3] == "v1"
    np.testing.assert_allclose(corpus["valid"].y, [label.item() for _, label, _ in parts["dev"]])
    assert lengths_of(corpus["valid"], "a") == [3] * 6


def test_mosei_sentiment_comes_first(tmp_path):
    part = [(x, np.array([[1.5, 9, 9, 9, 9, 9, 9]]), i) for x, _, i in misa_split()]
    assert data.read(write(tmp_path / "f", {"train": part}))["train"].y.tolist() == [1.5] * 6


@pytest.mark.parametrize(
    ("id", "video"),
    [
        ("03bSnISJMiM$_$11", "03bSnISJMiM"),
        ("_0efYOjQYRc[3]", "_0efYOjQYRc"),
        ("6_0THN4chvY_12", "6_0THN4chvY"),
        ("abcdefgh_12", "abcdefgh_12"),  # eleven characters: a video of YouTube, with no clip
        ("100178$_$0", "100178"),
        ("03bSnISJMiM[1.5:20.25]", "03bSnISJMiM"),
        ("-HwX2H8Z4hY", "-HwX2H8Z4hY"),
        ("a$_$b[1]$_$2", "a$_$b[1]"),
    ],
)
def test_the_video_in_an_id(id, video):
    assert data.video_and_clip(id)[0] == video


def test_text_bert_stands_in_for_text(tmp_path):
    content = mmsa()
    for part in content.values():
        del part["raw_text"]
    split = data.load("mosi", write(tmp_path / "f", content))["train"]
    assert segments(split).tokens == [[101, 7592, 102]] * 6
    with pytest.raises(data.DataError, match="bert-base-uncased"):
        data.Segments(split, data.word_tokenizer(["a b"], 64), data.Standardizer.fit(split))


@pytest.mark.parametrize("wrong", (-1, 30522, np.nan))
def test_text_bert_with_other_ids(tmp_path, wrong):
    content = mmsa()
    for part in content.values():
        del part["raw_text"]
    content["test"]["text_bert"][2, 0, 1] = wrong
    with np.errstate(invalid="ignore"), pytest.raises(data.DataError, match="'text_bert'"):
        data.read(write(tmp_path / "f", content))


def test_a_negative_length_is_a_missing_one(tmp_path):
    content = mmsa(audio=np.ones((6, 4, 3)), audio_lengths=[-1, 4, 0, 2, 1e300, math.nan])
    found = lengths_of(data.read(write(tmp_path / "f", content))["train"], "a")
    assert found == [4, 4, 0, 2, 4, 4]


# ── data.py: nothing in a file is run ─────────────────────────────────────────────────────────────

RAN = []


def trap(*_):
    RAN.append(1)


class Reduce:
    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


def from_numpy(module, name, *args):
    """A pickle that calls a function of any module by its name."""
    text = "".join(f"V{a}\n" for a in args)
    return f"c{module}\n{name}\n({text}tR.".encode()


ARRAY = b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntVb\ntR"
OBJECTS = b"cnumpy\ndtype\n(VO8\nI0\nI1\ntR"


def payloads(touch):
    """Name -> pickle. Each would create the file `touch` or call `trap` if it were run."""
    command, code = f"touch {touch}", f"open({str(touch)!r}, 'w')"
    evil = Reduce(os.system, (command,))
    calls = {
        "os.system": evil,
        "eval": Reduce(eval, (code,)),
        "exec": Reduce(exec, (code,)),
        "popen": Reduce(subprocess.Popen, (["touch", str(touch)],)),
        "nested": Reduce(map, (Reduce(eval, (f"lambda x: {code}",)), [1])),
        "in an object array": np.array([evil, None], object),
        "in a tuple in a dict": {"train": {"audio": ("x", [evil])}},
        "as a key": {evil: 1},
        "as a shape": Reduce(np.zeros, (3,)),
        "numpy.load": Reduce(np.load, (str(touch), None, True)),
        "numpy.fromfile": Reduce(np.fromfile, (str(touch),)),
        "numpy.memmap": Reduce(np.memmap, (str(touch), "u1", "w+", 0, (1,))),
        "numpy.save": Reduce(np.save, (str(touch), 1)),
        "trap": Reduce(trap, ()),
        "trap as state setter": Reduce(list, (), [1], None, None, trap),
        "getattr": Reduce(getattr, ("a", "upper")),
        "bytes": Reduce(bytearray, (10**9,)),
        "torch": torch.zeros(2),
        "set": {1, 2},
        "class": Words(),
        "path": Path("/"),
    }
    raw = {
        "numpy._core.multiarray.fromfile": from_numpy("numpy._core.multiarray", "fromfile", touch),
        "numpy.testing runstring": from_numpy(
            "numpy.testing._private.utils", "runstring", code, ""
        ),
        "numpy.f2py": from_numpy("numpy.f2py", "compile", code),
        "numpy.ndarray.tofile": from_numpy("numpy", "ndarray.tofile", touch),
        "numpy dotted": from_numpy("numpy", "core.multiarray._reconstruct.__globals__", ""),
        "stack global": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c"
        + bytes([len(command)])
        + command.encode()
        + b"\x85R.",
        "inst": f"(V{command}\nios\nsystem\n.".encode(),
        "obj": f"(cos\nsystem\nV{command}\no.".encode(),
        "obj numpy": b"(cnumpy\nndarray\nI1\no.",
        "newobj": b"\x80\x02cnumpy\nndarray\nI5\n\x85\x81.",
        "newobj ex": b"\x80\x04cnumpy\nndarray\nI5\n\x85}\x92.",
        "persistent id": b"Pos.system\n.",
        "binary persistent id": b"Vos.system\nQ.",
        "ext1": b"\x80\x02\x82\x01.",
        "ext2": b"\x80\x02\x83\x01\x00.",
        "ext4": b"\x80\x02\x84\x01\x00\x00\x00.",
        "next buffer": b"\x80\x05\x97.",
        "build on a list": b"](Vappend\nI1\ndb.",
        "build on a string": b"Va\n(V__class__\nI1\ndb.",
        "reduce of a string": f"Vos.system\n(V{command}\ntR.".encode(),
        "dtype with fields": b"cnumpy\ndtype\n(VV8\nI0\nI1\ntR(I3\nV|\nN(Va\nt(Va\n("
        + OBJECTS
        + b"I0\ntdI8\nI1\nI0\ntb.",
        "objects over raw bytes": ARRAY + b"(I1\n(I1\nt" + OBJECTS + b"I00\nVAAAAAAAA\ntb.",
        "objects without a list": ARRAY + b"(I1\n(I1\nt" + OBJECTS + b"I00\n(I1\ntVx\ntb.",
        "string as dtype": ARRAY + b"(I1\n(I1\ntVO8\nI00\nVAAAAAAAA\ntb.",
        "array as dtype": ARRAY
        + b"(I1\n(I1\nt"
        + ARRAY
        + b"(I1\n(I1\nt"
        + OBJECTS
        + b"I00\n(lNatbI00\nVAAAAAAAA\ntb.",
        "class as dtype": ARRAY + b"(I1\n(I1\ntcnumpy\nndarray\nI00\nVAAAAAAAA\ntb.",
        "more bytes than values": ARRAY
        + b"(I1\n(I1\ntcnumpy\ndtype\n(Vu1\nI0\nI1\ntRI00\nVAAAAAAAA\ntb.",
        "negative shape": ARRAY
        + b"(I1\n(I-1\nI-8\ntcnumpy\ndtype\n(Vu1\nI0\nI1\ntRI00\nVAAAAAAAA\ntb.",
        "endless shape": ARRAY
        + b"(I1\n(I9999999999\nI99999\ntcnumpy\ndtype\n(Vu1\nI0\nI1\ntRI00\nVA\ntb.",
        "bytes of a number": b"cbuiltins\nbytes\n(I9999999999\ntR.",
        "itself": b"(lp0\ng0\na.",
        "a tuple as key, very deep": b"})" + b"\x85" * 300_000 + b"I1\ns.",
        "lists, very deep": b"]" * 200_000 + b"a" * 199_999 + b".",
        "a number of a megabyte": b"I" + b"9" * 1_000_000 + b"\n.",
        "100 GB of bytes": b"\x80\x04\x8e" + struct.pack("<Q", 10**11) + b"x.",
        "100 GB of text": b"\x80\x04\x8d" + struct.pack("<Q", 10**11) + b"x.",
        "100 GB of bytearray": b"\x80\x05\x96" + struct.pack("<Q", 10**11) + b"x.",
        "4 GB of text": b"\x80\x04X\xff\xff\xff\xff.",
    }
    made = {}
    for name, value in calls.items():
        for protocol in (0, 2, 4):
            made[f"{name}, protocol {protocol}"] = pickle.dumps(value, protocol)
    return made | raw


def test_nothing_in_a_hostile_file_is_run(tmp_path):
    touch, path = tmp_path / "touched", tmp_path / "f"
    np.save(tmp_path / "touched", np.array([1]))
    (tmp_path / "touched.npy").unlink()
    for name, content in payloads(touch).items():
        path.write_bytes(content)
        for protocol_body in (content, b"\x80\x04\x95" + struct.pack("<Q", len(content)) + content):
            path.write_bytes(protocol_body)
            with pytest.raises(data.DataError) as caught:
                data.unpickle(path)
            assert "\n" not in str(caught.value) and str(path) in str(caught.value), name
        assert not touch.exists() and not RAN, name


def test_a_refused_name_is_said(tmp_path):
    for value, name in (
        (Reduce(os.system, ("true",)), "posix.system"),
        (Reduce(eval, ("1",)), "builtins.eval"),
    ):
        with pytest.raises(data.DataError, match=f"asks for {name}"):
            data.unpickle(write(tmp_path / "f", {"x": np.array([value], object)}))
    for name in ("ndarray.tofile", "dtype_", "load", "core.multiarray.scalar_", "core.multiarray"):
        (tmp_path / "f").write_bytes(from_numpy("numpy", name, "x"))
        with pytest.raises(data.DataError, match=f"asks for numpy.{name}"):
            data.unpickle(tmp_path / "f")


def test_the_payloads_are_live(tmp_path):
    """The control: pickle itself does run one of them."""
    with pytest.raises(TypeError):
        pickle.loads(pickle.dumps(Reduce(eval, (f"open({str(tmp_path / 'x')!r}, 'w') + 1",))))
    assert (tmp_path / "x").exists()


# ── data.py: one sentence on what is wrong ────────────────────────────────────────────────────────


def broken(**changes):
    content = mmsa()
    content["valid"] |= changes
    return content


def without(*keys):
    content = mmsa()
    for key in keys:
        del content["valid"][key]
    return content


NAN = np.array([0, 1, np.nan, 0, 0, 0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
        (b"PK\x03\x04...", "zip"),
        (b"\x1f\x8b...", "gzip"),
        (b"\x89HDF\r\n...", "HDF5"),
        (b"hello", "damaged or no pickle"),
        (pickle.dumps(mmsa())[:-900], "cut short"),
        ([1, 2], "has no splits train, valid and test"),
        ({"a": 1}, r"has no splits.*\['a'\]"),
        ({"train": mmsa_split(), "test": mmsa_split()}, "no split 'valid', only train, test"),
        ({"valid": mmsa_split(), "test": mmsa_split()}, "no split 'train'"),
        (mmsa() | {"train": mmsa_split(0)}, r"split 'train'.*at least 1.*'audio': 0"),
        (mmsa() | {"train": []}, "split 'train'.*at least 1"),
        (mmsa() | {"train": 3}, "split 'train' is not as any family has it"),
        (without("audio"), "split 'valid' has no key 'audio', only raw_text"),
        (without("regression_labels"), "split 'valid' has no key 'regression_labels'"),
        (without("raw_text", "text_bert"), "split 'valid' has no text"),
        (broken(vision=np.zeros((5, 4, 2))), r"split 'valid'.*same N.*'vision': 5"),
        (broken(audio_lengths=[1]), r"same N.*'audio_lengths': 1"),
        (
            broken(regression_labels=NAN),
            r"split 'valid', key 'regression_labels': valid0\$_\$2 has nan",
        ),
        (broken(regression_labels=NAN - 8), r"valid0\$_\$0 has -8.0, outside \[-3, 3\]"),
        (broken(audio=np.zeros((6, 4))), r"split 'valid', key 'audio'"),
        (broken(audio=np.full((6, 4, 3), "x")), r"split 'valid', key 'audio'"),
        (broken(audio=np.zeros((6, 4, 7))), r"columns.*'a', 3.*'a', 7"),
        (broken(regression_labels=["a"] * 6), "split 'valid' is not as any family has it"),
        (mmsa() | {"test": [((1, 2), 3)]}, "split 'test' is not as any family has it"),
    ],
)
def test_each_fault_has_its_own_sentence(tmp_path, content, message):
    path = tmp_path / "f"
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content))
    with pytest.raises(data.DataError, match=message) as caught:
        data.load("mosi", path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_the_wrong_data_set(tmp_path):
    big = {
        s: mmsa_split(n, 1, prefix=s) for s, n in (("train", 1284), ("valid", 229), ("test", 686))
    }
    path = write(tmp_path / "f", big)
    assert "MOSI, 1,284 / 229 / 686" in data.load("mosi", path).description
    with pytest.raises(data.DataError, match="--dataset mosei.*MOSI, 1,284 / 229 / 686"):
        data.load("mosei", path)


def test_no_file_and_no_folder(tmp_path):
    for path in (tmp_path / "absent.pkl", tmp_path):
        with pytest.raises(data.DataError, match=str(path)):
            data.load("mosi", path)


def test_what_is_odd_is_said_and_trained(tmp_path):
    content = mmsa(vision=np.zeros((6, 4, 2)), vision_lengths=[0] * 6)
    content["train"]["raw_text"] = np.array([""] * 6)
    content["train"]["audio"][..., 1] = 4.0
    content["test"]["id"] = content["train"]["id"]
    corpus = data.load("mosi", write(tmp_path / "f", content))
    scale = data.Standardizer.fit(corpus["train"])
    notes = "\n".join(corpus.notes + scale.notes)
    assert "train: 6 of 6 texts are empty" in notes
    assert "LEAK: 2 videos are in train and in test" in notes
    assert "1 of 3 columns of audio" in notes and "2 of 2 columns of vision" in notes
    train = segments(corpus["train"])
    batch = train.collate([train[i] for i in range(6)])
    assert batch.inputs["v"][1].tolist() == [0] * 6 and batch.inputs["v"][0].shape == (6, 1, 2)


# ── data.py: damaged files ────────────────────────────────────────────────────────────────────────


def damage(content, rng):
    content = bytearray(content)
    match rng.randrange(4):
        case 0:  # flip a few bytes
            for _ in range(rng.randint(1, 8)):
                content[rng.randrange(len(content))] = rng.randrange(256)
        case 1:  # cut
            del content[rng.randrange(len(content)) :]
        case 2:  # splice: a stretch from one place over another
            n, at, to = (
                rng.randint(1, 200),
                rng.randrange(len(content)),
                rng.randrange(len(content)),
            )
            content[to : to + n] = content[at : at + n]
        case 3:  # flip bytes where the structure is: the start
            for _ in range(rng.randint(1, 4)):
                content[rng.randrange(min(400, len(content)))] = rng.randrange(256)
    return bytes(content)


DAMAGE = """
import random, resource, sys, time
sys.path[:0] = [{here!r}, {root!r}]
import data, test_{module} as tests
resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
counts, slowest = tests.try_damaged(2000, {path!r})
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base
print(counts["loaded"], counts["refused"], slowest, grown)
"""


def try_damaged(count, path):
    """Loads `count` damaged files; anything but success or a DataError escapes."""
    rng = random.Random(0)
    label_csv(Path(path).parent / "labels.csv", mult_split())
    whole = [
        pickle.dumps(content, protocol)
        for protocol in (0, 2, 3, 4, 5)
        for content in (
            mmsa(),
            dict.fromkeys(data.SPLITS, mult_split()),
            dict.fromkeys(("train", "dev", "test"), misa_split()),
        )
    ]
    counts, slowest = {"loaded": 0, "refused": 0}, 0.0
    for k in range(count):
        Path(path).write_bytes(damage(whole[k % len(whole)], rng))
        start = time.perf_counter()
        try:
            corpus = data.load("mosi", path)
            data.Standardizer.fit(corpus["train"])
            train = segments(corpus["train"])
            batch = train.collate([train[i] for i in range(len(train))])
            assert all(torch.isfinite(batch.inputs[m][0]).all() for m in "av")
            counts["loaded"] += 1
        except data.DataError as error:
            assert "\n" not in str(error)
            counts["refused"] += 1
        slowest = max(slowest, time.perf_counter() - start)
    return counts, slowest


def test_two_thousand_damaged_files(tmp_path):
    """Each loads or is a DataError, in under a second, in a process that may not grow beyond 6 GB."""
    module = Path(__file__).stem.removeprefix("test_")
    script = DAMAGE.format(
        here=str(HERE),
        root=str(Path(data.__file__).parent),
        module=module,
        path=str(tmp_path / "f"),
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    loaded, refused, slowest, grown = map(float, run.stdout.split()[-4:])
    assert loaded + refused == 2000 and min(loaded, refused) > 200
    assert slowest < 2 and grown < 300_000  # seconds, kB


# ── data.py: large files ──────────────────────────────────────────────────────────────────────────


def test_a_large_file_is_mapped_and_not_read(tmp_path):
    """2 GB of audio (a sparse file) open in well under a second within 200 MB."""
    n, t, d = 2000, 1000, 256
    split = mmsa_split(n, 1)
    split["audio_lengths"] = [1] * n
    path = write_sparse(tmp_path / "big.pkl", split, (n, t, d))
    script = f"""
import resource, sys, time
sys.path.insert(0, {str(Path(data.__file__).parent)!r})
import data
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
corpus = data.read({str(path)!r})
took = time.perf_counter() - start
print(took, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, corpus.dims["a"])
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    took, grown, dim = map(float, run.stdout.split())
    assert dim == d and took < 1 and grown < 200_000


def write_sparse(path, split, shape):
    """An MMSA train split whose audio is a hole of zeros, float32, spelled as protocol 4 spells it."""
    array = np.zeros((3, 1, 1), np.float32)
    marker = b"C\x0c" + array.tobytes()
    content = pickle.dumps({"train": split | {"audio": array}}, 4)
    content = content[:2] + content[11:]  # without its frame, which would have another length
    before, after = content.split(marker, 1)
    size = int(np.prod(shape)) * 4
    dims = b"".join(b"J" + struct.pack("<i", n) for n in shape)
    small = b"K\x03K\x01K\x01\x87"
    cut = before.rindex(small)
    before = before[:cut] + dims + b"\x87" + before[cut + len(small) :]
    with open(path, "wb") as file:
        file.write(before + b"\x8e" + struct.pack("<Q", size))
        file.seek(size, 1)
        file.write(after)
    return path


@pytest.mark.parametrize("opcodes", (b"X\xf0\xf0\xf0\xf0", b"I1"))
def test_a_damaged_length_in_a_large_file_copies_nothing(tmp_path, opcodes):
    with open(tmp_path / "f", "wb") as file:
        file.write(b"\x80\x04" + opcodes)
        file.truncate(5 << 30)
    with pytest.raises(data.DataError, match="at once"):
        data.unpickle(tmp_path / "f")


# ── data.py: the hub's stand-in ───────────────────────────────────────────────────────────────────


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's API as fetching needs; `mode` says what goes wrong."""

    files, mode, served = {}, "whole", []

    def log_message(self, *_):
        pass

    def do_GET(self):
        path = self.path.split("?")[0]
        if path.startswith("/api/datasets/"):
            files = [{"rfilename": p, "size": len(b)} for p, b in self.files.items()]
            listing = {"id": data.HUB, "sha": "0" * 40, "siblings": files}
            return self.answer(
                200, json.dumps(listing).encode(), {"Content-Type": "application/json"}
            )
        body = self.files.get(path.partition("/resolve/main/")[2])
        if body is None or self.mode == "absent":
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        self.served.append(path)
        start = int(self.headers.get("Range", "bytes=0-").split("=")[1].split("-")[0])
        sent = bytes(b ^ 1 for b in body) if self.mode == "corrupted" else body
        headers = {"ETag": f'"{len(body)}"', "X-Repo-Commit": "0" * 40, "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        cut = self.mode == "cut" and self.command == "GET"
        return self.answer(
            206 if start else 200, sent[start:], headers, (len(body) - start) // 2 if cut else None
        )

    do_HEAD = do_GET

    def answer(self, status, body, headers, cut=None):
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut])
        self.close_connection = cut is not None


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A stand-in on loopback with a MOSI file and MOSEI's in 13 parts; data/ is in tmp_path."""
    from huggingface_hub import constants

    mosi, mosei = pickle.dumps(mmsa()), pickle.dumps(mmsa(), 5)
    step = len(mosei) // 12
    parts = {
        f"mosei_unaligned_50/mosei_unaligned_50.pkl.part{k}": mosei[k * step : (k + 1) * step]
        for k in range(13)
    }
    Hub.files, Hub.mode, Hub.served = (
        {"mosi_unaligned_50.pkl": mosi, "README.md": b"", **parts},
        "whole",
        [],
    )
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)  # as HF_ENDPOINT sets them at import
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace("https://huggingface.co", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.chdir(tmp_path)
    hashes = {
        hashlib.sha256(b).hexdigest(): f"{n}_unaligned_50.pkl"
        for n, b in (("mosi", mosi), ("mosei", mosei))
    }
    monkeypatch.setattr(data, "SHA256", hashes)
    yield Hub
    server.shutdown()
    server.server_close()


def test_fetch_whole(hub, capsys):
    assert len(data.load("mosi")["train"]) == 6
    assert "the one that MMSA published" in capsys.readouterr().out
    served = len(hub.served)
    assert data.load("mosi")["train"].source[0] == "data/mosi_unaligned_50.pkl"
    assert len(hub.served) == served  # the second time it is there


def test_fetch_by_hf_endpoint(hub):
    """As a user would name a mirror: by the variable, in a new process; only the hash is patched."""
    from huggingface_hub import constants

    script = f"import data; data.SHA256 = {data.SHA256!r}; print(len(data.load('mosi')['train']))"
    root = str(Path(data.__file__).parent)
    env = os.environ | {"HF_ENDPOINT": constants.ENDPOINT, "PYTHONPATH": root}
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=env, check=True
    )
    assert run.stdout.endswith("published\n6\n")


def test_fetch_joins_the_parts_in_order(hub):
    assert len(data.load("mosei")["test"]) == 6
    assert {p.name for p in Path("data").iterdir()} == {".lock", "mosei_unaligned_50.pkl"}


def test_fetch_goes_on_where_it_stopped(hub):
    partial, whole = (
        Path("data/mosei_unaligned_50.pkl.partial"),
        b"".join(v for k, v in hub.files.items() if "part" in k),
    )
    partial.parent.mkdir()
    partial.write_bytes(whole[: len(whole) // 2])
    assert len(data.load("mosei")["test"]) == 6
    assert not any(path.endswith(("part0", "part3")) for path in hub.served)


def test_fetch_corrupted(hub):
    hub.mode = "corrupted"
    with pytest.raises(
        data.DataError,
        match=r"wrong, set aside, has SHA-256 [0-9a-f]{64}, but MMSA published [0-9a-f]{64}",
    ):
        data.load("mosi")
    assert Path("data/mosi_unaligned_50.pkl.wrong").exists() and data.find("mosi") == []
    hub.mode = "whole"
    assert len(data.load("mosi")["train"]) == 6


@pytest.mark.parametrize("mode", ("cut", "absent", "not listed", "no network", "offline"))
def test_fetch_that_cannot_be(hub, monkeypatch, mode):
    from huggingface_hub import constants

    hub.mode, start = mode, time.perf_counter()
    if mode == "not listed":
        hub.files = {"README.md": b""}
    if mode == "no network":
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    if mode == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(data.DataError) as caught:
        data.load("mosi")
    said = str(caught.value)
    for words in (
        data.HUB,
        "Google Drive",
        "Dropbox",
        "data/mosi_unaligned_50.pkl",
        "--dataset synthetic",
    ):
        assert words in said
    assert "\n" not in said and data.find("mosi") == [] and time.perf_counter() - start < 20


def test_files_under_data_are_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [
        "MOSI/Processed/aligned_50.pkl",
        "mosi_data.pkl",
        "mosei_data.pkl",
        "mosi/misa/train.pkl",
        "mosi/misa/dev.pkl",
    ]
    for name in names:
        Path("data", name).parent.mkdir(parents=True, exist_ok=True)
        Path("data", name).touch()
    assert [str(p) for p in data.find("mosei")] == ["data/mosei_data.pkl"]
    assert [str(p) for p in data.find("mosi")] == [
        "data/MOSI/Processed/aligned_50.pkl",
        "data/mosi/misa",
        "data/mosi_data.pkl",
    ]


# ── data.py: from the file to the model ───────────────────────────────────────────────────────────


def split_of(x, lengths=None):
    n = len(x)
    lengths = np.full(n, math.nan) if lengths is None else np.array(lengths, float)
    both = {"a": x, "v": np.zeros((n, 1, 1))}
    return data.Split(
        "s",
        (),
        [str(i) for i in range(n)],
        None,
        np.zeros(n, np.float32),
        [""] * n,
        None,
        both,
        {"a": lengths, "v": np.zeros(n)},
    )


@given(st.integers(0, 2**32 - 1))
def test_standardizer_against_loops(seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(1e4, 3, (7, 5, 4)).astype(np.float32)
    x[rng.random(x.shape) < 0.2] = rng.choice([np.nan, np.inf, -np.inf])
    x[..., 2] = 0.1
    lengths = rng.integers(0, 6, 7)
    split = split_of(x, lengths)
    scale = data.Standardizer.fit(split)
    for column in range(4):
        seen = [
            float(v) for i in range(7) for v in split.frames("a", i)[:, column] if math.isfinite(v)
        ]
        if not seen:
            continue
        mean = math.fsum(seen) / len(seen)
        std = math.sqrt(math.fsum((v - mean) ** 2 for v in seen) / len(seen))
        assert scale.mean["a"][column] == pytest.approx(mean)
        assert scale.std["a"][column] == pytest.approx(0 if column == 2 else std, abs=1e-9)
        for i in range(7):
            got = scale("a", split.frames("a", i))
            assert got.dtype == np.float32
            for v, w in zip(split.frames("a", i)[:, column], got[:, column], strict=True):
                dead = std < 1e-6 or not math.isfinite(v)
                assert w == pytest.approx(0 if dead else (v - mean) / std, abs=1e-3)


def test_standardizer_sample_is_bounded_and_seeded():
    x = np.random.default_rng(0).normal(size=(50, 3, 2))
    split, asked = split_of(x), []
    whole = split.frames
    split.frames = lambda m, i: asked.append(int(i)) or whole(m, i)
    first = data.Standardizer.fit(split, seed=1, sample=10)
    assert len(set(asked)) == 10
    assert data.Standardizer.fit(split, seed=1, sample=10).to_dict() == first.to_dict()
    assert data.Standardizer.fit(split, seed=2, sample=10).to_dict() != first.to_dict()
    again = data.Standardizer.from_dict(json.loads(json.dumps(first.to_dict())))
    np.testing.assert_array_equal(again("a", x[0]), first("a", x[0]))


def test_what_is_no_value_is_missing():
    """Infinities, what they become by nan_to_num alone, and what float32 cannot hold."""
    x = np.array([[[1.0], [2.0], [3.0], [-np.inf], [np.nan], [-3.4028235e38], [1e300]]])
    scale = data.Standardizer.fit(split_of(x))
    assert scale.mean["a"] == 2
    np.testing.assert_allclose(scale("a", x[0])[:, 0], [-(1.5**0.5), 0, 1.5**0.5, 0, 0, 0, 0])


@given(st.floats(-1e6, 1e6).filter(bool))
def test_a_constant_becomes_zero(value):
    x = np.full((50, 7, 1), value)
    assert not data.Standardizer.fit(split_of(x))("a", x[0]).any()


SYNTHETIC = data.synthetic()


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["avl", "l", "av", "a", "v"]))
def test_collate_pads_on_the_right_and_only_as_needed(seed, modalities):
    rng = np.random.default_rng(seed)
    split = SYNTHETIC["valid"]
    made = segments(split, modalities)
    rows = rng.integers(0, len(split), 5).tolist()
    batch = made.collate([made[i] for i in rows])
    assert batch.y.dtype == torch.float32 and batch.ids == [split.ids[i] for i in rows]
    for m, (x, lengths) in batch.inputs.items():
        assert (
            x.dtype == (torch.int64 if m == "l" else torch.float32) and lengths.dtype == torch.int64
        )
        assert x.shape[1] == max(lengths.max(), m != "l")
        for row, i, n in zip(x, rows, lengths.tolist(), strict=True):
            item = made[i][0][m]
            assert n == len(item) and (n > 0 or m not in modalities or m != "l")
            assert torch.equal(row[:n], item) and (row[n:] == (9 if m == "l" else 0)).all()
            assert n == 0 or m in modalities


def test_a_text_that_is_cut_is_said():
    split, words = split_of(np.ones((3, 1, 1))), Words()
    split.text = ["a b c d", "a", "a b c d e f g"]
    words.model_max_length = 5
    made = data.Segments(split, words, data.Standardizer.fit(split))
    assert [len(ids) for ids in made.tokens] == [5, 3, 5] and made.notes == [
        "s: 2 texts are cut to 5 tokens"
    ]
    assert segments(split).notes == []


def test_same_number_same_video(tmp_path):
    content = mmsa()
    made = segments(data.read(write(tmp_path / "f", content))["train"])
    assert made.video == [0, 0, 0, 1, 1, 1]
    for part in content.values():
        del part["id"]
    corpus = data.read(write(tmp_path / "f", content))
    assert segments(corpus["train"]).video == [-1] * 6 and any(
        "no ids" in note for note in corpus.notes
    )


def test_workers_map_the_file_again(tmp_path):
    content = mmsa()
    content["train"]["audio"] = np.ones((6, 20_000, 3), np.float32)
    made = segments(data.load("mosi", write(tmp_path / "f", content))["train"])
    sent = pickle.dumps(made.split)
    assert len(sent) < 500
    again = pickle.loads(pickle.dumps(made))
    assert all(torch.equal(again[i][0]["a"], made[i][0]["a"]) for i in range(6))
    loader = torch.utils.data.DataLoader(
        made, batch_size=3, collate_fn=made.collate, num_workers=1, multiprocessing_context="fork"
    )
    assert [batch.ids for batch in loader] == [made.split.ids[:3], made.split.ids[3:]]
    assert pickle.loads(pickle.dumps(data.synthetic()["test"])).ids == data.synthetic()["test"].ids


drawn = st.integers(1, 80).flatmap(
    lambda n: st.lists(st.integers(-1, n // 8), min_size=n, max_size=n)
)


@given(drawn, st.integers(1, 9), st.booleans(), st.none() | st.integers(0, 5))
def test_batches_hold_every_segment_once(video, size, whole, seed):
    plan = data.batches(video, size, whole, seed)
    assert sorted(i for batch in plan for i in batch) == list(range(len(video))) and all(plan)
    for batch in plan:
        videos = {video[i] for i in batch}
        assert len(batch) <= size or (whole and len(videos) == 1 and videos != {-1})
        if whole:
            assert all(i in batch for i, v in enumerate(video) if v in videos - {-1})
    if not whole:
        assert all(len(batch) == size for batch in plan[:-1])
        assert seed is not None or list(itertools.chain(*plan)) == list(range(len(video)))
    assert data.batches(video, size, whole, seed) == plan


def test_batches_differ_between_epochs_and_seeds():
    video = [i // 7 for i in range(300)]
    for whole in (True, False):
        plans = [data.batches(video, 32, whole, key) for key in ((0, 0), (0, 1), (1, 0))]
        one, two, three = ({frozenset(batch) for batch in plan} for plan in plans)
        assert one != two != three != one


def test_first_fit_fills_batches():
    video = [v for v, n in enumerate((5, 4, 3, 3, 9, 1)) for _ in range(n)]
    assert sorted(map(len, data.batches(video, 8, True))) == [8, 8, 9]


@needs_real_data
def test_most_token_positions_are_real_on_mosi():
    corpus = data.load("mosi", REAL / "mosi_std_text_audio.pkl")
    train = segments(corpus["train"])  # of words, and [CLS] and [SEP]
    lengths = torch.tensor([len(ids) for ids in train.tokens])
    for epoch in range(5):
        batches = data.batches(train.video, 64, True, epoch)
        rows = [msfn.pack(lengths[batch], 64)[0] for batch in batches]
        assert lengths.sum() / sum(row.numel() for row in rows) > 0.9
    assert corpus.notes == [] and len(set(corpus["train"].video)) == 52


@needs_real_data
def test_real_files_and_labels():
    split = data.read(REAL / "mosi_word_valid229.pkl")["valid"]
    assert (
        np.mean(lengths_of(split, "a")) == pytest.approx(11, abs=0.5)
        and max(lengths_of(split, "v")) == 44
    )
    found = data._captions(REAL / "mosi_label.csv", split.ids, split.y, "here")
    plain = lambda t: "".join(filter(str.isalpha, t.lower()))
    same = [plain(a) == plain(b) for a, b in zip(found, split.text, strict=True)]
    assert np.mean(same) > 0.8
    shifted = [
        f"{i.split('$_$')[0]}[{int(i.split('$_$')[1]) - 1}]" for i in split.ids
    ]  # MISA's 0-based
    assert data._captions(REAL / "mosi_label.csv", shifted, split.y, "here") == found


# ── data.py: synthetic data ───────────────────────────────────────────────────────────────────────


def test_synthetic_data_are_like_real_ones():
    corpus, again = data.load("synthetic"), data.synthetic()
    assert "SYNTHETIC" in corpus.description and [len(corpus[s]) for s in data.SPLITS] == [
        600,
        150,
        150,
    ]
    words, videos = set(), []
    for name in data.SPLITS:
        split = corpus[name]
        words |= set(" ".join(split.text).split())
        videos.append(set(split.video))
        assert split.text == again[name].text and np.abs(split.y).max() <= 3
        for m in "av":
            frames = [split.frames(m, i) for i in range(len(split))]
            assert {0} < {len(x) for x in frames} and any(np.isneginf(x).any() for x in frames)
            for i, x in enumerate(frames):
                np.testing.assert_array_equal(x, again[name].frames(m, i))
    assert len(words) < 200 and not set.intersection(*videos) and len(videos[0]) > 20


def test_each_synthetic_modality_has_something_of_its_own():
    """Least squares: each modality alone predicts y, and each adds to the two others."""
    split = data.synthetic()["train"]
    grade = {w: g for g, ws in data.GRADES.items() for w in ws.split()}
    degree = {adverb.strip(): d for adverb, d in data.DEGREES.items()}
    pairs = [list(itertools.pairwise(t.split())) for t in split.text]
    text = [np.mean([degree.get(b, 1) * grade[w] for b, w in p if w in grade]) for p in pairs]
    means = {
        m: [
            x[:, :-1].clip(-9, 9).mean(0) if len(x) else 0 * x.sum(0)[:-1]
            for x in (split.frames(m, i) for i in range(600))
        ]
        for m in "av"
    }
    views = {"l": np.array(text)[:, None], "a": np.array(means["a"]), "v": np.array(means["v"])}

    def corr(*names):
        x = np.hstack([views[n] for n in names] + [np.ones((600, 1))])
        return np.corrcoef(x @ np.linalg.lstsq(x, split.y, rcond=None)[0], split.y)[0, 1]

    together = corr("a", "v", "l")
    assert together > 0.85
    for alone, others in (("a", "vl"), ("v", "al"), ("l", "av")):
        assert corr(alone) > 0.5 and corr(*others) < together - 0.005


def test_word_tokenizer():
    tokenizer = data.word_tokenizer(["good movie", "bad movie"], 64)
    assert len(tokenizer) == 7 and tokenizer.pad_token_id == 0
    assert tokenizer(["bad film movie"])["input_ids"] == [[2, 4, 1, 6, 3]]
    assert pickle.loads(pickle.dumps(tokenizer)).get_vocab() == tokenizer.get_vocab()


def test_no_tokenizer_is_one_sentence(tmp_path):
    with pytest.raises(data.DataError, match="holds no tokeniser") as caught:
        data.load_tokenizer(str(tmp_path))
    assert "\n" not in str(caught.value)


# ── data.py: the command ──────────────────────────────────────────────────────────────────────────


def explain(*arguments):
    return subprocess.run(
        [sys.executable, data.__file__, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_explains(tmp_path, capsys, monkeypatch):
    content = mmsa()
    content["train"]["audio"][1, 0, 0] = -np.inf
    content["test"]["id"] = content["train"]["id"]
    path = write(tmp_path / "f", content)
    monkeypatch.setattr(data, "SHA256", {data.sha256(path): "a published file"})
    data.explain(path, digest=True)
    said = capsys.readouterr().out
    for words in (
        "(6, 4, 3) float32",
        "6 segments, 2 videos",
        "1 -inf",
        "0 to 4 frames",
        "LEAK",
        "a published file",
        "MMSA's",
    ):
        assert words in said, words


def test_the_command_fails_in_one_line(tmp_path, monkeypatch, capsys):
    odd = write(tmp_path / "odd", mmsa() | {"train": {"audio": 3, "vision": None, "labels": {}}})
    for path in (tmp_path / "absent", tmp_path, write(tmp_path / "f", [1]), odd):
        monkeypatch.setattr(sys, "argv", ["data.py", str(path)])
        with pytest.raises(SystemExit) as left:
            data.main()
        said = capsys.readouterr().err
        assert left.value.code == 2 and said.count("\n") == 1 and str(path) in said
    run = explain(tmp_path / "absent")
    assert run.returncode == 2 and run.stderr.count("\n") == 1 and not run.stdout


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
    lengths = {m: n for m, (_, n) in inputs.items()}
    optimizer = torch.optim.Adam(model.parameter_groups(), lr=3e-3)
    for _ in range(200):
        losses = model.losses(model(inputs), y, lengths)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
    assert train.metrics(model(inputs).prediction.detach().numpy(), y.numpy())["mae"] < 0.2


def quick(**typed):
    """The synthetic run of the README, cut short."""
    return train.Config.preset("synthetic", **{"epochs": 2, "d": 16, "lstm_width": 8, **typed})


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

    def prepared(config, prepare=train.prepare):
        run = prepare(config)
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
    read, original = set(), data.Split.frames

    def recorded(split, m, i):
        read.add(split.name)
        return original(split, m, i)

    monkeypatch.setattr(data.Split, "frames", recorded)
    results = train.train(quick(epochs=1, test=False, runs=str(tmp_path)))
    assert read == {"train", "valid"} and "test" not in results


def test_typed_beats_preset_beats_default():
    config = train.Config.preset("mosei", batch_size=8)
    assert (config.batch_size, config.d, config.margin) == (8, 256, train.Config().margin)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("--dataset mosi --data nowhere.pkl", "nowhere.pkl"),
        ("--dataset synthetic --bert nowhere/bert", "nowhere/bert"),
        ("--dataset synthetic --data x.pkl", "x.pkl"),
        ("--dataset synthetic --device cuda:77", "cuda:77"),
        ("--dataset synthetic --device cpu:x", "cpu:x"),
        ("--dataset synthetic --modalities aw", "aw"),
        ("--dataset synthetic --epochs 0", "epochs"),
        ("--dataset synthetic --bert-learning-rate -1", "bert_learning_rate"),
        ("--dataset synthetic --attention all", "all"),
        ("--dataset imdb", "imdb"),
    ],
)
def test_what_a_user_does_wrong_ends_in_one_sentence(argv, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SystemExit) as stop:
        train.main(argv.split())
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2 and said in error and "error:" in error
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), 2, "--batch-size"),
        (train.Stopped("go on with --resume runs/x"), 130, "--resume runs/x"),
        (KeyboardInterrupt(), 130, "stopped"),
        (data.DataError("x.pkl is empty"), 2, "error: x.pkl is empty"),
    ],
)
def test_how_a_run_ends(raised, code, said, monkeypatch, capsys):
    def ends(*_, **__):
        raise raised

    monkeypatch.setattr(train, "train", ends)
    with pytest.raises(SystemExit) as stop:
        train.main(["--dataset", "synthetic"])
    error = capsys.readouterr().err
    assert stop.value.code == code and said in error and error.count("\n") == 1


# ── Resume, many processes, finished runs ─────────────────────────────────────────────────────────


def command(*argv, **options):
    """train.py in a process of its own, on one thread"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    argv = [sys.executable, str(HERE / "train.py"), *map(str, argv)]
    return subprocess.Popen(argv, env=environment, text=True, **options)


QUICK = ["--dataset", "synthetic", "--epochs", "2", "--d", "16", "--lstm-width", "8"]


@pytest.mark.parametrize("kill", ["SIGKILL", "SIGINT"])
def test_a_killed_run_resumes_to_the_same_bits(kill, two_runs, tmp_path):
    """Killed once its first checkpoint is there, at whatever step that is."""
    whole, folder = two_runs[0] / "synthetic-seed0", tmp_path / "runs" / "killed"
    process = command(
        *QUICK, "--save-minutes", 0, "--name", "killed", cwd=tmp_path, stderr=subprocess.PIPE
    )
    while not (folder / train.CHECKPOINT).exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(getattr(signal, kill))
    said = process.communicate()[1]
    assert not (folder / "results.json").exists()
    if kill == "SIGINT":
        assert process.returncode == 130 and f"--resume {Path('runs/killed')}" in said
    resumed = train.resume(folder)
    assert resumed == json.loads((whole / "results.json").read_text())
    assert (folder / train.WEIGHTS).read_bytes() == (whole / train.WEIGHTS).read_bytes()
    logs = [(f / "metrics.jsonl").read_text().splitlines() for f in (whole, folder)]
    for one, other in zip(*logs, strict=True):
        assert {**json.loads(one), "seconds": 0} == {**json.loads(other), "seconds": 0}


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(tmp_path):
    path = tmp_path / "results.json"
    train.write_json(path, {"kept": 1})
    with pytest.raises(train.UserError, match="No space left"), train.replacing(path) as beside:
        beside.write_text("half")
        raise OSError(28, "No space left on device")
    assert json.loads(path.read_text()) == {"kept": 1} and list(tmp_path.iterdir()) == [path]


def share_a_batch(rank, world, folder):
    torch.set_num_threads(1)
    train.RANK, train.WORLD = rank, world
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world
    )
    model = small_model(dropout=0.5).eval()
    forward = train.distribute(model, torch.device("cpu"))
    found = {n: value.clone() for n, value in loss_and_gradients(model, forward).items()}
    forward.train()  # with dropout
    torch.manual_seed(0)
    found["training"] = loss_and_gradients(model, forward)["loss"]
    save_file(found, folder / f"{rank}.safetensors")
    torch.distributed.destroy_process_group()


def loss_and_gradients(model, forward):
    batch = small_batch()
    losses = model.losses(forward(batch.inputs, batch.video), batch.y, batch.lengths)
    losses.total.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {"loss": losses.total.detach(), **gradients}


def test_two_processes_give_the_loss_and_gradients_of_one(tmp_path):
    """Each has half of the batch; Eqs. 5–10 and 13 see all of it. Dropout there is alike in both."""
    torch.multiprocessing.spawn(share_a_batch, (2, tmp_path), 2)
    model = small_model().eval()
    alone = loss_and_gradients(model, model)
    one, two = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    for name, value in alone.items():
        close(one[name], value, atol=1e-5)
        close(two[name], value, atol=1e-5)
    close(one["training"], two["training"])
    assert abs(one["training"] - one["loss"]) > 1e-3


def test_accumulated_gradients_are_the_mean_of_the_batches():
    run = train.prepare(quick(grad_accum=2))
    run.model.eval()
    batch = next(iter(train.loader(run.segments["valid"], quick())))
    gradients = []
    for config in (quick(), quick(grad_accum=2)):
        run.model.zero_grad()
        for _ in range(config.grad_accum):
            train.train_step(run, run.model, config, batch)
        gradients.append([p.grad.clone() for p in run.model.parameters() if p.grad is not None])
    for one, two in zip(*gradients, strict=True):
        close(one, two, atol=1e-5)


def test_bf16_changes_the_forward_pass_and_leaves_the_losses_in_float32():
    run = train.prepare(quick())
    batch = next(iter(train.loader(run.segments["valid"], quick())))
    run.model.eval()
    exact = train.train_step(run, run.model, quick(amp="off"), batch)
    rough = train.train_step(run, run.model, quick(amp="bf16"), batch)
    assert exact.dtype == rough.dtype == torch.float32
    assert not torch.equal(exact, rough)
    torch.testing.assert_close(exact, rough, atol=0.05, rtol=0.05)


def test_both_sides_are_clipped_by_themselves_and_bert_may_be_slower():
    run = train.prepare(quick())
    config = quick(clip=0.5, bert_learning_rate=1e-9)
    optimizer = train.make_optimizer(run, config)
    before = {n: p.detach().clone() for n, p in run.model.named_parameters()}
    for name, parameter in run.model.named_parameters():
        parameter.grad = torch.full_like(parameter, 7.0 if "discriminators" in name else 1.0)
    optimizer.zero_grad = lambda: None  # the clipped gradients stay to be looked at
    train.update(optimizer, config)
    sides = {True: [], False: []}
    for name, parameter in run.model.named_parameters():
        sides["discriminators" in name].append(parameter.grad.square().sum())
        step = parameter.detach() - before[name]  # Adam's first step is the rate, times the sign
        rate = 1e-9 if ".bert." in name else config.learning_rate
        expected = torch.full_like(step, rate if "discriminators" in name else -rate)
        torch.testing.assert_close(step, expected, rtol=0.02, atol=2e-7)
    for squares in sides.values():
        close(sum(squares).sqrt(), 0.5, atol=1e-4)


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
    with pytest.raises(train.UserError, match=r"distance loss is nan in epoch 0, step 0.*synth"):
        train.train(quick(runs=str(tmp_path)))
    assert not list(tmp_path.glob("*/" + train.WEIGHTS))


def test_predictions_that_are_not_finite_end_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "metrics", lambda *_: {"mae": math.nan})
    with pytest.raises(train.UserError, match="valid MAE is nan after epoch 0"):
        train.train(quick(runs=str(tmp_path)))


def test_patience_counts_the_epochs_without_a_better_one(tmp_path, monkeypatch):
    found = iter([0.9, 0.8, 0.8, 0.85, 0.1, 0.1])
    monkeypatch.setattr(train, "train_epoch", lambda *_: dict.fromkeys(train.LOGGED, 0.0))
    monkeypatch.setattr(train, "metrics", lambda *_: {"mae": next(found), "corr": 0.0})
    monkeypatch.setattr(train, "show", lambda *_: None)
    results = train.train(quick(runs=str(tmp_path), epochs=9, patience=2))
    assert results["epoch"] == 1 and results["valid"]["mae"] == 0.8 and next(found) == 0.1


def test_a_checkpoint_of_other_data_is_refused(tmp_path):
    folder, config = tmp_path / "other", quick(runs=str(tmp_path), name="other", epochs=1)
    train.train(config)
    (folder / "results.json").unlink()
    for content in (b"x" * 100, save({"model.predictor.layers.0.weight": torch.zeros(1)})):
        (folder / train.CHECKPOINT).write_bytes(content)
        with pytest.raises(train.UserError, match=r"checkpoint\.safetensors is damaged, or of"):
            train.resume(folder)


def test_a_resumed_run_keeps_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "DATA", tmp_path)
    path = write(tmp_path / "mosi_b.pkl", mmsa())
    config = train.Config.preset("mosi", bert=train.SMALL_BERT, d=4)
    train.prepare(config)
    write(tmp_path / "mosi_a.pkl", mmsa())
    assert config.data == str(path)


def test_a_text_longer_than_the_small_bert_is_cut(two_runs, capsys):
    folder = two_runs[0] / "synthetic-seed0"
    one, two = (train.predict_text(folder, "good " * n, None, None) for n in (62, 99))
    assert one == two


def test_a_run_folder_is_enough_to_predict(two_runs, capsys, monkeypatch, tmp_path):
    """Evaluate gives the test metrics again; a sentence alone gives what the model in Python does."""
    folder = two_runs[0] / "synthetic-seed0"
    assert train.evaluate(folder, None) == two_runs[1][0]["test"]
    with open(folder / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    y_hat = np.array([float(row["prediction"]) for row in rows])
    names = ["prediction", "without_a", "without_v", "without_l"]
    assert list(rows[0]) == ["id", "text", "label", *names]
    assert len({tuple(row[name] for row in rows) for name in names}) == 4
    assert np.abs(y_hat - [float(row["label"]) for row in rows]).mean() == pytest.approx(
        two_runs[1][0]["test"]["mae"], abs=1e-3
    )
    np.save(tmp_path / "a.npy", np.ones((3, 12)))
    np.save(tmp_path / "wide.npy", np.ones((3, 13)))
    for wrong in ("wide.npy", "absent.npy"):
        with pytest.raises(train.UserError, match=wrong):
            train.predict_text(folder, "the movie was superb", tmp_path / wrong, None)
    one = train.predict_text(folder, "the movie was superb", None, None)
    assert one != train.predict_text(folder, "the movie was superb", tmp_path / "a.npy", None)
    ids = data.load_tokenizer(folder / "bert")("the movie was superb", return_tensors="pt")
    inputs = {m: (torch.zeros(1, 1, d), torch.tensor([0])) for m, d in (("a", 12), ("v", 8))}
    inputs["l"] = ids["input_ids"], torch.tensor([ids["input_ids"].shape[1]])
    assert MSFN.from_run(folder)(inputs).prediction.item() == pytest.approx(one)


# ── experiments/ ──────────────────────────────────────────────────────────────────────────────────


def script(name):
    if str(HERE / "experiments") not in sys.path:
        sys.path.append(str(HERE / "experiments"))
    return importlib.import_module(name)


def test_a_table_shows_every_seed_and_what_is_noise(tmp_path, monkeypatch, capsys):
    """From results.json files alone: mean ± std, paired differences, nothing dropped."""
    tables, mae = script("tables"), {"MSFN": [0.8, 0.7, 0.9], "without L^a": [0.9, 0.81, 0.99]}
    for row, values in mae.items():
        for seed, value in enumerate(values):
            folder = tables.folder_of(tmp_path, row, seed)
            folder.mkdir()
            test = dict.fromkeys(tables.COLUMNS, 0.5 + 0.1 * (seed == 1)) | {"mae": value}
            (folder / "results.json").write_text(json.dumps({"test": test, "seed": seed}))
    argv = ["tables.py", "--table", "4", "--seeds", "3", "--from", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", argv)
    tables.main()
    said = capsys.readouterr().out
    assert "| 0.800 ± 0.100 |" in said and "**without L^a**, 3 seeds" in said
    assert said.count("| seed ") == 6 and "| paper: MSFN | 83.4 |" in said
    assert "| 0.100 ± 0.006 |" in said and "| 0.0 ± 0.0 (within noise) |" in said


def test_a_table_resumes_where_it_stopped(tmp_path, monkeypatch):
    tables, calls = script("tables"), []
    monkeypatch.setattr(tables.subprocess, "call", lambda command, **_: calls.append(command) or 0)
    done, begun, new = (tmp_path / name for name in ("done", "begun", "new"))
    for folder, name in ((done, "results.json"), (begun, "config.json")):
        folder.mkdir()
        (folder / name).write_text("{}")
    for folder in (done, begun, new):
        tables.run(folder, ["--alpha", "0"], 1)
    assert [command[2] for command in calls] == ["--resume", "--alpha"]
    config = train.Config.preset("mosi", alpha=0.0)
    (begun / "config.json").write_text(json.dumps(asdict(config)))
    tables.same_options(begun, ["--dataset", "mosi", "--alpha", "0"])
    with pytest.raises(train.UserError, match=r"alpha = 0.0, not 0.2"):
        tables.same_options(begun, ["--dataset", "mosi"])


def test_a_grid_is_the_product_of_its_axes_and_its_sample_is_seeded():
    grid = script("grid")
    assert len(grid.trials(None, 0)) == math.prod(map(len, grid.GRID.values()))
    assert {**msfn.TABLE_1["mosi"], **grid.trials(None, 0)[0]}.keys() == {*msfn.HYPER, "margin"}
    sample = grid.trials(20, 1)
    assert sample == grid.trials(20, 1) != grid.trials(20, 2)
    assert len({tuple(point.values()) for point in sample}) == 20


@given(seeds, st.floats(0.1, 3))
def test_cmd_by_loops(seed, scale):
    X, Y = normal(seed, 4, 3), scale * normal(seed + 1, 6, 3)
    expected = 0.0
    for k in range(1, 6):
        square = 0.0
        for j in range(3):
            x, y = X[:, j].tolist(), Y[:, j].tolist()
            moments = []
            for values in (x, y):
                centre = sum(values) / len(values) if k > 1 else 0
                moments.append(sum((v - centre) ** k for v in values) / len(values))
            square += (moments[0] - moments[1]) ** 2
        expected += square**0.5
    similarity = script("similarity")
    close(similarity.cmd(X, Y), expected)
    close(similarity.cmd(X, X[[2, 0, 3, 1]]), 0)
    close(similarity.mean_cmd({"a": X, "l": Y}), similarity.mean_cmd({"a": 5 * X, "l": 5 * Y}))


def test_the_probe_tells_apart_what_is_apart_and_nothing_else():
    similarity, video = script("similarity"), torch.arange(200) // 5
    alike = {m: normal(i, 200, 150, dtype=torch.float32) for i, m in enumerate("avl")}
    apart = {m: h + 9 * i for i, (m, h) in enumerate(alike.items())}
    videos = dict.fromkeys("avl", video)
    assert similarity.probe(apart, videos) == 1
    assert abs(similarity.probe(alike, videos) - 1 / 3) < 0.1
    # 20 times as many of one modality do not make its name a good guess
    few, rows = {"a": alike["a"][:20], "l": alike["l"]}, {"a": video[:20], "l": video}
    assert abs(similarity.probe(few, rows) - 1 / 2) < 0.2
    unknown = {m: torch.full_like(v, -1) for m, v in rows.items()}
    assert abs(similarity.probe(few, unknown) - 1 / 2) < 0.2


@given(seeds, labels, st.sampled_from([0.2, 1.0]))
def test_violated_triplets_by_loops(seed, y, margin):
    h, y = normal(seed, len(y), 5, dtype=torch.float32), torch.tensor(y)
    found = []
    for a, p, n in itertools.product(range(len(y)), repeat=3):
        if a != p and y[a] == y[p] != y[n]:
            d_ap, d_an = math.dist(h[a], h[p]), math.dist(h[a], h[n])
            found.append((d_ap + margin > d_an, d_ap, d_an))
    expected = np.mean(found, axis=0) if found else [0, 0, 0]
    close(script("similarity").triplets(h, y, margin), torch.tensor(expected), atol=1e-5)


def test_only_over_the_batch_does_a_prediction_drift():
    similarity, config = script("similarity"), quick(attention="batch")
    assert similarity.similarity(train.prepare(config), config)["drift"] > 1e-4
    config = quick(attention="video")
    run = train.prepare(config)
    one, two = (train.predict(run, run.segments["valid"], config, epoch)[0] for epoch in (None, 3))
    close(torch.from_numpy(one), torch.from_numpy(two), atol=1e-5)


def test_the_game_moves_generators_and_discriminators_alone(monkeypatch, capsys):
    game, kept = script("game"), []

    def prepared(config, prepare=train.prepare):
        run = prepare(config)
        kept.extend((run.model, {n: p.detach().clone() for n, p in run.model.named_parameters()}))
        return run

    monkeypatch.setattr(train, "prepare", prepared)
    monkeypatch.setattr(sys, "argv", ["game.py", "--steps", "1", "--", "--d", "16"])
    game.main()
    model, before = kept
    moved = {n.split(".")[0] for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"generators", "discriminators"}
    assert capsys.readouterr().out.count("\n| ") == 4  # head, rule, steps 0 and 1


def test_readings_change_one_thing_and_show_the_difference(tmp_path, monkeypatch, capsys):
    readings = script("readings")
    parser = train.build_parser()
    default = asdict(train.Config.preset("mosi"))
    for name, (_, options) in readings.READINGS.items():
        config = asdict(train.configure(vars(parser.parse_args(options.split()))))
        changed = {key for key in config if config[key] != default[key]}
        assert len(changed) == len(options.split("--")) - 1, name
    for row, mae in (("default", 0.8), ("cls", 0.9)):
        for seed in range(2):
            folder = readings.tables.folder_of(tmp_path / "mosi", row, seed)
            folder.mkdir(parents=True)
            split = {"mae": mae + seed / 10, "corr": 0.7}
            (folder / "results.json").write_text(
                json.dumps({"epoch": 1, "valid": split, "test": split})
            )
            observed = [{"observed": {"h_probe": 0.9}}, {"observed": {"h_probe": mae}}]
            (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, observed)))
    monkeypatch.setattr(readings.tables, "same_options", lambda *_: None)
    argv = ["readings.py", "--seeds", "2", "--rows", "cls", "--runs", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", argv)
    readings.main()
    said = capsys.readouterr().out
    assert "| 0.850 ± 0.071 |  | 0.700 ± 0.000 |" in said and "| 0.100 ± 0.000 |" in said
    assert "| cls, Eq. 3: [CLS] | – | 0.90 |" in said
    for path in tmp_path.rglob("results.json"):  # as after --no-test
        found = json.loads(path.read_text())
        path.write_text(json.dumps({name: found[name] for name in ("epoch", "valid")}))
    readings.main()
    assert "| 2 seeds | valid MAE | valid − default | valid Corr |\n" in capsys.readouterr().out


def test_the_benchmark_pads_as_the_field_does_and_counts_real_positions():
    benchmark, batch = script("benchmark"), small_batch()
    batch = train.data.Batch(batch.inputs, batch.y, batch.video, [""] * len(batch.y))
    padded = benchmark.pad(batch, {"a": 7, "v": 9})
    assert [padded.inputs[m][0].shape[1] for m in MODALITIES] == [7, 9, 50]
    assert all((n == values.shape[1]).all() for values, n in padded.inputs.values())
    cut = benchmark.of_length(batch, 20)
    assert all(values.shape[1] == 20 == n.max() == n.min() for values, n in cut.inputs.values())
    model = small_model()
    assert benchmark.real_positions([padded], model) == 1
    assert 0.5 < benchmark.real_positions([batch], model) <= 1
    model.embeddings["l"].row_length = 0
    n = batch.inputs["l"][1]
    close(benchmark.real_positions([batch], model), float(n[n > 0].float().mean() / n.max()))


def test_the_benchmark_writes_a_file_of_mmsa(tmp_path):
    rows = [["mode", "video_id", "clip_id", "text", "label", "start", "end"]]
    rows += [[m, f"v{m}", i, "a b c", 1, 0, 2 * i] for m in data.SPLITS for i in range(1, 4)]
    (tmp_path / "label.csv").write_text("\n".join(",".join(map(str, row)) for row in rows))
    for shapes, lengths in (("aligned", [3, 3, 3]), ("unaligned", [60, 120, 180])):
        path = script("benchmark").mosi_shaped(tmp_path / "label.csv", shapes, tmp_path)
        split = data.read(path)["train"]
        assert [len(split.frames("v", i)) for i in range(3)] == lengths
    rows[2][4] = "good"
    (tmp_path / "label.csv").write_text("\n".join(",".join(map(str, row)) for row in rows))
    with pytest.raises(train.UserError, match=r"label\.csv, train: .*'good'"):
        script("benchmark").mosi_shaped(tmp_path / "label.csv", "aligned", tmp_path)


def test_figures_without_matplotlib_say_so(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit) as stop:
        script("figures")
    assert stop.value.code == 2 and "pip install matplotlib" in capsys.readouterr().err


def test_the_plane_of_the_figures_keeps_the_largest_spread():
    pytest.importorskip("matplotlib")
    flat = {m: np.c_[normal(i, 9, 2).numpy(), np.zeros((9, 3))] for i, m in enumerate("av")}
    plane = script("figures").plane(flat)
    for m in "av":
        close(
            np.linalg.norm(plane[m][0] - plane["a"][1]), np.linalg.norm(flat[m][0] - flat["a"][1])
        )


# ── The map from equation to code to test ─────────────────────────────────────────────────────────


def equations(text):
    """The numbers of "9", "1, 2" or "5–8", one by one."""
    found = re.findall(r"(\d+)(?:–(\d+))?", text)
    return {n for low, high in found for n in range(int(low), int(high or low) + 1)}


def test_readme_maps_every_equation_to_code_and_test_that_exist():
    section = (HERE / "README.md").read_text("utf-8").split("## Paper ↔ code")[1].split("\n## ")[0]
    rows = [line.split("|")[1:-1] for line in section.splitlines() if line.startswith("| ")][1:]
    mapped = set()
    for numbers, _, code, same, tests in rows:
        mapped |= equations(numbers)
        names = re.findall(r"`([\w.]+)`", code)
        docs = "".join(eval(f"msfn.{n}").__doc__ for n in names)
        cited = equations(" ".join(re.findall(r"Eqs?\. ([\d, –]+)", docs)))
        assert equations(numbers) <= cited, code
        answers = ("yes", "yes, read as a game", "yes, over a video", "no: see the docstring")
        assert same.strip() in (*answers, "layers not given"), same
        found = re.findall(r"`(test_\w+)`", tests)
        assert found and all(callable(globals().get(name)) for name in found), tests
    assert mapped == set(range(1, 17))
