"""The baselines: an oracle in plain loops for each, then laws that hold for every row.

Hypothesis draws the structure, values are seeded, sizes are pairwise different.
"""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import data
import plumbing
import train
from data import MODALITIES
from experiments import baselines, predict, rows
from experiments.rows import ROWS
from experiments.word_vectors import Static
from plumbing.metrics import metrics
from plumbing.packing import Packed
from plumbing.test_packing import tiny_bert
from plumbing.test_runs import small_corpus, stop  # noqa: F401

WIDTHS = {"a": 5, "v": 3}
seeds = st.integers(0, 2**31 - 1)


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(a, b, atol=1e-9):
    a, b = (torch.as_tensor(x, dtype=torch.float64) for x in (a, b))
    torch.testing.assert_close(a, b, atol=atol, rtol=1e-7)


def small_encoder():
    return Packed(tiny_bert("sdpa"))


def made(row):
    """The row's model in float64, without dropout."""
    encoder = small_encoder()
    torch.manual_seed(1)
    return ROWS[row].model(train.Config(d=6, dropout=0.0), WIDTHS, encoder).double()


def segments(seed, B, lengths=None, T=7):
    """inputs, video and y of B segments; what stands past the end is noise, not 0."""
    draw = np.random.default_rng(seed)
    if lengths is None:
        lengths = {m: draw.integers(1, T + 1, B) for m in MODALITIES}
    lengths = {m: torch.as_tensor(n) for m, n in lengths.items()}
    inputs = {m: (normal(seed + i, B, T, d), lengths[m]) for i, (m, d) in enumerate(WIDTHS.items())}
    inputs["l"] = torch.from_numpy(draw.integers(1, 20, (B, T))), lengths["l"]
    video = torch.arange(B)
    return inputs, video, normal(seed + 3, B).clamp(-1.4, 1.4) * 2


def tried(row, B, absent, train=True):
    """A model, and its output and losses for B segments. absent: {m: the segments without m}"""
    model, (inputs, video, y) = made(row).train(train), segments(4, B)
    for m, empty in absent.items():
        inputs[m][1][empty] = 0
    present = {m: n.nonzero()[:, 0].tolist() for m, (_, n) in inputs.items()}
    output = model(inputs, video)
    return model, inputs, present, y, output, model.losses(output, y)


def some(inputs, rows):
    return {m: (values[rows], n[rows]) for m, (values, n) in inputs.items()}


def alone(inputs, i):
    """Segment i without its padding; of an empty modality one step of zeros."""
    one = some(inputs, [i])
    return {m: (values[:, : max(1, n)] * (n > 0).int(), n) for m, (values, n) in one.items()}


def states_of(model, one):
    """The encoder's last layer of a segment without padding."""
    ids = one["l"][0]
    return model.encoder(ids, attention_mask=torch.ones_like(ids)).last_hidden_state


# ── TFN, LMF, MFN ─────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("row", ["TFN (B)", "LMF (B)"])
def test_tfn_and_lmf_by_hand(row):
    """Every product of one, two and three features of a segment, flattened or times a tensor."""
    model, inputs, _, y, found, losses = tried(row, 4, {"l": [1], "a": [2]}, train=False)
    close(losses.total, (found.prediction - y).abs().mean())
    for i in range(4):
        one, h = alone(inputs, i), {}
        for m in "av":
            h[m] = model.unimodal.frames[m](one[m][0].mean(1) * bool(one[m][1]))[0]
        state = model.unimodal.lstm(states_of(model, one))[1][0][0] * bool(one["l"][1])
        h["l"] = model.unimodal.text(state)[0]
        z = [torch.cat([torch.ones(1), h[m]]) for m in "avl"]
        Z = torch.einsum("i,j,k->ijk", *z)
        if row == "TFN (B)":
            expected = 6 * model.f(Z.flatten()[None])[0, 0].sigmoid() - 3
        else:
            factors = zip(*(model.factors[m] for m in "avl"), strict=True)
            ranks = [torch.einsum("i,j,k->ijk", *factor) for factor in factors]
            expected = (sum(w * W for w, W in zip(model.w[0], ranks, strict=True)) * Z).sum()
        close(found.prediction[i], expected)


def test_mfn_by_loops_a_segment_at_a_time():
    """Word w of n takes the mean of the frames from ⌊w f / n⌋ to before ⌈(w+1) f / n⌉."""
    model, inputs, _, _, found, _ = tried("MFN (static)", 9, {"a": [0], "v": [1]})
    for i in range(9):
        one = alone(inputs, i)
        n, x = int(one["l"][1]), {"l": states_of(model, one)[0]}
        for m in "av":
            f = int(one[m][1])
            ends = [(math.floor(w * f / n), math.ceil((w + 1) * f / n)) for w in range(n)]
            x[m] = torch.stack([one[m][0][0, a : max(b, 1)].mean(0) for a, b in ends])
        state = {m: (torch.zeros(1, c.hidden_size).double(),) * 2 for m, c in model.cells.items()}
        u = torch.zeros(1, 128).double()
        for t in range(n):
            new = {m: model.cells[m](x[m][t : t + 1], state[m]) for m in "lav"}
            c_star = torch.cat([s[m][1] for s in (state, new) for m in "lav"], 1)
            exponents = model.A(c_star).exp()
            c_hat = exponents / exponents.sum() * c_star
            gates = [1 / (1 + (-G(torch.cat([c_hat, u], 1))).exp()) for G in (model.G1, model.G2)]
            u = gates[0] * u + gates[1] * model.U(c_hat).tanh()
            state = new
        expected = model.f(torch.cat([state[m][0] for m in "lav"] + [u], 1))
        close(found.prediction[i], expected[0, 0])


# ── MISA ──────────────────────────────────────────────────────────────────────────────────────────
@given(seeds, st.tuples(*[st.integers(1, 6)] * 3))
def test_cmd_by_numpy(seed, sizes):
    N, M, d = sizes
    X, Y = normal(seed, N, d).sigmoid(), normal(seed + 1, M, d).sigmoid()
    x, y = X.numpy(), Y.numpy()
    expected = np.linalg.norm(x.mean(0) - y.mean(0))
    for k in range(2, 6):
        moments = [((z - z.mean(0)) ** k).mean(0) for z in (x, y)]
        expected += np.linalg.norm(moments[0] - moments[1])
    close(baselines.cmd(X, Y), expected)
    X.requires_grad_()
    value = baselines.cmd(X, X.detach().clone())
    value.backward()
    assert value == 0 and torch.isfinite(X.grad).all()


@given(seeds, st.tuples(*[st.integers(1, 5)] * 3))
def test_overlap_by_loops(seed, sizes):
    N, d, e = sizes
    X, Y = normal(seed, N, d).requires_grad_(), normal(seed + 1, N, e).requires_grad_()
    x, y = ([r / (r.detach().norm() + 1e-6) for r in Z - Z.mean(0)] for Z in (X, Y))
    total = 0.0
    for i, j in itertools.product(range(d), range(e)):
        total += sum(x[b][i] * y[b][j] for b in range(N)) ** 2
    found, expected = baselines.overlap(X, Y), total / (d * e)
    close(found, expected)
    gradients = [torch.cat(torch.autograd.grad(z, (X, Y)), dim=1) for z in (found, expected)]
    close(*gradients, atol=1e-7)


def test_misa_sums_its_losses_over_the_present_modalities():
    absent = {"v": [0, 1], "a": [1, 2]}
    model, _, rows, y, output, losses = tried("MISA (B)", 6, absent)
    private, shared = output.private, output.shared
    sim = diff = rec = 0
    for m, r in rows.items():
        diff += baselines.overlap(private[m][r], shared[m][r])
        rec += ((output.u[m][r] - output.decoded[m][r]) ** 2).mean() / 3
        close(output.decoded[m], model.decoders[m](private[m] + shared[m]))
    for i, j in itertools.combinations("lva", 2):
        sim += baselines.cmd(shared[i][rows[i]], shared[j][rows[j]]) / 3
        both = sorted({*rows[i]} & {*rows[j]})
        diff += baselines.overlap(private[i][both], private[j][both])
    task = ((y - output.prediction) ** 2).mean()
    expected = task + sim + 0.3 * diff + rec, task, sim, diff, rec
    close(torch.stack(losses), torch.stack(expected))
    tokens = torch.stack([part[m] for part in (private, shared) for m in "lva"], 1)
    close(output.prediction, model.f(model.attention(tokens).flatten(1))[:, 0])


def test_misa_reads_frames_in_both_directions_inside_their_true_length():
    lstm, X, n = baselines.BiLSTM(3, 2).double(), normal(4, 5, 6, 3), torch.tensor([6, 1, 4, 0, 3])
    whole = nn.LSTM(3, 2, batch_first=True, bidirectional=True).double()
    for part, suffix in ((lstm.ahead, ""), (lstm.back, "_reverse")):
        for name, p in part.named_parameters():
            getattr(whole, name + suffix).data.copy_(p)
    states, end = lstm(X, n)
    for i, length in enumerate(n.tolist()):
        if length:
            expected, (h, _) = whole(X[i : i + 1, :length])
            close(states[i, :length], expected[0])
            close(end[i], h.flatten())
        else:
            close(end[i], torch.zeros(4))


# ── ICCN ──────────────────────────────────────────────────────────────────────────────────────────
@given(seeds, st.tuples(st.integers(1, 4), st.integers(1, 4)), st.sampled_from([0.0, 0.1]))
def test_iccn_canonical_correlations_by_numpy(seed, widths, ridge):
    X, Y = normal(seed, 11, widths[0]), normal(seed + 1, 11, widths[1])
    Y[:, 0] += 2 * X[:, 0]
    x, y = ((Z - Z.mean(0)).numpy() for Z in (X, Y))
    whitened = []
    for z in (x, y):
        values, vectors = np.linalg.eigh(z.T @ z / 10 + ridge * np.eye(z.shape[1]))
        whitened.append(z @ vectors / values**0.5 @ vectors.T)
    expected = np.linalg.svd(whitened[0].T @ whitened[1] / 10)[1].sum()
    close(baselines.canonical_correlation(X, Y, ridge), expected)


def test_iccn_correlation_has_a_finite_gradient_for_equal_dead_and_few_views():
    X = normal(1, 9, 3).requires_grad_()
    for Y in (X, X.detach(), torch.zeros(9, 2).double()):
        (grad,) = torch.autograd.grad(baselines.canonical_correlation(X, Y), X)
        assert torch.isfinite(grad).all()
    for n in (0, 1):
        assert baselines.canonical_correlation(X[:n], X[:n]) == 0


def test_iccn_what_each_term_moves_and_what_is_correlated():
    absent = {"a": [0], "v": [2], "l": [5]}
    model, inputs, _, y, output, losses = tried("ICCN (B)", 7, absent)
    views = [K[[1, 3, 4, 6]] for K in output.K.values()]
    close(losses.correlation, baselines.canonical_correlation(*views))
    close(losses.total, ((y - output.prediction) ** 2).mean() - losses.correlation / 8)
    assert moved_by(model, losses.correlation) == {"convolution", "lstm", "cnn"}
    assert moved_by(model, losses.task) == {"convolution", "lstm", "cnn", "encoder", "f"}
    model.eval()
    one, K = alone(inputs, 3), {}
    h_t = states_of(model, one).mean(1)
    for m in "av":
        seen = model.convolution[m](one[m][0].transpose(1, 2)).transpose(1, 2).relu()
        h = model.lstm[m](seen)[1][0][0]
        H = torch.tensor([[[a * b for b in h[0].tolist()] for a in h_t[0].tolist()]]).double()
        K[m] = model.cnn[m](H[None])
    expected = model.f(torch.cat([K["a"], h_t, K["v"]], 1))[:, 0]
    close(model(inputs).prediction[3:4], expected)


# ── ARGF ──────────────────────────────────────────────────────────────────────────────────────────
def moved_by(model, loss):
    """The parts of the model whose parameters this loss has a gradient for."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    grads = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    return {n.split(".")[0] for n, g in zip(names, grads, strict=True) if g is not None and g.any()}


def test_argf_losses_by_loops_and_what_each_moves():
    absent = {"a": [1, 2], "v": [3, 4], "l": [2, 3]}
    model, _, rows, y, output, losses = tried("ARGF (B)", 7, absent)
    fooling = discriminator = rec = uni = 0
    for m, present in rows.items():
        n, D = len(present), model.discriminator(output.e[m]).sigmoid()
        for i in present:
            rec += (output.decoded[m][i] - output.x[m][i]).abs().mean() / n
            uni += (output.unimodal[m][i] - y[i]).abs() / n
            if m == "l":
                discriminator -= D[i].log() / n / 2
            else:
                fooling -= D[i].log() / n
                discriminator -= (1 - D[i]).log() / n / 2
    task = (output.prediction - y).abs().mean()
    total = task + uni + 0.95 * rec + 0.05 * fooling + discriminator
    expected = total, task, uni, rec, fooling, discriminator
    close(torch.stack(losses), torch.stack([each.reshape(()) for each in expected]))
    assert moved_by(model, losses.task) == {"graph", "g"}
    assert moved_by(model, losses.unimodal) == {"encoders", "encoder", "classifier"}
    assert moved_by(model, losses.reconstruction) == {"encoders", "encoder", "decoders"}
    assert moved_by(model, losses.fooling) == {"encoders"}
    assert moved_by(model, losses.discriminator) == {"discriminator"}
    assert not moved_by(model.encoders["l"], losses.fooling)  # language is the target
    decoded = {m: values.detach() for m, values in output.decoded.items()}  # x: a fixed target
    assert not model.losses(output._replace(decoded=decoded), y).reconstruction.requires_grad


def test_argf_encoders_have_the_size_of_the_authors():
    """Encoder_5 at 73 inputs and d = 128: three Linear with BatchNorm, then one Linear."""
    encoder = baselines.ARGF(train.Config(d=128), {"a": 73, "v": 5}, small_encoder()).encoders["a"]
    assert sum(p.numel() for p in encoder.parameters()) == 1174456


@given(seeds, st.integers(1, 4))
def test_argf_graph_by_loops(seed, d):
    torch.manual_seed(seed)
    graph = baselines.GraphFusion(d).double()
    e = {m: normal(seed + i, 1, d)[0] for i, m in enumerate(MODALITIES)}

    def weighted(edges, strength, vector, p, f):
        r, raw, exponents = {}, {}, 0
        for i, j in edges:
            r[i + j] = (strength[i] + strength[j]) / ((p[i] * p[j]).sum() + 0.5)
            raw[i + j] = f(torch.cat([vector[i], vector[j]]))
            exponents += r[i + j].exp()
        scaled = {k: r[k].exp() / exponents * raw[k] for k in r}
        return r, raw, {k: torch.where(x > 0, x, torch.expm1(x)) for k, x in scaled.items()}

    s = {m: 1 / (1 + (-graph.strength(e[m])).exp()) for m in e}
    p = {m: x.exp() / x.exp().sum() for m, x in e.items()}
    r, raw, v = weighted([("a", "v"), ("a", "l"), ("v", "l")], s, e, p, graph.f)
    p |= {k: x.exp() / x.exp().sum() for k, x in raw.items()}
    edges = [("av", "vl"), ("av", "al"), ("vl", "al"), ("av", "l"), ("al", "v"), ("vl", "a")]
    tri = weighted(edges, s | r, e | v, p, graph.f2)[2]
    uni = sum(s[m] * e[m] for m in e) / 3
    expected = torch.cat([uni, sum(v.values()), sum(tri.values())])
    close(graph({m: x[None] for m, x in e.items()})[0], expected)


# ── Laws of every row ─────────────────────────────────────────────────────────────────────────────
GLOVE = ["was 0.5 -1 2e-1", "superb 1 2 3", "awful me@it.com 7 7 7", ". 9 9 9", "MOVIE 4 5 6"]
BASELINES = [row for row in ROWS if not ROWS[row].is_msfn]
UNMOVED = {
    # a bias in front of a BatchNorm is taken away with the mean
    "ICCN (B)": {"cnn.a.6.bias", "cnn.v.6.bias"},
    "ARGF (B)": {f"decoders.{m}.3.bias" for m in MODALITIES}
    | {f"encoders.{m}.{i}.bias" for m in MODALITIES for i in (0, 4, 8)},
}


@pytest.mark.parametrize("row", BASELINES)
def test_laws(row):
    model, (inputs, video, y) = made(row), segments(8, 9)
    for m, i in zip(MODALITIES, (0, 1, 2), strict=True):
        inputs[m][1][i] = 0  # and segment 0 has neither audio nor
    inputs["v"][1][0] = 0
    # every trainable parameter gets a finite gradient, empty modalities or not
    model.losses(model(inputs, video), y).total.backward()
    grads = {n: p.grad for n, p in model.named_parameters()}
    assert all(g is None or torch.isfinite(g).all() for g in grads.values())
    silent = {n for n, g in grads.items() if g is None or g.abs().max() < 1e-12}
    silent = {n for n in silent if not n.endswith("key.bias")}  # softmax takes it away
    assert silent == UNMOVED.get(row, set())
    # the optimizer has each of them once
    groups = [id(p) for group in model.parameter_groups() for p in group["params"]]
    assert sorted(groups) == sorted(map(id, model.parameters()))
    # a static row's vectors do not move
    assert isinstance(model.encoder, Static) == ("(static)" in row)
    if "(static)" in row:
        assert [n for n in model.state_dict() if n.startswith("encoder.")] == ["encoder.vectors"]
        close(model.encoder.vectors, small_encoder().encoder.get_input_embeddings().weight)
    # a batch of one, with all and with nothing in it
    for batch in (some(inputs, [4]), segments(1, 1, {m: [0] for m in MODALITIES})[0]):
        output = model(batch, video[:1])
        loss = model.losses(output, y[:1]).total
        assert torch.isfinite(loss) and output.prediction.shape == (1,)
    model.eval()
    together = model(inputs, video).prediction
    # padding changes nothing: each segment alone, unpadded, is itself in the batch
    each = [model(alone(inputs, i), video[i : i + 1]).prediction for i in range(len(y))]
    close(together, torch.cat(each))
    # order equivariant
    order = torch.tensor([3, 0, 8, 1, 7, 2, 6, 4, 5])
    close(model(some(inputs, order), video).prediction, together[order])
    assert torch.isfinite(together).all() and len(together.unique()) == len(y)


@pytest.mark.parametrize("row", [*BASELINES, "LMF (static) with GloVe", "long-0", "alike"])
def test_a_stopped_run_resumes_to_the_same_bits(row, tmp_path):
    """And a run of another row does not resume it."""
    argv = f"--dataset synthetic --d 6 --batch-size 59 --epochs 2 --runs {tmp_path}".split()
    row, _, file = row.partition(" with ")
    vectors = tmp_path / "vectors.txt"
    vectors.write_text("\n".join(GLOVE))
    argv += ["--bert", str(vectors)] if file else []
    rows.main([row, *argv, "--name", "whole"])
    config = train.Config(**train.parse([*ROWS[row].options.split(), *argv, "--name", "cut"]))
    stop(config, epoch=0, build=ROWS[row].model, loaders=ROWS[row])
    vectors.unlink()
    other = "TFN (B)" if row == "LMF (B)" else "LMF (B)"
    with pytest.raises(plumbing.UserError, match=r"checkpoint\.pt|holds no encoder"):
        rows.main([other, f"--resume={tmp_path / 'cut'}"])
    rows.main([row, "--resume", str(tmp_path / "cut")])
    weights = [(tmp_path / n / "model.safetensors").read_bytes() for n in ("whole", "cut")]
    assert weights[0] == weights[1]
    if ROWS[row].is_msfn:  # with the mean of the weights
        results = json.loads((tmp_path / "cut" / "results.json").read_text())
        test = data.synthetic()["test"]
        predicted = predict.load(tmp_path / "cut").split(test, "avl")
        assert metrics(predicted, test.y) == results["test"]


@pytest.mark.parametrize(
    "row, typed, message",
    [
        ("LMF", ["--d", "6"], "there is no row 'LMF'"),
        ("LMF (B)", ["--vectors", "vectors.txt"], "word vectors"),
        ("MISA (B)", ["--d", "7"], "--d must be even"),
        ("MISA (B)", [], "one process"),
    ],
)
def test_a_row_that_cannot_be_trained_says_why(row, typed, message, tmp_path, monkeypatch):
    monkeypatch.setattr(rows.processes, "world_size", lambda: 1 if typed else 2)
    monkeypatch.chdir(tmp_path)
    Path("vectors.txt").write_text("\n".join(GLOVE))
    with pytest.raises(plumbing.UserError, match=message):
        rows.main([row, "--dataset", "synthetic", "--runs", str(tmp_path), *typed])
