"""MSFN, the Multimodal Similarity Fusion Network, equation by equation.

Paper: *Multimodal Similarity Fusion Network for Multimodal Sentiment Analysis*, International
Journal of Engineering Science Invention, DOI 10.35629/6734-12035360. Read this file beside it.

    X_a ─ LSTMs (1) ─┐                              ┌─ Discriminator (5–7) ─ L^a (8)
    X_v ─ LSTMs (2) ─┼─ x_m ─ Generator (4) ─ h_m ──┼─ triplet_loss (9) ─ L^d (10)
    X_l ─ BERTs (3) ─┘                              ├─ Decoder (11) ─ x̂_m ─ L^rl (12)
                                                    └─ SelfAttention (13, 14) ─ F_m
                                    F = [F_a, F_v, F_l] ─ FusionPredictor ─ ŷ ─ L^task (15)

Glossary (code, paper, meaning):

    m, k            m, k            a modality: "a" audio, "v" visual, "l" language, or your names
    inputs[m]       X_m             (values, lengths): padded frames or tokens, and true lengths
    B, B_m          N or M, –       segments in the batch; those of them that have modality m
    T, d_m          –, d_m          longest sequence; features of a frame. The paper's X_m has no T
    d               d               width that all modalities share after the embedding
    x[m]            x_m             embedded segments, (B, d)
    h[m]            h_m             segments in the shared subspace, (B, d)
    x_hat[m]        x̂_m             reconstruction of x_m, (B, d)
    logits[m][k]    –               z with D_m(G_k(x_k)) = σ(z), (B,); in the losses (B_k,)
    y, prediction   y, ŷ            sentiment in [-3, 3], (B,)

README.md has an example on your own tensors. To copy a component, copy it with what it calls.
`Paper:` / `Here:` / `Why:` say where the code differs from the paper. We had no Figures 1 and 2:
layers, widths, activations, and the places of LayerNorm and dropout are our choice.
"""

from dataclasses import dataclass, fields
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn


# ── 3.2 Multimodal data embedding: Eqs. 1–3 ───────────────────────────────────────────────────────
class LSTMs(nn.Module):
    """Eqs. 1, 2:  x_a = LSTMs(X_a; θ_a^lstm),  x_v = LSTMs(X_v; θ_v^lstm)

    A Bi-LSTM, then a dense layer on "the LSTM end state": the forward state at the last true frame
    and the backward state at the first. An empty sequence (no face, no speech) has end state 0. Two
    nn.LSTMs over padded frames replace a packed one, whose CPU gradient takes time quadratic in T.

    X: (B, T, d_m) float, T ≥ 1, finite padding on the right; lengths: (B,) int64, each in 0..T
    -> (B, d) float. Raises IndexError for a length > T on the CPU.
    """

    def __init__(self, d_m: int, d: int, width: int = 64, dropout: float = 0.1):
        super().__init__()
        self.forward_lstm = nn.LSTM(d_m, width, batch_first=True)
        self.backward_lstm = nn.LSTM(d_m, width, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.dense = nn.Linear(2 * width, d)

    def forward(self, X: Tensor, lengths: Tensor) -> Tensor:
        n = lengths.to(X.device)[:, None]  # (B, 1)
        segment = torch.arange(len(X), device=X.device)[:, None]  # (B, 1)
        steps = torch.arange(X.shape[1], device=X.device)  # (T,)
        last = (n - 1).clamp(min=0)
        reversed_steps = torch.where(steps < n, n - 1 - steps, steps)  # (B, T): padding stays last
        forward_end = self.forward_lstm(X)[0][segment, last]  # (B, 1, width)
        backward_end = self.backward_lstm(X[segment, reversed_steps])[0][segment, last]
        end = torch.cat([forward_end, backward_end], dim=-1).squeeze(1) * (n > 0)  # (B, 2 width)
        return self.dense(self.dropout(end))


class BERTs(nn.Module):
    """Eq. 3:  x_l = BERTs(X_l; θ_l^bert)

    Paper: a dense layer on "the output layer of BERT", without saying which output.
    Here:  pooling "mean": the mean of the last layer over the true tokens; "cls": the first token.
    Why:   "cls" did not do better (experiments/README.md).

    bert: a transformers encoder: bert(input_ids, attention_mask=…).last_hidden_state is (B, T, D)
    and bert.config.hidden_size is D. (train.py packs sentences: plumbing/packing.py, for speed.)
    input_ids: (B, T) int64, T ≥ 1, padded on the right; lengths: (B,) int64, each in 0..T
    -> (B, d) float. Raises ValueError for another pooling.
    """

    def __init__(self, bert: nn.Module, d: int, pooling: str = "mean", dropout: float = 0.1):
        super().__init__()
        if pooling not in ("mean", "cls"):
            raise ValueError(f'pooling must be "mean" or "cls", not {pooling!r}')
        self.bert, self.pooling = bert, pooling
        self.dropout = nn.Dropout(dropout)
        self.dense = nn.Linear(bert.config.hidden_size, d)

    def forward(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        steps = torch.arange(input_ids.shape[1], device=input_ids.device)  # (T,)
        tokens = steps < lengths.to(input_ids.device)[:, None]  # (B, T)
        first = steps == 0  # empty sentences attend to it: an encoder needs at least one token
        states = self.bert(input_ids, attention_mask=(tokens | first).long()).last_hidden_state
        weights = (tokens if self.pooling == "mean" else tokens & first).to(self.dense.weight.dtype)
        pooled = (states * weights[:, :, None]).sum(1) / weights.sum(1, keepdim=True).clamp(min=1)
        return self.dense(self.dropout(pooled))  # (B, D) -> (B, d)


# ── 3.3, 3.3.1 Multimodal similarity learning, adversarial loss: Eqs. 4–8 ─────────────────────────
class Generator(nn.Sequential):
    """Eq. 4:  h_m = G_m(x_m; θ^{G_m})

    The encoder of modality m into the shared subspace. x: (B, d) float -> (B, d) float
    """

    def __init__(self, d: int, dropout: float = 0.1):
        super().__init__(
            nn.Linear(d, d), nn.LayerNorm(d), nn.ReLU(), nn.Dropout(dropout), nn.Linear(d, d)
        )


class Discriminator(nn.Sequential):
    """D_m of Eqs. 5–7, before its sigmoid:  D_m(h) = σ(z)

    It judges features of modality m true, all others false. h: (B, d) float -> z: (B,) float
    """

    def __init__(self, d: int):
        super().__init__(nn.Linear(d, d), nn.LeakyReLU(0.2), nn.Linear(d, 1), nn.Flatten(0))


def minimax_loss(real: Tensor, fakes: list[Tensor], form: str = "bounded") -> Tensor:
    """Eqs. 5–7:  L^a_m = E[ log D_m(G_m(x_m)) − Σ_{k≠m} log D_m(G_k(x_k)) ],    m = l, a, v

    The value of a minimax game: D_m ascends it, all else descends it. One backward pass serves both
    if the optimizer maximizes for the discriminators' parameters: see `MSFN.parameter_groups`.

    Paper: −log D_m(G_k(x_k)) for each other modality k.
    Here:  log(1 − D_m(G_k(x_k))), form "bounded"; form "literal" is the paper's.
    Why:   the printed value has no upper bound. With three modalities D_m wins it blindly: if every
           logit is −c, then L^a_m = −log σ(−c) ≈ c. The bounded value, a usual GAN's, is at most 0.

    real: (B_m,) logits z of D_m(G_m(x_m)) = σ(z); fakes: for each k ≠ m the (B_k,) logits of
    D_m(G_k(x_k)) -> (), 0 if m or every k has no samples. Raises ValueError for another form.
    """
    if form not in ("bounded", "literal"):
        raise ValueError(f'form must be "bounded" or "literal", not {form!r}')
    fakes = [z for z in fakes if len(z) > 0]
    if len(real) == 0 or not fakes:
        return real.sum() * 0  # with a graph, so that a backward pass works
    value = nn.functional.logsigmoid(real).mean()
    for z in fakes:  # log(1 − σ(z)) = log σ(−z) stays finite where 1 − σ(z) rounds to 0
        term = nn.functional.logsigmoid(-z) if form == "bounded" else -nn.functional.logsigmoid(z)
        value = value + term.mean()
    return value


def adversarial_loss(logits: dict[str, dict[str, Tensor]], form: str = "bounded") -> Tensor:
    """Eq. 8:  L^a = (L^a_l + L^a_a + L^a_v) / 3

    logits[m][k]: (B_k,) logits of D_m(G_k(x_k)), for each pair of modalities -> ()
    """
    values = [minimax_loss(z[m], [z[k] for k in z if k != m], form) for m, z in logits.items()]
    return sum(values) / len(values)


# ── 3.3.2 Distance metric loss: Eqs. 9, 10 ────────────────────────────────────────────────────────
def sentiment_classes(y: Tensor, kind: str = "seven") -> Tensor:
    """The classes that Eq. 9 compares, y_a = y_p ≠ y_n, from a continuous label.

    Paper: says "class" without a definition; its labels are numbers in [−3, 3].
    Here:  "seven": −3 … 3, the classes of Acc-7 (round half to even); "sign": −1, 0, 1.
    Why:   neighbors such as 1.0 and 1.2 should not be negatives; MOSI's labels have 53 values.

    y: (B,) float -> (B,) int64. Raises ValueError for another kind.
    """
    if kind == "seven":
        return y.clamp(-3, 3).round().long()
    if kind == "sign":
        return y.sign().long()
    raise ValueError(f'kind must be "seven" or "sign", not {kind!r}')


def triplet_loss(h: Tensor, y: Tensor, margin: float = 1.0, reduction: str = "mean") -> Tensor:
    """Eq. 9:  L^d_m = Σ_{a,p,n : y_a = y_p ≠ y_n} ( d^m_{a,p} − d^m_{a,n} + δ )

    d^m_{i,j}: Euclidean distance of rows i and j. For B above 256 see experiments/triplets.py.

    Paper: a sum; δ has no value. Our copy, whose layout is damaged, shows no hinge.
    Here:  the hinge max(·, 0); p ≠ a; the mean over the valid triplets, or the sum; δ = 1.
    Why:   the text wants the positive nearer "by a boundary value", as FaceNet's triplet loss does;
           without the hinge δ changes no gradient. The sum grows as B³, so β would depend on B.

    h: (B, d) float, y: (B,) integer classes -> () float32 (float64 if h is), also under autocast; 0
    without a valid triplet. Raises ValueError for other shapes, float classes, another reduction.
    """
    if h.ndim != 2 or y.shape != h.shape[:1] or y.is_floating_point():
        raise ValueError(f"h must be (B, d), y (B,) integers: {h.shape}, {y.shape} {y.dtype}")
    if reduction not in ("mean", "sum"):
        raise ValueError(f'reduction must be "mean" or "sum", not {reduction!r}')
    same = y[:, None] == y[None, :]  # (B, B)
    positive = same.clone().fill_diagonal_(False)  # p ≠ a
    valid = positive[:, :, None] & ~same[:, None, :]  # (B, B, B): [a, p, n]
    h = h.to(torch.promote_types(h.dtype, torch.float32))
    # cdist's default multiplies matrices, which is inexact for near rows far from the origin.
    distance = torch.cdist(h, h, compute_mode="donot_use_mm_for_euclid_dist")  # (B, B)
    hinge = torch.relu(distance[:, :, None] - distance[:, None, :] + margin) * valid  # (B, B, B)
    return hinge.sum() if reduction == "sum" else hinge.sum() / valid.sum().clamp(min=1)


def distance_loss(
    h: dict[str, Tensor], y: dict[str, Tensor], margin: float = 1.0, reduction: str = "mean"
) -> Tensor:
    """Eq. 10:  L^d = (L^d_l + L^d_a + L^d_v) / 3

    h[m]: (B_m, d) float, y[m]: (B_m,) integer classes of the same segments -> ()
    """
    return sum(triplet_loss(h[m], y[m], margin, reduction) for m in h) / len(h)


# ── 3.4 Multimodal decoder and reconstruction loss: Eqs. 11, 12 ───────────────────────────────────
class Decoder(nn.Sequential):
    """Eq. 11:  x̂_m = E_m(h_m; θ^{E_m})        (the paper names decoders E)

    h: (B, d) float -> (B, d) float
    """

    def __init__(self, d: int):
        super().__init__(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, d))


def reconstruction_loss(
    x: dict[str, Tensor], x_hat: dict[str, Tensor], reduction: str = "mean"
) -> Tensor:
    """Eq. 12:  L^rl = (1/3) Σ_m ‖x_m − x̂_m‖²₂

    Paper: the squared norm of an N × d matrix, a sum over segments and features.
    Here:  the mean over segments and features, or the sum.
    Why:   the sum grows with B and d, so γ would depend on both.

    The target x_m is trained too (Eqs. 1–3), so the loss also falls as x_m shrinks; a detached x
    prevents that. x[m], x_hat[m]: (B_m, d) float -> (). Raises ValueError for another reduction.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f'reduction must be "mean" or "sum", not {reduction!r}')
    total = 0
    for m in x:
        kind = reduction if len(x[m]) > 0 else "sum"  # the mean of an empty batch would be NaN
        total = total + nn.functional.mse_loss(x_hat[m], x[m], reduction=kind)
    return total / len(x)


# ── 3.5 Fusion prediction network: Eqs. 13–15 ─────────────────────────────────────────────────────
class SelfAttention(nn.Module):
    """Eq. 13:  F_m = softmax(Q_m K_mᵀ / √d_k) V_m
    Eq. 14:  Q_m = h_m w_m^q,  K_m = h_m w_m^k,  V_m = h_m w_m^v

    It attends over segments: row i of F_m mixes the values of the segments that i may attend to.
    h: (B, d) float; mask: (B, B) bool, True at [i, j] if i may attend to j; each row needs one True
    -> (B, d) float
    """

    def __init__(self, d: int):
        super().__init__()
        self.w_q, self.w_k, self.w_v = (nn.Linear(d, d, bias=False) for _ in range(3))

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        Q, K, V = self.w_q(h), self.w_k(h), self.w_v(h)
        scores = (Q @ K.T / K.shape[-1] ** 0.5).masked_fill(~mask, -torch.inf)  # (B, B)
        return scores.softmax(dim=-1) @ V  # (B, d)


def attention_mask(video: Tensor, over: str = "video") -> Tensor:
    """The segments over which Eq. 13's softmax runs: the N of its N × d matrices.

    Paper: predicts "the emotional state of a video clip" from "N segments": Q_m has N rows.
    Here:  "video": the segments of the same video, or itself alone if the video is unknown;
           "batch": all segments of the batch; "segment": itself alone.
    Why:   over the batch, a prediction depends on what else was drawn; over the segment, F_m = V_m.

    video: (B,) int64, equal in a video, negative if unknown -> (B, B) bool. Raises ValueError for
    another `over`.
    """
    diagonal = torch.eye(len(video), dtype=torch.bool, device=video.device)
    if over == "video":
        return diagonal | ((video[:, None] == video[None, :]) & (video[:, None] >= 0))
    if over == "batch":
        return torch.ones_like(diagonal)
    if over == "segment":
        return diagonal
    raise ValueError(f'over must be "video", "batch" or "segment", not {over!r}')


class FusionPredictor(nn.Sequential):
    """3.5:  ŷ = f(F; θ_f),  F = [F_a, F_v, F_l]        (f: "composed of fully connected layers")

    ŷ is not squashed into [−3, 3]: the paper names no output activation; 3 tanh never reaches ±3.
    F: (B, modalities · d) float -> (B,) float
    """

    def __init__(self, d: int, modalities: int = 3, dropout: float = 0.1):
        hidden = nn.Linear(modalities * d, d), nn.ReLU(), nn.Dropout(dropout)
        super().__init__(*hidden, nn.Linear(d, 1), nn.Flatten(0))


def task_loss(prediction: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
    """Eq. 15:  L^task = Σ_{i=1..M} ‖y_i − ŷ_i‖²₂

    Paper: a sum over M segments.
    Here:  the mean over the segments, or the sum.
    Why:   with the mean, α, β, γ and the learning rate keep their meaning when B changes.

    prediction, y: (B,) float -> (). Raises ValueError for another reduction.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f'reduction must be "mean" or "sum", not {reduction!r}')
    return nn.functional.mse_loss(prediction, y, reduction=reduction)


# ── 3.6 Optimization: Eq. 16, and the model ───────────────────────────────────────────────────────
@dataclass
class MSFNConfig:
    """Table 1's MOSI column, then our switches. Raises ValueError for an unlisted choice."""

    d: int = 128  # width shared by all modalities
    alpha: float = 0.2  # α: weight of the adversarial loss L^a
    beta: float = 0.5  # β: weight of the distance loss L^d
    gamma: float = 0.2  # γ: weight of the reconstruction loss L^rl
    dropout: float = 0.1  # dropout rate
    adversarial: Literal["bounded", "literal"] = "bounded"  # log(1 − D(fake)), or −log D(fake)
    triplet_features: Literal["h", "x"] = "h"  # Eq. 9: distances between h_m or between x_m
    margin: float = 1.0  # δ: margin of Eq. 9
    classes: Literal["seven", "sign"] = "seven"  # Eq. 9: the seven of Acc-7, or the sign
    detach_target: bool = False  # Eq. 12: no gradient through the target x_m
    attention: Literal["video", "batch", "segment"] = "video"  # Eq. 13: range of attention
    reduction: Literal["mean", "sum"] = "mean"  # Eqs. 9, 12, 15: the paper has sums

    def __post_init__(self):
        for field in fields(MSFNConfig):
            value, choices = getattr(self, field.name), get_args(field.type)
            if choices and value not in choices:
                raise ValueError(f"{field.name} must be one of {choices}, not {value!r}")


class Output(NamedTuple):
    """What MSFN.forward returns: everything that the losses need."""

    prediction: Tensor  # ŷ: (B,)
    x: dict[str, Tensor]  # x_m: (B, d)
    h: dict[str, Tensor]  # h_m: (B, d)
    x_hat: dict[str, Tensor]  # x̂_m: (B, d)
    logits: dict[str, dict[str, Tensor]]  # [m][k]: D_m(G_k(x_k)) before its sigmoid, (B,)
    rows: dict[str, Tensor]  # the segments in which m is present: (B_m,) int64


class Losses(NamedTuple):
    """Eq. 16 and its four terms, each ()."""

    total: Tensor
    task: Tensor
    adversarial: Tensor
    distance: Tensor
    reconstruction: Tensor


def select_present(values: dict[str, Tensor], rows: dict[str, Tensor]) -> dict[str, Tensor]:
    """Select the rows in which each modality is present: (B, …) -> (B_m, …)"""
    return {m: values[m][rows[m]] for m in rows}


class MSFN(nn.Module):
    """The whole model: Eqs. 1–4, 11, 13, 14 in `forward`; Eqs. 5–10, 12, 15, 16 in `losses`.

    embeddings: {m: a module such as `LSTMs`, called with (values, lengths) -> x_m: (B, d)}, which
    have dropout rates of their own
    """

    def __init__(self, config: MSFNConfig, embeddings: dict[str, nn.Module]):
        super().__init__()
        d, dropout = config.d, config.dropout
        self.config = config
        self.embeddings = nn.ModuleDict(embeddings)
        self.generators = nn.ModuleDict({m: Generator(d, dropout) for m in embeddings})
        self.discriminators = nn.ModuleDict({m: Discriminator(d) for m in embeddings})
        self.decoders = nn.ModuleDict({m: Decoder(d) for m in embeddings})
        self.attentions = nn.ModuleDict({m: SelfAttention(d) for m in embeddings})
        self.predictor = FusionPredictor(d, len(embeddings), dropout)

    def forward(
        self, inputs: dict[str, tuple[Tensor, Tensor]], video: Tensor | None = None
    ) -> Output:
        """Eqs. 1–4, 11, 13, 14, ŷ, and the discriminators' logits of Eqs. 5–7.

        inputs[m]: (values, lengths), as m's embedding takes them; values on the model's device;
        lengths: (B,) int64 on the CPU, 0 where m is absent. video: (B,) int64 on the device, equal
        within a video, negative if unknown; None: all unknown, so each segment attends to itself.
        Raises ValueError for other modalities than the model's.
        """
        if inputs.keys() != self.embeddings.keys():
            raise ValueError(f"inputs must be {[*self.embeddings]}, not {[*inputs]}")
        device, x, rows = next(self.parameters()).device, {}, {}
        move = {"device": device, "non_blocking": device.type == "cuda"}  # else the CPU waits
        for m, embed in self.embeddings.items():
            values, lengths = inputs[m]
            x[m] = embed(values, lengths.to(**move))  # Eqs. 1–3
            rows[m] = lengths.nonzero()[:, 0].to(**move)
        h = {m: self.generators[m](x[m]) for m in x}  # Eq. 4
        logits = {m: {k: self.discriminators[m](h[k]) for k in h} for m in h}  # of Eqs. 5–7
        x_hat = {m: self.decoders[m](h[m]) for m in h}  # Eq. 11
        if video is None:
            video = torch.full_like(lengths, -1, device=device)
        mask = attention_mask(video, self.config.attention)
        attended = torch.cat([self.attentions[m](h[m], mask) for m in h], dim=-1)  # Eqs. 13, 14: F
        return Output(self.predictor(attended), x, h, x_hat, logits, rows)

    def losses(self, output: Output, y: Tensor) -> Losses:
        """Eq. 16:  L = L^task + α L^a + β L^d + γ L^rl,  from Eqs. 5–10, 12, 15

        Eqs. 5–10 and 12 skip the segments without modality m; Eqs. 13–15 still use their
        embedding, the dense layer's bias. If no segment has m, m counts 0 in Eqs. 8, 10 and 12,
        which still divide by the number of modalities. y: (B,) float
        """
        c, rows = self.config, output.rows
        x, h, x_hat = (select_present(part, rows) for part in (output.x, output.h, output.x_hat))
        logits = {m: select_present(output.logits[m], rows) for m in rows}
        classes = {m: sentiment_classes(y[rows[m]], c.classes) for m in rows}
        features = h if c.triplet_features == "h" else x
        target = {m: x[m].detach() for m in x} if c.detach_target else x
        task = task_loss(output.prediction, y, c.reduction)  # Eq. 15
        adversarial = adversarial_loss(logits, c.adversarial)  # Eqs. 5–8
        distance = distance_loss(features, classes, c.margin, c.reduction)  # Eqs. 9, 10
        reconstruction = reconstruction_loss(target, x_hat, c.reduction)  # Eq. 12
        total = task + c.alpha * adversarial + c.beta * distance + c.gamma * reconstruction
        return Losses(total, task, adversarial, distance, reconstruction)

    def parameter_groups(self) -> list[dict]:
        """Eqs. 5–8 in one optimizer: the discriminators ascend L, everything else descends it."""
        D = list(self.discriminators.parameters())
        rest = [p for name, p in self.named_parameters() if not name.startswith("discriminators.")]
        return [{"params": rest}, {"params": D, "maximize": True}]
