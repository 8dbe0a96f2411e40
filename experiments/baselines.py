"""The baselines of Tables 2 and 3: TFN, LMF, MFN, MISA, ICCN and ARGF.

Each class gives its equations, its source and its differences. These are common to all:

    Paper: MMSA's code averages over padding, too, and takes features as they are in the file; its
           `text_bert` stops after 50 tokens. TFN's and LMF's own code sums |y − ŷ| over a batch.
    Here:  means over true frames; the mean |y − ŷ|; frames standardized by train; whole texts (21
           of MOSI's 2,199 are longer than 50 tokens); `config.dropout` at each dropout of the
           originals; Adam, gradients clipped by norm, no weight decay.
    Why:   the same data, training and choice of the epoch for every row.

Throughout, `encoder` is called like those of transformers, and inputs[m] = (values (B, T, d_m),
lengths (B,) int64) as in `msfn.MSFN.forward`.
"""

import math
from collections import namedtuple
from itertools import combinations, pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import train
from data import MODALITIES
from msfn import select_present
from plumbing import UserError

# ── What the baselines share ──────────────────────────────────────────────────────────────────────
Sequences = dict[str, tuple[Tensor, Tensor]]  # {m: (values (B, T, d), 0 past the end; lengths)}
Prediction = namedtuple("Prediction", "prediction")  # ŷ: (B,), all that the loss needs
L1 = namedtuple("L1", "total")


class Baseline(nn.Module):
    """What train.py needs of a model in one process. Its loss is mean |y − ŷ|, or another."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder

    def read(self, inputs: dict[str, tuple[Tensor, Tensor]]) -> Sequences:
        """Audio and visual frames and the encoder's last layer, 0 past the end, with lengths."""
        sequences = {}
        for m, (values, n) in inputs.items():
            n = n.to(values.device)
            steps = torch.arange(values.shape[1], device=values.device)
            mask = steps < n[:, None]  # (B, T)
            if m == "l":
                attended = mask | (steps == 0)  # softmax needs a position in an empty sentence, too
                values = self.encoder(values, attention_mask=attended.long()).last_hidden_state
            sequences[m] = values * mask[:, :, None], n
        return sequences

    def losses(self, output: NamedTuple, y: Tensor) -> NamedTuple:
        return L1(F.l1_loss(output.prediction, y))

    def parameter_groups(self) -> list[dict]:
        return [{"params": list(self.parameters())}]


class BatchNorm(nn.BatchNorm1d):
    """nn.BatchNorm1d, but a batch of one, which has no variance, takes the running statistics.

    x: (B, d) -> (B, d)
    """

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 1:
            return super().forward(x)
        statistics = self.running_mean, self.running_var
        return F.batch_norm(x, *statistics, self.weight, self.bias, eps=self.eps)


def mean_over_time(values: Tensor, n: Tensor) -> Tensor:
    """(1/n) Σ_{t<n} x_t, 0 if n = 0.  values: (B, T, d), 0 past the end; n: (B,) -> (B, d)"""
    return values.sum(1) / n[:, None].clamp(min=1)


def last_step(states: Tensor, n: Tensor) -> Tensor:
    """The state of an LSTM at the last true step, 0 without a step: (B, T, width) -> (B, width)"""
    rows = torch.arange(len(n), device=n.device)
    return states[rows, (n - 1).clamp(min=0)] * (n > 0)[:, None]


def dense(*widths: int, act: type[nn.Module] = nn.ReLU, dropout: float = 0.0) -> list[nn.Module]:
    """Linear layers of these widths, with `act` and Dropout between them."""
    layers = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), act(), nn.Dropout(dropout)]
    return layers[:-2]


def mean_of(values: Tensor) -> Tensor:
    """The mean; 0 if there are no values."""
    return values.sum() / max(values.numel(), 1)


def present_rows(X: Sequences) -> dict[str, Tensor]:
    """{m: the segments in which m is present}: (B_m,) int64"""
    return {m: n.nonzero()[:, 0] for m, (_, n) in X.items()}


# ── TFN and LMF ───────────────────────────────────────────────────────────────────────────────────
class Unimodal(nn.Module):
    """The three subnetworks of TFN, and of LMF after it:

    h_a, h_v = U_a(x_a), U_v(x_v):  the mean over time, BatchNorm, three times Linear and ReLU
    h_l = U_l(X_l):                 LSTM's end state, then Linear

    X -> {m: (B, frames) for a and v, (B, text) for l}
    """

    def __init__(self, widths: dict[str, int], D: int, frames: int, text: int, dropout: float):
        super().__init__()
        self.frames = nn.ModuleDict()
        for m in ("a", "v"):
            layers = [*dense(widths[m], frames, frames, frames), nn.ReLU()]
            self.frames[m] = nn.Sequential(BatchNorm(widths[m]), nn.Dropout(dropout), *layers)
        self.lstm = nn.LSTM(D, 128, batch_first=True)
        self.text = nn.Sequential(nn.Dropout(dropout), nn.Linear(128, text))

    def forward(self, X: Sequences) -> dict[str, Tensor]:
        states, n = X["l"]
        h = {m: self.frames[m](mean_over_time(*X[m])) for m in ("a", "v")}
        return h | {"l": self.text(last_step(self.lstm(states)[0], n))}


def with_one(h: Tensor) -> Tensor:
    """z = [1; h]: (B, d) -> (B, 1 + d)"""
    return F.pad(h, (1, 0), value=1.0)


class TFN(Baseline):
    """Tensor Fusion Network (Zadeh et al., EMNLP 2017):  ŷ = 6 σ(f(z_a ⊗ z_v ⊗ z_l)) − 3

    z_m = [1; h_m]: the ones keep each h_m and each product of two beside the products of three.
    After its own code (A2Zadeh/TensorFusionNetwork) and Justin1904/TensorFusionNetworks, whose σ on
    [−3, 3] this is; f: Dropout, twice Linear and ReLU, Linear. Loss: mean |y − ŷ|.

    Paper: ten-fold cross-validation, hidden widths 32 and 128, L2 of 0.01.
    Here:  the standard split; a, v and l 32 wide, f 64 (MMSA's widths except for v).
    Why:   the same data for every row; no published code has the paper's widths.
    """

    def __init__(self, config: train.Config, widths: dict[str, int], encoder: nn.Module):
        super().__init__(encoder)
        d, hidden, drop = 32, 64, config.dropout
        self.unimodal = Unimodal(widths, encoder.config.hidden_size, d, d, drop)
        self.f = nn.Sequential(nn.Dropout(drop), *dense((1 + d) ** 3, hidden, hidden, 1))

    def forward(self, inputs: dict, video: Tensor | None = None) -> Prediction:
        h = self.unimodal(self.read(inputs))
        Z = torch.einsum("bi,bj,bk->bijk", *(with_one(h[m]) for m in MODALITIES))
        return Prediction(6 * self.f(Z.flatten(1)).squeeze(1).sigmoid() - 3)


class LMF(Baseline):
    """Low-rank Multimodal Fusion (Liu et al., ACL 2018):  ŷ = Σ_r w_r Π_m z_m · W_m^(r) + b

    That is TFN's z_a ⊗ z_v ⊗ z_l times a tensor of rank R, without making either.
    After its own code (Justin1904/Low-rank-Multimodal-Fusion), which learns w where the paper sums
    over r. Nothing but b follows the product. Loss: mean |y − ŷ|.

    Paper: settings for MOSI were never published.
    Here:  rank 4; a and v 16 wide, l 64.
    Why:   inside the ranges that the authors searched.
    """

    def __init__(self, config: train.Config, widths: dict[str, int], encoder: nn.Module):
        super().__init__(encoder)
        d, rank = {"a": 16, "v": 16, "l": 64}, 4
        D = encoder.config.hidden_size
        self.unimodal = Unimodal(widths, D, d["a"], d["l"], config.dropout)
        factors = {m: nn.Parameter(torch.empty(rank, 1 + d[m])) for m in MODALITIES}
        self.factors = nn.ParameterDict(factors)
        self.w = nn.Parameter(torch.empty(1, rank))
        for weight in (*self.factors.values(), self.w):
            nn.init.xavier_normal_(weight)
        self.b = nn.Parameter(torch.zeros(()))

    def forward(self, inputs: dict, video: Tensor | None = None) -> Prediction:
        h = self.unimodal(self.read(inputs))
        products = math.prod(with_one(h[m]) @ self.factors[m].T for m in MODALITIES)  # (B, R)
        return Prediction(products @ self.w[0] + self.b)


# ── MFN ───────────────────────────────────────────────────────────────────────────────────────────
def align(values: Tensor, frames: Tensor, words: Tensor, T: int) -> Tensor:
    """Share frames evenly over words: word w of n takes the mean of ⌊w f / n⌋ … ⌈(w+1) f / n⌉ − 1.

    f = n is the identity; f = 1 repeats the frame at every word. Past the last word: 0.

    values: (B, T_m, d), frames: (B,) in 0..T_m, words: (B,) in 1..T -> (B, T, d)
    """
    aligned = values.new_zeros(len(values), T, values.shape[2])
    for i, (f, n) in enumerate(zip(frames.tolist(), words.tolist(), strict=True)):
        if f:
            aligned[i, :n] = F.adaptive_avg_pool1d(values[i, :f].T, n).T
    return aligned


class MFN(Baseline):
    """Memory Fusion Network (Zadeh et al., AAAI 2018). For each word t, with an LSTM a modality:

    (h_t^m, c_t^m) = LSTM_m(x_t^m, …),   c* = [c_{t−1}; c_t]      m = l, a, v
    ĉ = softmax(A(c*)) ⊙ c*                                       which cells change together
    û = tanh(U(ĉ)),  γ_i = σ(G_i([ĉ; u_{t−1}])),  u_t = γ_1 ⊙ u_{t−1} + γ_2 ⊙ û
    ŷ = f([h_T^l; h_T^a; h_T^v; u_T])

    A, U, G_1, G_2, f: Linear, ReLU, Dropout, Linear. After the authors' code (pliang279/MFN), whose
    gates see the memory, too, with its widths for MOSI's best MAE. Loss: mean |y − ŷ|.

    Paper: features aligned to words by time; a dropout rate for each network.
    Here:  `align`, evenly over the encoder's tokens; a segment without words has one step.
    Why:   the files hold no times. A segment's only frame is repeated at each word.
    """

    def __init__(self, config: train.Config, widths: dict[str, int], encoder: nn.Module):
        super().__init__(encoder)
        drop, memory = config.dropout, 128
        d = {"l": encoder.config.hidden_size, "a": widths["a"], "v": widths["v"]}
        h = {"l": 88, "a": 48, "v": 16}
        both = 2 * sum(h.values())
        self.cells = nn.ModuleDict({m: nn.LSTMCell(d[m], h[m]) for m in d})
        self.A = nn.Sequential(*dense(both, 128, both, dropout=drop))
        self.U = nn.Sequential(*dense(both, 64, memory, dropout=drop))
        self.G1 = nn.Sequential(*dense(both + memory, 256, memory, dropout=drop))
        self.G2 = nn.Sequential(*dense(both + memory, 64, memory, dropout=drop))
        self.f = nn.Sequential(*dense(both // 2 + memory, 64, 1, dropout=drop))

    def remember(self, u: Tensor, before: dict[str, Tensor], after: dict[str, Tensor]) -> Tensor:
        """u_{t−1}: (B, memory), c_{t−1}^m and c_t^m: (B, h_m) -> u_t"""
        c_star = torch.cat([*before.values(), *after.values()], dim=1)
        c_hat = self.A(c_star).softmax(dim=1) * c_star
        seen = torch.cat([c_hat, u], dim=1)
        return self.G1(seen).sigmoid() * u + self.G2(seen).sigmoid() * self.U(c_hat).tanh()

    def forward(self, inputs: dict, video: Tensor | None = None) -> Prediction:
        X = self.read(inputs)
        text, n = X["l"][0].to(self.f[0].weight.dtype), X["l"][1].clamp(min=1)
        x = {"l": text} | {m: align(*X[m], n, text.shape[1]) for m in ("a", "v")}
        h = {m: text.new_zeros(len(n), cell.hidden_size) for m, cell in self.cells.items()}
        c, u = h, text.new_zeros(len(n), self.U[-1].out_features)
        with torch.autocast(text.device.type, enabled=False):  # the memory is kept in float32
            for t in range(text.shape[1]):
                new = {m: self.cells[m](x[m][:, t], (h[m], c[m])) for m in x}
                u_new = self.remember(u, c, {m: new[m][1] for m in x})
                reads = (t < n)[:, None]  # a segment past its last word keeps its state
                h = {m: torch.where(reads, new[m][0], h[m]) for m in x}
                c = {m: torch.where(reads, new[m][1], c[m]) for m in x}
                u = torch.where(reads, u_new, u)
        return Prediction(self.f(torch.cat([*h.values(), u], dim=1)).squeeze(1))


# ── MISA ──────────────────────────────────────────────────────────────────────────────────────────
class BiLSTM(nn.Module):
    """Both directions' states at each step, and both end states.

    X: (B, T, d), n: (B,) in 0..T -> (B, T, 2 width), (B, 2 width), 0 of an empty sequence
    """

    def __init__(self, d: int, width: int):
        super().__init__()
        self.ahead = nn.LSTM(d, width, batch_first=True)
        self.back = nn.LSTM(d, width, batch_first=True)

    def forward(self, X: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
        rows = torch.arange(len(X), device=X.device)[:, None]
        steps, last = torch.arange(X.shape[1], device=X.device), n[:, None] - 1
        flip = torch.where(steps <= last, last - steps, steps)  # inside each true length
        ahead, back = self.ahead(X)[0], self.back(X[rows, flip])[0]
        end = torch.cat([last_step(ahead, n), last_step(back, n)], dim=1)
        return torch.cat([ahead, back[rows, flip]], dim=2), end


def cmd(X: Tensor, Y: Tensor, moments: int = 5) -> Tensor:
    """Central moment discrepancy (Zellinger et al., 2017) of two samples of features in [0, 1]:

    ‖E X − E Y‖₂ + Σ_{k=2..5} ‖E (X − E X)^k − E (Y − E Y)^k‖₂

    X: (N, d), Y: (M, d) -> (), its gradient finite where both are equal
    """
    gaps = [X.mean(0) - Y.mean(0)]
    X, Y = X - X.mean(0), Y - Y.mean(0)
    gaps += [X.pow(k).mean(0) - Y.pow(k).mean(0) for k in range(2, moments + 1)]
    return sum(torch.linalg.vector_norm(gap) for gap in gaps)


def overlap(X: Tensor, Y: Tensor) -> Tensor:
    """mean_{ij} (X̂ᵀ Ŷ)²_{ij}: centered over the batch, each row divided by its length without a
    gradient through the length.

    X, Y: (N, d) -> ()
    """
    X, Y = (Z - Z.mean(0) for Z in (X, Y))
    X, Y = (Z / (Z.detach().norm(dim=1, keepdim=True) + 1e-6) for Z in (X, Y))
    return (X.T @ Y).square().mean()


# ŷ: (B,); rows[m]: segments with m; by modality u_m, p_m, s_m and D_m(p_m + s_m): (B, d)
MISAOutput = namedtuple("MISAOutput", "prediction rows u private shared decoded")
MISALosses = namedtuple("MISALosses", "total task similarity difference reconstruction")


class MISA(Baseline):
    """Modality-Invariant and -Specific Representations (Hazarika et al., ACM MM 2020).

    p_m = E_m^p(u_m),  s_m = E^s(u_m)         private; shared by one and the same E^s
    ŷ = f(Transformer over six tokens [p_l, p_v, p_a, s_l, s_v, s_a])
    L = L_task + α L_sim + β L_diff + γ L_recon,   (α, β, γ) = (1, 0.3, 1)
    L_task = mean (y − ŷ)²,  L_sim = ⅓ Σ_{i<j} CMD(s_i, s_j)
    L_recon = ⅓ Σ_m mean (u_m − D_m(p_m + s_m))²
    L_diff = Σ_m overlap(p_m, s_m) + Σ_{i<j} overlap(p_i, p_j)

    After the authors' code (declare-lab/MISA), with its widths and its mean in L_diff, where the
    paper has a squared norm; u_m: Linear, ReLU and LayerNorm of the end states of two stacked
    Bi-LSTMs (audio, vision), or of the mean of the tokens.

    Paper: every segment has three modalities. The code clips gradients by value, starts recurrent
           weights orthogonal and freezes BERT's first layers on MOSEI.
    Here:  a modality that is empty in a segment is no sample of L_sim, L_diff and L_recon;
           gradients are clipped by norm, PyTorch's initial weights, all of BERT learns.
    Why:   an absent modality would pull the others to a constant, and MSFN's losses skip it, too;
           the same training for every row.
    """

    def __init__(self, config: train.Config, widths: dict[str, int], encoder: nn.Module):
        super().__init__(encoder)
        if config.d % 2:
            raise UserError(f"MISA's attention has two heads: --d must be even, not {config.d}")
        d, self.lstms, self.projections = config.d, nn.ModuleDict(), nn.ModuleDict()
        inside = {"l": encoder.config.hidden_size} | {m: 4 * widths[m] for m in ("v", "a")}
        for m, width in inside.items():
            self.projections[m] = nn.Sequential(nn.Linear(width, d), nn.ReLU(), nn.LayerNorm(d))
        for m in ("a", "v"):
            k = widths[m]
            self.lstms[m] = nn.ModuleList([BiLSTM(k, k), nn.LayerNorm(2 * k), BiLSTM(2 * k, k)])
        self.private = nn.ModuleDict(
            {m: nn.Sequential(nn.Linear(d, d), nn.Sigmoid()) for m in inside}
        )
        self.shared = nn.Sequential(nn.Linear(d, d), nn.Sigmoid())
        self.decoders = nn.ModuleDict({m: nn.Linear(d, d) for m in inside})
        drop = config.dropout
        self.attention = nn.TransformerEncoderLayer(d, 2, 2048, drop, batch_first=True)
        self.f = nn.Sequential(*dense(6 * d, 3 * d, 1, dropout=drop))

    def frames(self, m: str, values: Tensor, n: Tensor) -> Tensor:
        first, norm, second = self.lstms[m]
        states, end = first(values, n)
        return torch.cat([end, second(norm(states), n)[1]], dim=1)  # (B, 4 d_m)

    def forward(self, inputs: dict, video: Tensor | None = None) -> MISAOutput:
        X = self.read(inputs)
        vectors = {m: self.frames(m, *X[m]) for m in ("v", "a")}
        vectors["l"] = mean_over_time(*X["l"])
        u = {m: layers(vectors[m]) for m, layers in self.projections.items()}  # l, v, a
        private = {m: self.private[m](u[m]) for m in u}
        shared = {m: self.shared(u[m]) for m in u}
        decoded = {m: self.decoders[m](private[m] + shared[m]) for m in u}
        tokens = torch.stack([*private.values(), *shared.values()], dim=1)  # (B, 6, d)
        prediction = self.f(self.attention(tokens).flatten(1)).squeeze(1)
        return MISAOutput(prediction, present_rows(X), u, private, shared, decoded)

    def losses(self, output: MISAOutput, y: Tensor) -> MISALosses:
        rows, u, p, s = output.rows, output.u, output.private, output.shared
        similarity = difference = reconstruction = y.new_zeros(())
        for m in u:
            r = rows[m]
            error = u[m][r] - output.decoded[m][r]
            reconstruction = reconstruction + mean_of(error.square()) / 3
            difference = difference + (overlap(p[m][r], s[m][r]) if len(r) else 0)
        for i, j in combinations(u, 2):
            both = rows[i][torch.isin(rows[i], rows[j])]
            if len(both):
                similarity = similarity + cmd(s[i][rows[i]], s[j][rows[j]]) / 3
                difference = difference + overlap(p[i][both], p[j][both])
        task = F.mse_loss(output.prediction, y)
        total = task + similarity + 0.3 * difference + reconstruction
        return MISALosses(total, task, similarity, difference, reconstruction)


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
    d, joint = X.shape[1], torch.cat([X, Y], dim=1)
    identity = torch.eye(joint.shape[1], dtype=joint.dtype, device=joint.device)
    S = joint.T.cov() + ridge * identity  # [[Σ_XX, Σ_XY], [Σ_YX, Σ_YY]]
    L_X, L_Y = torch.linalg.cholesky(S[:d, :d]), torch.linalg.cholesky(S[d:, d:])
    half = torch.linalg.solve_triangular(L_X, S[:d, d:], upper=False)
    return torch.linalg.svdvals(torch.linalg.solve_triangular(L_Y, half.T, upper=False)).sum()


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

    Paper: BERT's sentence vectors are most likely fixed inputs; the abstract does not say.
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

    def forward(self, inputs: dict, video: Tensor | None = None) -> ICCNOutput:
        X = self.read(inputs)
        h_t, K = mean_over_time(*X["l"]), {}
        for m in ("a", "v"):
            values, n = X[m]
            seen = self.convolution[m](values.transpose(1, 2)).transpose(1, 2)
            h = last_step(self.lstm[m](seen.relu())[0], n)
            H = torch.einsum("bi,bj->bij", h_t.detach(), h)
            K[m] = self.cnn[m](H[:, None])
        features = torch.cat([K["a"], h_t, K["v"]], dim=1)
        complete = torch.stack([n > 0 for _, n in X.values()]).all(0)
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
ARGFLosses = namedtuple("ARGFLosses", "total task unimodal reconstruction fooling discriminator")


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
           and in BatchNorm's statistics alone.
    Why:   MAE needs y; in one loss the sums would drown the rest; features exceed ±1; BERT must not
           chase its own features. No code of ARGF (B) was published: this row is our own variant.
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

    def forward(self, inputs: dict, video: Tensor | None = None) -> ARGFOutput:
        X = self.read(inputs)
        x = {m: mean_over_time(*X[m]) for m in MODALITIES}
        e = {m: self.encoders[m](x[m]) for m in MODALITIES}
        decoded = {m: self.decoders[m](e[m]) for m in MODALITIES}
        unimodal = {m: self.classifier(e[m]).squeeze(1) for m in MODALITIES}
        prediction = self.g(self.graph({m: e[m].detach() for m in MODALITIES})).squeeze(1)
        return ARGFOutput(prediction, present_rows(X), x, e, decoded, unimodal)

    def losses(self, output: ARGFOutput, y: Tensor) -> ARGFLosses:
        rows, e = output.rows, select_present(output.e, output.rows)
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
