"""MSFN, the Multimodal Similarity Fusion Network, equation by equation.

Paper: *Multimodal Similarity Fusion Network for Multimodal Sentiment Analysis*, International
Journal of Engineering Science Invention, DOI 10.35629/6734-12035360. Read this file beside it.

    X_a ─ LSTMs (1) ─┐                              ┌─ Discriminator (5–7) ─ L^a (8)
    X_v ─ LSTMs (2) ─┼─ x_m ─ Generator (4) ─ h_m ──┼─ triplet_loss (9) ─ L^d (10)
    X_l ─ BERTs (3) ─┘                              ├─ Decoder (11) ─ x̂_m ─ L^rl (12)
                                                    └─ SelfAttention (13, 14) ─ F_m
                                    F = [F_a, F_v, F_l] ─ FusionPredictor ─ ŷ ─ L^task (15)

Glossary (code, paper, meaning):

    m, k            m, k            a modality: "a" audio, "v" visual, "l" language
    inputs[m]       X_m             what modality m brings: (padded sequences, their true lengths)
    B               N               segments in the batch (which N Eq. 13 means: attention_mask)
    T, d_m          –, d_m          longest length; width of a raw feature (D_m is a discriminator)
    d               d               width that all modalities share after the embedding
    x[m]            x_m             embedded segment, (B, d)
    h[m]            h_m             the same in the shared subspace, (B, d)
    x_hat[m]        x̂_m             reconstruction of x_m, (B, d)
    logits[m][k]    –               z with D_m(G_k(x_k)) = sigmoid(z), (B,)
    y, prediction   y, ŷ            sentiment in [-3, 3], (B,)

A component can be copied alone: it needs torch and, where it calls one, the function above it. Where
the code differs from the print, `Paper:` / `Here:` / `Why:` say so. Figures 1 and 2 of the paper were
not available to us, only its text: how many layers LSTMs, G, D, E and f have, and of what width, is
our choice.
"""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MODALITIES = ("a", "v", "l")


# ── 3.2 Multimodal data embedding: Eqs. 1–3 ───────────────────────────────────────────────────────
class LSTMs(nn.Module):
    """Eqs. 1, 2:  x_a = LSTMs(X_a; θ_a^lstm),  x_v = LSTMs(X_v; θ_v^lstm)

    A Bi-LSTM and a Dense layer "to receive … the LSTM end state": the forward direction's state
    after the last true frame beside the backward direction's after the first. The backward
    direction is a second LSTM that reads each sequence flipped inside its true length. An empty
    sequence (no face, no speech) leaves both in their initial state, zero.

    X: (B, T, d_m) float, T ≥ 1, finite padding on the right, lengths: (B,) int64, each in 0..T
    -> (B, d) float. Raises IndexError for a length > T.
    """

    def __init__(self, d_m: int, d: int, width: int = 64, dropout: float = 0.1):
        super().__init__()
        # Not one packed, bidirectional LSTM: on a CPU its backward pass takes time quadratic in T.
        self.forward_lstm = nn.LSTM(d_m, width, batch_first=True)
        self.backward_lstm = nn.LSTM(d_m, width, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.dense = nn.Linear(2 * width, d)

    def forward(self, X: Tensor, lengths: Tensor) -> Tensor:
        n = lengths.to(X.device)[:, None]  # (B, 1)
        rows = torch.arange(len(X), device=X.device)[:, None]
        steps = torch.arange(X.shape[1], device=X.device)
        last = (n - 1).clamp(min=0)
        flipped = X[rows, torch.where(steps < n, n - 1 - steps, steps)]  # (B, T, d_m)
        ahead = self.forward_lstm(X)[0][rows, last]  # (B, 1, width)
        back = self.backward_lstm(flipped)[0][rows, last]
        end = torch.cat([ahead, back], dim=-1).squeeze(1) * (n > 0)  # (B, 2 width)
        return self.dense(self.dropout(end))


class BERTs(nn.Module):
    """Eq. 3:  x_l = BERTs(X_l; θ_l^bert)

    A pre-trained encoder and a Dense layer. The paper does not say which of BERT's outputs the Dense
    layer takes: here the mean of the last layer over the true tokens, or its first position ("cls").

    bert: any encoder of transformers: called with input_ids and attention_mask, it gives a
    last_hidden_state (B, T, D).
    input_ids: (B, T) int64, T ≥ 1, padded on the right, lengths: (B,) int64, each in 0..T (0: no
    words) -> (B, d) float. Raises KeyError for another pooling.
    """

    def __init__(self, bert: nn.Module, d: int, pooling: str = "mean", dropout: float = 0.1):
        super().__init__()
        self.bert, self.pooling = bert, pooling
        self.dropout = nn.Dropout(dropout)
        self.dense = nn.Linear(bert.config.hidden_size, d)

    def forward(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        steps = torch.arange(input_ids.shape[1], device=input_ids.device)
        mask = steps < lengths.to(input_ids.device)[:, None]  # (B, T)
        first = steps == 0
        # An empty sentence attends to its first padding, since a softmax over nothing is NaN.
        states = self.bert(input_ids, attention_mask=(mask | first).long()).last_hidden_state
        taken = {"mean": mask, "cls": mask & first}[self.pooling].to(self.dense.weight.dtype)
        pooled = (states * taken[:, :, None]).sum(1) / taken.sum(1, keepdim=True).clamp(min=1)
        return self.dense(self.dropout(pooled))  # (B, D) -> (B, d)


# ── 3.3, 3.3.1 Multimodal similarity learning, adversarial loss: Eqs. 4–8 ──────────────────────────
class Generator(nn.Sequential):
    """Eq. 4:  h_m = G_m(x_m; θ_m^G)

    The unimodal encoder into the shared subspace.

    x: (B, d) float -> (B, d) float
    """

    def __init__(self, d: int, dropout: float = 0.1):
        super().__init__(
            nn.Linear(d, d), nn.LayerNorm(d), nn.ReLU(), nn.Dropout(dropout), nn.Linear(d, d)
        )


class Discriminator(nn.Sequential):
    """D_m of Eqs. 5–7, before its sigmoid:  D_m(h) = σ(z)

    Takes the features of its own modality for true and those of the other two for false.

    h: (B, d) float -> logits z: (B,) float
    """

    def __init__(self, d: int):
        super().__init__(nn.Linear(d, d), nn.LeakyReLU(0.2), nn.Linear(d, 1), nn.Flatten(0))


def minimax_loss(real: Tensor, fakes: list[Tensor], form: str = "literal") -> Tensor:
    """Eqs. 5–7:  L_m = E[ log D_m(G_m(x_m)) − Σ_{k≠m} log D_m(G_k(x_k)) ]        for m = l, a, v

    The value of a minimax game: the discriminator D_m *ascends* it, everything else descends it. Give
    the discriminators' parameter group `maximize=True` (see `MSFN.parameter_groups`) and one
    backward pass serves both sides.

    form "literal": as printed. The discriminators can raise −log D(fake) without bound.
    form "bounded": log(1 − D(fake)) instead, the usual GAN's value, with the same two players.

    real: (B_m,) logits z of D_m(G_m(x_m)) = σ(z); fakes: (B_k,) of D_m(G_k(x_k)) for each other k
    -> (), 0 without a sample of m or of the others. Raises KeyError for another form.
    """
    # log(1 − σ(z)) = log σ(−z), which is finite where 1 − σ(z) rounds to 0
    against = {"literal": lambda z: -F.logsigmoid(z), "bounded": lambda z: F.logsigmoid(-z)}[form]
    fakes = [z for z in fakes if len(z)]
    if len(real) == 0 or not fakes:
        return real.sum() * 0
    return F.logsigmoid(real).mean() + sum(against(z).mean() for z in fakes)


def adversarial_loss(logits: dict[str, dict[str, Tensor]], form: str = "literal") -> Tensor:
    """Eq. 8:  L^a = (L_l + L_a + L_v) / 3

    logits[m][k]: (B_k,) of D_m(G_k(x_k)), before the sigmoid, for each pair of modalities -> ()
    """
    terms = [minimax_loss(z[m], [z[k] for k in z if k != m], form) for m, z in logits.items()]
    return sum(terms) / len(terms)


def gradient_penalty(discriminators: dict[str, nn.Module], h: dict[str, Tensor]) -> Tensor:
    """Not in the paper:  R = E[ ‖∇_h z‖² ]  over the samples of all pairs (m, k), z of D_m(h_k) = σ(z)

    Mescheder, Geiger and Nowozin (2018), "Which training methods for GANs do actually converge?":
    with L^a − (ρ/2) R as the game's value D has a reason to become flat where the modalities meet,
    and the game comes to rest. h is detached: R is the discriminators' to pay, not the generators'.

    discriminators[m]: (B, d) -> logits (B,), h[m]: (B_m, d) float -> (), 0 without a sample. A
    modality without samples has no discriminator that plays.
    """
    at = torch.cat(list(h.values())).detach().requires_grad_()  # (Σ B_m, d)
    logits = [discriminators[m](at) for m in h if len(h[m])]
    slopes = [torch.autograd.grad(z.sum(), at, create_graph=True)[0] for z in logits]
    squares = [slope.square().sum() for slope in slopes]
    return sum(squares, at.new_zeros(())) / max(len(at) * len(squares), 1)


# ── 3.3.2 Distance metric loss: Eqs. 9, 10 ────────────────────────────────────────────────────────
def sentiment_classes(y: Tensor, kind: str = "seven") -> Tensor:
    """The classes that Eq. 9 compares, y_a = y_p ≠ y_n, of a continuous label.

    Paper: says "class" and never which, of a label in [−3, 3].
    Here:  "seven": −3 … 3, those of Acc-7 (round half to even); "sign": negative, zero, positive.
    Why:   equality of the raw labels would make almost every segment a class of its own.

    y: (B,) float -> (B,) int64. Raises KeyError for another kind.
    """
    return {"seven": y.clamp(-3, 3).round(), "sign": y.sign()}[kind].long()


def triplet_loss(h: Tensor, y: Tensor, margin: float = 1.0, reduction: str = "mean") -> Tensor:
    """Eq. 9:  L^d_m = Σ_{a,p,n : y_a = y_p ≠ y_n} [ d_{a,p} − d_{a,n} + δ ]₊,    p ≠ a

    d_{i,j} is the Euclidean distance of rows i and j. The same in B³ memory, to read first:

        same = y[:, None] == y[None, :]
        positive = same & ~torch.eye(len(y), dtype=torch.bool)
        valid = positive[:, :, None] & ~same[:, None, :]  # [a, p, n]
        d = torch.cdist(h, h)
        loss = (d[:, :, None] - d[:, None, :] + margin).clamp(min=0)[valid].mean()

    Paper: the sum without the hinge [·]₊, and δ without a value.
    Here:  the hinge; δ = 1; and the mean over all valid triplets, or the sum on request.
    Why:   the text wants the positive nearer "by a boundary value", as FaceNet (its ref. 21) does;
           without the hinge δ has no effect. The sum grows as B³: no β would fit two batch sizes.

    All valid triplets, exactly, in O(B² (d + log B)) time and O(B²) memory. Inside its hinge the loss
    is linear: each triplet with d_an < d_ap + δ adds d_ap once, −d_an once and δ once. So it is
    enough to *count* them, by binary search in each anchor's sorted distances: for each positive its
    negatives, for each negative its positives.

    h: (B, d) float32 or float64, y: (B,) integer classes -> (), 0 where no triplet is valid.
    Gradients are finite for equal rows. Raises ValueError for other shapes or classes that are no
    integers, KeyError for another reduction.
    """
    if h.ndim != 2 or y.shape != h.shape[:1] or y.is_floating_point():
        raise ValueError(f"h must be (B, d), y (B,) integers: {h.shape}, {y.shape} {y.dtype}")
    # Exact mode: cdist's matrix product loses all digits on rows that are long and near each other.
    distance = torch.cdist(h, h, compute_mode="donot_use_mm_for_euclid_dist")  # (B, B)
    with torch.no_grad():
        negative = y[:, None] != y[None, :]
        positive = ~negative
        positive.fill_diagonal_(False)
        reach = distance + margin
        to_negatives = distance.masked_fill(~negative, torch.inf).sort(dim=1).values
        reach_of_positives = reach.masked_fill(~positive, -torch.inf).sort(dim=1).values
        # of each positive the negatives, and of each negative the positives, with d_an < d_ap + δ
        inside = torch.searchsorted(to_negatives, reach, out_int32=True) * positive
        beyond = torch.searchsorted(reach_of_positives, distance, right=True, out_int32=True)
        outside = (len(h) - beyond) * negative
        weight = (inside - outside).to(h.dtype)
        constant = inside.sum().to(h.dtype) * margin
        valid = (positive.sum(1) * negative.sum(1)).sum()
        number = {"mean": valid.clamp(min=1), "sum": torch.ones_like(valid)}[reduction]
    return ((distance * weight).sum() + constant) / number


def distance_loss(
    h: dict[str, Tensor], y: dict[str, Tensor], margin: float = 1.0, reduction: str = "mean"
) -> Tensor:
    """Eq. 10:  L^d = (L^d_l + L^d_a + L^d_v) / 3

    h[m]: (B_m, d) float, y[m]: (B_m,) integer classes of the same segments -> ()
    """
    return sum(triplet_loss(h[m], y[m], margin, reduction) for m in h) / len(h)


# ── 3.4 Multimodal decoder and reconstruction loss: Eqs. 11, 12 ───────────────────────────────────
class Decoder(nn.Sequential):
    """Eq. 11:  x̂_m = E_m(h_m; θ_m^E)        (E for a decoder: the paper's letter)

    h: (B, d) float -> (B, d) float
    """

    def __init__(self, d: int):
        super().__init__(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, d))


def reconstruction_loss(
    x: dict[str, Tensor], x_hat: dict[str, Tensor], reduction: str = "mean"
) -> Tensor:
    """Eq. 12:  L^rl = (1/3) Σ_m ‖x_m − x̂_m‖²₂

    Paper: the squared norm of an N × d matrix, a sum over segments and features.
    Here:  their mean, or the sum on request.
    Why:   a sum changes γ's meaning with B and d; Table 1's γ = 0.2 of it would drown L^task.

    The target x_m is trainable, too, so the loss also falls by shrinking x_m; pass it detached to
    prevent that. x[m], x_hat[m]: (B_m, d) float -> (). Raises ValueError for another reduction.
    """
    total = 0
    for m, target in x.items():
        how = reduction if len(target) else "sum"  # of nothing the sum is 0, the mean NaN
        total = total + F.mse_loss(x_hat[m], target, reduction=how)
    return total / len(x)


# ── 3.5 Fusion prediction network: Eqs. 13–15 ─────────────────────────────────────────────────────
class SelfAttention(nn.Module):
    """Eq. 13:  F_m = softmax(Q_m K_mᵀ / √d_k) V_m
    Eq. 14:  Q_m = h_m w_m^q,  K_m = h_m w_m^k,  V_m = h_m w_m^v

    The "tokens" are segments: row i of F_m mixes the values of the segments that i may attend to.

    h: (B, d) float, mask: (B, B) bool, mask[i, j]: i may attend to j, at least one j each
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
    """Which segments Eq. 13's softmax runs over: what N is.

    Paper: "the emotional state of a video clip", from "X … containing N segments"; Q_m and K_m have
           N rows, one vector a segment.
    Here:  "video": the segments of the same video (one whose video is unknown attends to itself
           alone); "batch": all that happen to share the batch; "segment": itself alone.
    Why:   over the batch a prediction depends on whatever else was drawn into it; over the segment
           the softmax is 1, so F_m = V_m and Eq. 13 has nothing to do.

    video: (B,) int64, equal numbers for the same video, negative for unknown -> (B, B) bool.
    Raises KeyError for another reading.
    """
    itself = torch.eye(len(video), dtype=torch.bool, device=video.device)
    together = (video[:, None] == video[None, :]) & (video[:, None] >= 0)
    everyone = torch.ones_like(itself)
    return {"video": itself | together, "batch": everyone, "segment": itself}[over]


class FusionPredictor(nn.Sequential):
    """3.5:  ŷ = f(F; θ_f),  F = [F_a, F_v, F_l]        (f: "composed of fully connected layers")

    Not squashed into [−3, 3]: Eq. 15 keeps ŷ there, and what is squashed cannot reach ±3.

    F: (B, modalities · d) float -> (B,) float
    """

    def __init__(self, d: int, modalities: int = 3, dropout: float = 0.1):
        first, last = nn.Linear(modalities * d, d), nn.Linear(d, 1)
        super().__init__(first, nn.ReLU(), nn.Dropout(dropout), last, nn.Flatten(0))


def task_loss(y: Tensor, prediction: Tensor, reduction: str = "mean") -> Tensor:
    """Eq. 15:  L^task = Σ_{i=1..M} ‖y_i − ŷ_i‖²₂

    Paper: a sum over M segments.
    Here:  their mean, or the sum on request.
    Why:   with the mean α, β, γ and the learning rate keep their meaning when B changes.

    y, prediction: (B,) float -> (). Raises ValueError for another reduction.
    """
    return F.mse_loss(prediction, y, reduction=reduction)


# ── Configuration: Table 1's MOSI column, and the choices that the paper leaves open ───────────────
def option(default, help: str):
    """A dataclass field that carries its help text to the command line."""
    return field(default=default, metadata={"help": help})


@dataclass
class MSFNConfig:
    """What the model and its losses need to know: Table 1, then the choices left open."""

    d: int = option(128, "d: width shared by all modalities")
    alpha: float = option(0.2, "α: weight of the adversarial loss L^a")
    beta: float = option(0.5, "β: weight of the distance loss L^d")
    gamma: float = option(0.2, "γ: weight of the reconstruction loss L^rl")
    dropout: float = option(0.1, "Drop: dropout rate")
    pooling: Literal["mean", "cls"] = option("mean", "Eq. 3: one vector of BERT's last layer")
    lstm_width: int = option(64, "Eqs. 1, 2: width of each direction of the Bi-LSTM")
    adversarial: Literal["literal", "bounded"] = option("literal", "Eqs. 5–7: −log D, log(1 − D)")
    penalty: float = option(0.0, "ρ: weight of R, not in the paper, which lets the game converge")
    triplet_features: Literal["h", "x"] = option("h", "Eq. 9: distances between h_m or x_m")
    margin: float = option(1.0, "δ: margin of Eq. 9")
    classes: Literal["seven", "sign"] = option("seven", "Eq. 9: classes, Acc-7's or the sign")
    detach_target: bool = option(False, "Eq. 12: no gradient through the target x_m")
    attention: Literal["video", "batch", "segment"] = option("video", "Eq. 13: attend within it")
    reduction: Literal["mean", "sum"] = option("mean", "Eqs. 9, 12, 15: the print has sums")


# ── 3.6 Optimization: Eq. 16, and the model ───────────────────────────────────────────────────────
class Output(NamedTuple):  # of MSFN.forward: all that the losses need
    prediction: Tensor  # ŷ: (B,)
    x: dict[str, Tensor]  # x_m: (B, d)
    h: dict[str, Tensor]  # h_m: (B, d)
    x_hat: dict[str, Tensor]  # x̂_m: (B, d)
    logits: dict[str, dict[str, Tensor]]  # [m][k], D_m(G_k(x_k)) before its sigmoid: (B,)


class Losses(NamedTuple):  # Eq. 16 and its four terms, each ()
    total: Tensor
    task: Tensor
    adversarial: Tensor
    distance: Tensor
    reconstruction: Tensor


class MSFN(nn.Module):
    """The whole model: Eqs. 1–4, 11, 13, 14 in `forward`, the losses and Eq. 16 in `losses`.

    widths: {"a": d_a, "v": d_v}, the widths of the raw features. bert: an encoder of transformers.
    """

    def __init__(self, config: MSFNConfig, widths: dict[str, int], bert: nn.Module):
        super().__init__()
        c, d = config, config.d
        self.config = config
        lstms = {m: LSTMs(widths[m], d, c.lstm_width, c.dropout) for m in ("a", "v")}
        self.embeddings = nn.ModuleDict({**lstms, "l": BERTs(bert, d, c.pooling, c.dropout)})
        self.generators = nn.ModuleDict({m: Generator(d, c.dropout) for m in MODALITIES})
        self.discriminators = nn.ModuleDict({m: Discriminator(d) for m in MODALITIES})
        self.decoders = nn.ModuleDict({m: Decoder(d) for m in MODALITIES})
        self.attentions = nn.ModuleDict({m: SelfAttention(d) for m in MODALITIES})
        self.predictor = FusionPredictor(d, len(MODALITIES), c.dropout)

    def forward(self, inputs: dict[str, tuple[Tensor, Tensor]], video: Tensor) -> Output:
        """Eqs. 1–4, 11, 13, 14, ŷ, and the discriminators' logits of Eqs. 5–7.

        inputs[m]: (values, lengths): features (B, T_m, d_m) float for m = a, v, input_ids (B, T_l)
        int64 for m = l, padded on the right, T ≥ 1; lengths (B,) int64, 0 is legal.
        video: (B,) int64, equal within a video, negative where unknown -> Output
        """
        x = {m: self.embeddings[m](*inputs[m]) for m in MODALITIES}
        h = {m: self.generators[m](x[m]) for m in MODALITIES}
        logits = {m: {k: self.discriminators[m](h[k]) for k in MODALITIES} for m in MODALITIES}
        x_hat = {m: self.decoders[m](h[m]) for m in MODALITIES}
        mask = attention_mask(video, self.config.attention)
        attended = [self.attentions[m](h[m], mask) for m in MODALITIES]
        prediction = self.predictor(torch.cat(attended, dim=-1))  # (B, 3d) -> (B,)
        return Output(prediction, x, h, x_hat, logits)

    def losses(self, output: Output, y: Tensor, lengths: dict[str, Tensor]) -> Losses:
        """Eqs. 5–10, 12, 15, and Eq. 16:  L = L^task + α L^a + β L^d + γ L^rl

        A segment in which modality m is empty (length 0) is no sample of m: in Eqs. 5–12 it counts
        for its other modalities alone.

        y: (B,) float, lengths[m]: (B,) int64 on the CPU, those of `forward` -> Losses
        """
        c = self.config
        rows = self.rows_with(lengths, y)
        parts = (output.x, output.h, output.x_hat, *output.logits.values())
        x, h, x_hat, *views = ({m: part[m][rows[m]] for m in rows} for part in parts)
        logits = dict(zip(output.logits, views, strict=True))  # [m]: D_m's view of each modality
        classes = {m: sentiment_classes(y[rows[m]], c.classes) for m in MODALITIES}
        features = {"h": h, "x": x}[c.triplet_features]
        task = task_loss(y, output.prediction, c.reduction)
        adversarial = adversarial_loss(logits, c.adversarial)
        distance = distance_loss(features, classes, c.margin, c.reduction)
        target = {m: x[m].detach() for m in x} if c.detach_target else x
        reconstruction = reconstruction_loss(target, x_hat, c.reduction)
        penalty = c.penalty / 2 * gradient_penalty(self.discriminators, h) if c.penalty else 0
        game = adversarial - penalty
        total = task + c.alpha * game + c.beta * distance + c.gamma * reconstruction
        return Losses(total, task, adversarial, distance, reconstruction)

    @torch.no_grad()
    def observed(self, output: Output, lengths: dict[str, Tensor]) -> dict[str, Tensor]:
        """Mean D_m(G_m(x_m)) and mean D_m(G_k(x_k)), k ≠ m; nothing where no two modalities are."""
        rows = self.rows_with(lengths, output.prediction)
        there = [m for m in rows if len(rows[m])]
        if len(there) < 2:
            return {}
        D = {(m, k): output.logits[m][k][rows[k]].sigmoid() for m in there for k in there}
        real = torch.cat([D[m, m] for m in there])
        fake = torch.cat([D[m, k] for m, k in D if m != k])
        return {"d_real": real.mean(), "d_fake": fake.mean()}

    def parameter_groups(self) -> list[dict]:
        """Eqs. 5–8, both sides for one optimiser: discriminators ascend L, everything else descends.

        Of L's four terms L^a alone depends on the discriminators, so they ascend α L^a. With the
        penalty they do so without Adam's momentum, under which the game still circles.
        """
        adversary = {"params": list(self.discriminators.parameters()), "maximize": True}
        if self.config.penalty:
            adversary["betas"] = (0.0, 0.999)
        rest = [p for n, p in self.named_parameters() if not n.startswith("discriminators.")]
        return [{"params": rest}, adversary]

    @staticmethod
    def rows_with(lengths: dict[str, Tensor], like: Tensor) -> dict[str, Tensor]:
        """{m: the segments that have modality m}: (B_m,) int64 each, on the device of `like`"""
        move = {"device": like.device, "non_blocking": like.is_cuda}  # else a GPU is waited for
        return {m: n.nonzero()[:, 0].to(**move) for m, n in lengths.items()}
