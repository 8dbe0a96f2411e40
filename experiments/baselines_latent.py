"""Baselines of Tables 2 and 3 that shape a latent space: ICCN by correlation, ARGF by a game.

`baselines.py` lists the differences that are common to all baselines.
"""

from collections import namedtuple
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import train
from data import MODALITIES
from experiments.baselines import (
    Baseline,
    BatchNorm,
    Inputs,
    dense,
    end_state,
    mean_of,
    mean_over_time,
    present_rows,
    token_states,
    true_steps,
)
from msfn import present


# ── ICCN ──────────────────────────────────────────────────────────────────────────────────────────
def canonical_correlation(X: Tensor, Y: Tensor, ridge: float = 1e-3) -> Tensor:
    """‖Σ_XX^−½ Σ_XY Σ_YY^−½‖_tr: the sum of the canonical correlations of two views of a batch

    Σ_XX and Σ_YY are covariances + ridge · I. With their Cholesky factors L in place of the square
    roots the singular values are the same, and the gradient stays finite where eigenvalues are
    equal.

    X: (N, d), Y: (N, e), float32 or float64 -> (), at most min(d, e); 0 for fewer than two rows
    """
    if len(X) < 2:
        return (X.sum() + Y.sum()) * 0
    X, Y = X - X.mean(0), Y - Y.mean(0)
    L = []
    for Z in (X, Y):
        identity = torch.eye(Z.shape[1], dtype=Z.dtype, device=Z.device)
        L.append(torch.linalg.cholesky(Z.T @ Z / (len(Z) - 1) + ridge * identity))
    cross = X.T @ Y / (len(X) - 1)
    cross = torch.linalg.solve_triangular(L[0], cross, upper=False)
    cross = torch.linalg.solve_triangular(L[1], cross.T, upper=False)
    return torch.linalg.svdvals(cross).sum()


# ŷ: (B,); complete: (B,) bool, True without an empty modality; K_ta and K_tv: (B, width)
ICCNOutput = namedtuple("ICCNOutput", "prediction complete K")
ICCNLosses = namedtuple("ICCNLosses", "total task correlation")


class ICCN(Baseline):
    """Interaction Canonical Correlation Network (Sun et al., AAAI 2020).

    h_m = LSTM(Conv1d(X_m)),  H_tm = h_t ⊗ h_m,  K_tm = CNN_m(H_tm)      m = a, v
    L_CCA = −canonical_correlation(K_ta, K_tv),  ŷ = f([K_ta; h_t; K_tv])

    No code was published, and we could read only the abstract: outer products of text with audio
    and with video, their correlation by DCCA, and a predictor that takes the text beside both.
    Everything else is our choice.

    Paper: BERT's sentence vectors are inputs.
    Here:  BERT learns from ŷ alone, since no gradient passes H; CNN: two convolutions over H, a
           mean over 4 × 4 places, BatchNorm, K 8 wide. All else learns from L = mean (y − ŷ)² +
           L_CCA / 8.
    Why:   K_ta and K_tv both hold h_t, so BERT could make them correlate without any sentiment. The
           correlations of a batch of 64 saturate for wider K: noise 64 wide has 0.95.
    """

    def __init__(self, config: train.Config, widths: dict[str, int], encoder: nn.Module):
        super().__init__(encoder)
        D, self.width, hidden = encoder.config.hidden_size, 8, 32
        self.convolution, self.lstm, self.cnn = (nn.ModuleDict() for _ in range(3))
        for m in ("a", "v"):
            self.convolution[m] = nn.Conv1d(widths[m], hidden, 3, padding=1)
            self.lstm[m] = nn.LSTM(hidden, hidden, batch_first=True)
            self.cnn[m] = nn.Sequential(
                nn.Conv2d(1, 4, 3, stride=2, padding=1),
                nn.ReLU(),
                nn.Conv2d(4, 8, 3, stride=2, padding=1),
                nn.ReLU(),
                nn.AdaptiveAvgPool2d(4),
                nn.Flatten(),
                nn.Linear(128, self.width),
                BatchNorm(self.width),
            )
        layers = dense(D + 2 * self.width, config.d, 1, dropout=config.dropout)
        self.f = nn.Sequential(nn.Dropout(config.dropout), *layers)

    def forward(self, inputs: Inputs, video: Tensor | None = None) -> ICCNOutput:
        h_t, K = mean_over_time(token_states(self.encoder, *inputs["l"]), inputs["l"][1]), {}
        for m in ("a", "v"):
            values, lengths = inputs[m]
            values = values * true_steps(values, lengths)[:, :, None]
            seen = self.convolution[m](values.transpose(1, 2)).transpose(1, 2)
            h = end_state(self.lstm[m], seen.relu(), lengths)
            H = torch.einsum("bi,bj->bij", h_t.detach(), h)
            K[m] = self.cnn[m](H[:, None])
        features = torch.cat([K["a"], h_t, K["v"]], dim=1)
        complete = torch.stack([n > 0 for _, n in inputs.values()]).all(0).to(features.device)
        return ICCNOutput(self.f(features).squeeze(1), complete, K)

    def losses(self, output: ICCNOutput, y: Tensor) -> ICCNLosses:
        """L_CCA covers the segments in which no modality is empty."""
        correlation = canonical_correlation(*(K[output.complete] for K in output.K.values()))
        task = F.mse_loss(output.prediction, y)
        return ICCNLosses(task - correlation / self.width, task, correlation)


# ── ARGF ──────────────────────────────────────────────────────────────────────────────────────────
class GraphFusion(nn.Module):
    """ARGF's graph of one, two and three modalities:  e_a, e_v, e_l -> [uni; bi; tri]

    s_i = σ(wᵀ e_i + b),  uni = ⅓ Σ_i s_i e_i                                    i = a, v, l
    r_ij = (s_i + s_j) / (p_i · p_j + ½),  α = softmax(r)
    v_ij = ELU(α_ij f(e_i, e_j)),  bi = Σ v_ij
    tri: the same with f₂ over two pairs, or a pair and the third: strengths r or s, vectors v or e

    p_i = softmax(e_i), p_ij = softmax(f(e_i, e_j)): alike vertices are joined weakly. The order
    inside a pair matters; it is the authors' code's.
    """

    PAIRS = (("a", "v"), ("a", "l"), ("v", "l"))
    TRIPLES = (("av", "vl"), ("av", "al"), ("vl", "al"), ("av", "l"), ("al", "v"), ("vl", "a"))

    def __init__(self, d: int):
        super().__init__()
        self.strength = nn.Linear(d, 1)
        self.f, self.f2 = (
            nn.Sequential(nn.Linear(2 * d, 64), nn.LeakyReLU(0.2), nn.Linear(64, d), nn.Tanh())
            for _ in range(2)
        )

    @staticmethod
    def join(edges: tuple, strength: dict, vector: dict, p: dict, f: nn.Module) -> tuple[dict, ...]:
        """Edges between vertices -> their strengths (B, 1), f's (B, d), and vectors (B, d)"""
        r, joined = {}, {}
        for i, j in edges:
            r[i + j] = (strength[i] + strength[j]) / ((p[i] * p[j]).sum(1, True) + 0.5)
            joined[i + j] = f(torch.cat([vector[i], vector[j]], dim=1))
        alpha = torch.cat(list(r.values()), dim=1).softmax(dim=1).split(1, dim=1)
        named = zip(r, alpha, joined.values(), strict=True)
        return r, joined, {name: F.elu(weight * x) for name, weight, x in named}

    def forward(self, e: dict[str, Tensor]) -> Tensor:
        s = {m: self.strength(e[m]).sigmoid() for m in MODALITIES}  # (B, 1)
        p = {m: e[m].softmax(dim=1) for m in MODALITIES}
        r, joined, v = self.join(self.PAIRS, s, e, p, self.f)
        p |= {name: x.softmax(dim=1) for name, x in joined.items()}
        triples = self.join(self.TRIPLES, s | r, e | v, p, self.f2)[2]
        uni = sum(s[m] * e[m] for m in MODALITIES) / 3
        return torch.cat([uni, sum(v.values()), sum(triples.values())], dim=1)  # (B, 3 d)


# ŷ: (B,); rows[m]: segments with m; by modality x_m and decode(e_m): (B, d_m), e_m: (B, d), and
# the ŷ of e_m alone: (B,)
ARGFOutput = namedtuple("ARGFOutput", "prediction rows x e decoded unimodal")
TERMS = "total task unimodal reconstruction fooling discriminator"
ARGFLosses = namedtuple("ARGFLosses", TERMS)


class ARGF(Baseline):
    """Adversarial Representation Graph Fusion (Mai et al., AAAI 2020).

    e_m = E_m(x_m): a and v should look like l to a discriminator D, be decodable, and predict y
    fooling = Σ_{m=a,v} BCE(D(e_m), 1)                                     moves E
    reconstruction = Σ_m mean |x_m − decode_m(e_m)|                        moves E, decoders
    unimodal = Σ_m mean |y − C(e_m)|                                       moves E, C
    discriminator = ½ [BCE(D(e_l), 1) + Σ_{m=a,v} BCE(D(e_m), 0)]          moves D
    task = mean |y − ŷ|,  ŷ = g(GraphFusion(e))                            moves the graph and g
    L = task + unimodal + (1 − α) reconstruction + α fooling + discriminator,   α = 0.05

    After the authors' code (TmacMai/ARGF_multimodal_fusion): `Encoder_5`, which its three scripts
    train, `Decoder2`, `classifier3` and `graph11_new`. Its four optimizers step one after the
    other; here `detach` gives each part the same gradients in one pass. The fusion's gradient never
    reaches E.

    Paper: classes; sums over segments and features; a decoder that ends in tanh; two Adams move E.
           The code's script for MOSI takes audio as D's true modality, and dropout 0.5 in decoders
           and C.
    Here:  y itself; means; no tanh; one Adam; language is the true one, as in the paper's text; one
           dropout rate; x_l gets no gradient as a target; an empty modality counts in the task
           alone.
    Why:   MAE needs y; in one loss the sums would drown the rest; features exceed ±1; BERT must not
           chase its own features. No ARGF (B) was published: this row is our own variant.
    """

    def __init__(self, config: train.Config, widths: dict[str, int], encoder: nn.Module):
        super().__init__(encoder)
        d, drop, leak = config.d, config.dropout, 0.2
        inside = {"a": widths["a"], "v": widths["v"], "l": encoder.config.hidden_size}
        self.encoders, self.decoders = nn.ModuleDict(), nn.ModuleDict()
        for m, n in inside.items():
            layers = []
            for before, after in pairwise((n, 10 * n, 10 * d, d)):
                layers += [nn.Linear(before, after), nn.Dropout(drop), BatchNorm(after)]
                layers += [nn.LeakyReLU()]
            self.encoders[m] = nn.Sequential(*layers, nn.Linear(d, d), nn.Tanh())
            first = [nn.Linear(d, 512), nn.Dropout(drop), nn.LeakyReLU(leak), nn.Linear(512, 64)]
            rest = [nn.Dropout(drop), BatchNorm(64), nn.LeakyReLU(leak), nn.Linear(64, n)]
            self.decoders[m] = nn.Sequential(*first, *rest)
        self.discriminator = nn.Sequential(
            nn.Linear(d, 64), nn.LeakyReLU(leak), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 1)
        )
        layers = dense(d, d, 1, act=nn.Tanh, dropout=drop)
        self.classifier = nn.Sequential(BatchNorm(d), nn.Dropout(drop), *layers)  # C
        self.graph = GraphFusion(d)
        self.g = nn.Sequential(BatchNorm(3 * d), *dense(3 * d, 50, 50, 1, act=nn.Tanh))

    def parameter_groups(self) -> list[dict]:
        return [{"params": list(self.parameters()), "betas": (0.5, 0.999)}]

    def forward(self, inputs: Inputs, video: Tensor | None = None) -> ARGFOutput:
        x = {m: mean_over_time(*inputs[m]) for m in ("a", "v")}
        x["l"] = mean_over_time(token_states(self.encoder, *inputs["l"]), inputs["l"][1])
        e = {m: self.encoders[m](x[m]) for m in MODALITIES}
        decoded = {m: self.decoders[m](e[m]) for m in MODALITIES}
        unimodal = {m: self.classifier(e[m]).squeeze(1) for m in MODALITIES}
        prediction = self.g(self.graph({m: e[m].detach() for m in MODALITIES})).squeeze(1)
        return ARGFOutput(prediction, present_rows(inputs), x, e, decoded, unimodal)

    def losses(self, output: ARGFOutput, y: Tensor) -> ARGFLosses:
        rows, e = output.rows, present(output.e, output.rows)
        task = F.l1_loss(output.prediction, y)
        fooling = reconstruction = unimodal = y.new_zeros(())
        discriminator = mean_of(F.softplus(-self.discriminator(e["l"].detach()))) / 2
        fixed = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        for m, r in rows.items():
            target = output.x[m][r].detach()
            reconstruction = reconstruction + mean_of((output.decoded[m][r] - target).abs())
            unimodal = unimodal + mean_of((output.unimodal[m][r] - y[r]).abs())
        for m in ("a", "v"):
            fake = self.discriminator(e[m].detach())
            discriminator = discriminator + mean_of(F.softplus(fake)) / 2  # −log(1 − D)
            judged = functional_call(self.discriminator, fixed, e[m])
            fooling = fooling + mean_of(F.softplus(-judged))  # −log D
        total = task + unimodal + 0.95 * reconstruction + 0.05 * fooling + discriminator
        return ARGFLosses(total, task, unimodal, reconstruction, fooling, discriminator)
