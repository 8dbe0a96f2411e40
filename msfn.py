"""MSFN, the Multimodal Similarity Fusion Network, equation by equation.

Paper: *Multimodal Similarity Fusion Network for Multimodal Sentiment Analysis*, International
Journal of Engineering Science Invention, DOI 10.35629/6734-12035360. Read this file beside it, from
Eq. 1 to Eq. 16.

    X_a ─ LSTMs (1) ─┐                              ┌─ Discriminator (5–7) ─ L^a (8)
    X_v ─ LSTMs (2) ─┼─ x_m ─ Generator (4) ─ h_m ──┼─ triplet_loss (9) ─ L^d (10)
    X_l ─ BERTs (3) ─┘                              ├─ Decoder (11) ─ x̂_m ─ L^rl (12)
                                                    └─ SelfAttention (13, 14) ─ F_m
                                    F = [F_a, F_v, F_l] ─ FusionPredictor ─ ŷ ─ L^task (15)

Glossary (code, paper, meaning):

    m, k            m, k            a modality: "a" audio, "v" visual, "l" language
    inputs[m]       X_m             what modality m brings: (padded sequences, their true lengths)
    B               N               segments in the batch (which N Eq. 13 means: attention_mask)
    T, d_m          –, d_m          length of the longest sequence; width of a raw feature
    d               d               width that all modalities share after the embedding
    x[m]            x_m             embedded segment, (B, d)
    h[m]            h_m             the same in the shared subspace, (B, d)
    x_hat[m]        x̂_m             reconstruction of x_m, (B, d)
    logits[m][k]    –               z with D_m(G_k(x_k)) = sigmoid(z), (B,)
    y, prediction   y, ŷ            sentiment in [-3, 3], (B,)
    alpha, beta, gamma  α, β, γ     weights of L^a, L^d, L^rl in Eq. 16
    margin          δ               margin of the triplet loss

Every component can be copied into another project: the losses need torch and, where they call it,
`mean`; BERTs needs `pack` and transformers. Where the code differs from the print, `Paper:` /
`Here:` / `Why:` say so on the spot.
"""

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MODALITIES = ("a", "v", "l")


# ── Configuration: Table 1 and the choices that the paper leaves open ─────────────────────────────


def option(default, help: str, choices: tuple = ()):
    """A dataclass field that carries its help text and legal values to the command line."""
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass
class MSFNConfig:
    """Table 1 (MOSI's column by default) and one field for each choice that the paper leaves open.

    Raises ValueError, naming field and value, for a choice that does not exist, a size or learning
    rate that is not positive, or a dropout rate outside [0, 1).
    """

    d: int = option(128, "d: width shared by all modalities")
    alpha: float = option(0.2, "α: weight of the adversarial loss L^a")
    beta: float = option(0.5, "β: weight of the distance loss L^d")
    gamma: float = option(0.2, "γ: weight of the reconstruction loss L^rl")
    learning_rate: float = option(1e-4, "r: learning rate")
    batch_size: int = option(64, "segments in a batch")
    dropout: float = option(0.1, "Drop: dropout rate")

    bert: str = option(
        "google-bert/bert-base-uncased", "language encoder: hub name or local folder"
    )
    pooling: str = option("mean", "Eq. 3: one vector of BERT's last layer", ("mean", "cls"))
    lstm_width: int = option(64, "Eqs. 1, 2: width of each direction of the Bi-LSTM")
    adversarial: str = option(
        "literal", "Eqs. 5–7: −log D(fake) or log(1 − D(fake))", ("literal", "bounded")
    )
    margin: float = option(1.0, "δ: margin of Eq. 9")
    classes: str = option(
        "seven", "Eq. 9: classes of the label, Acc-7's or its sign", ("seven", "sign")
    )
    triplet_reduction: str = option("mean", "Eq. 9: over the valid triplets", ("mean", "sum"))
    triplet_normalize: bool = option(False, "Eq. 9: distances between h scaled to length 1")
    reconstruction_reduction: str = option(
        "mean", "Eq. 12: over segments and features", ("mean", "sum")
    )
    detach_target: bool = option(False, "Eq. 12: no gradient through the target x_m")
    attention: str = option(
        "video", "Eq. 13: which segments a segment attends to", ("video", "batch", "segment")
    )
    task_reduction: str = option("mean", "Eq. 15: over the segments", ("mean", "sum"))

    def __post_init__(self):
        for name, spec in self.__dataclass_fields__.items():
            value, choices = getattr(self, name), spec.metadata["choices"]
            if choices and value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, not {value!r}")
        for name in ("d", "batch_size", "lstm_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, not {self.learning_rate}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, not {self.dropout}")

    @classmethod
    def preset(cls, dataset: str, /, **typed) -> "MSFNConfig":
        """Defaults < Table 1's column for "mosi" or "mosei" < what the user typed.

        Raises ValueError for another data set.
        """
        if dataset not in TABLE_1:
            raise ValueError(f"dataset must be one of {', '.join(TABLE_1)}, not {dataset!r}")
        return cls(**{**TABLE_1[dataset], **typed})


HYPER = ("d", "alpha", "beta", "gamma", "learning_rate", "batch_size", "dropout")
TABLE_1 = {
    "mosi": dict(zip(HYPER, (128, 0.2, 0.5, 0.2, 1e-4, 64, 0.1), strict=True)),
    "mosei": dict(zip(HYPER, (256, 0.4, 0.3, 0.1, 1e-4, 16, 0.1), strict=True)),
}


# ── 3.2 Multimodal data embedding: Eqs. 1–3 ───────────────────────────────────────────────────────


class LSTMs(nn.Module):
    """Eqs. 1, 2:  x_a = LSTMs(X_a; θ_a^lstm),  x_v = LSTMs(X_v; θ_v^lstm)

    A Bi-LSTM and a Dense layer "to receive … the LSTM end state": the forward direction's state
    after the last true frame beside the backward direction's after the first. The backward
    direction is a second LSTM that reads each sequence from its last true frame to its first.
    Padding is never read: past its end a sequence stays at its last frame, and those states are
    not used. An empty sequence (no face, no speech) leaves both LSTMs in their initial state, zero.

    X: (B, T, d_m) float, lengths: (B,) int64 on the CPU, each in 0..T -> (B, d). Raises
    IndexError for a length > T.
    """

    def __init__(self, d_m: int, d: int, width: int = 64, dropout: float = 0.1):
        super().__init__()
        self.forward_lstm = nn.LSTM(d_m, width, batch_first=True)
        self.backward_lstm = nn.LSTM(d_m, width, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.dense = nn.Linear(2 * width, d)

    def forward(self, X: Tensor, lengths: Tensor) -> Tensor:
        end = X.new_zeros(len(X), self.dense.in_features)
        rows = lengths.nonzero().squeeze(1)
        if len(rows):
            last = (lengths[rows] - 1).to(X.device)
            steps = torch.arange(int(lengths.max()), device=X.device)
            orders = {  # (rows, T): the frames as each direction reads them
                self.forward_lstm: steps.minimum(last[:, None]),  # 0, 1, …, last, last, …
                self.backward_lstm: (last[:, None] - steps).clamp(min=0),  # last, …, 1, 0, 0, …
            }
            rows, every = rows.to(X.device), torch.arange(len(rows), device=X.device)
            # Not packed: on a CPU the backward pass of a packed LSTM takes time quadratic in T.
            states = [
                lstm(X[rows[:, None], order])[0][every, last]  # (rows, width)
                for lstm, order in orders.items()
            ]
            end = end.index_copy(0, rows, torch.cat(states, dim=-1).to(end.dtype))
        return self.dense(self.dropout(end))


class BERTs(nn.Module):
    """Eq. 3:  x_l = BERTs(X_l; θ_l^bert)

    A pre-trained encoder and a Dense layer. The paper does not say which of BERT's outputs the
    Dense layer takes: here the mean of the last layer over the true tokens ("mean") or its first
    position ("cls"). Sentences are packed end to end into a few rows, so that little of the work is
    padding; each has its own positions and attends to itself alone.

    bert: hub name or local folder for transformers.AutoModel, or an encoder module already made. Of
    another kind than BERT, it gets a row a sentence: others count positions in ways of their own.
    row_length: tokens in a packed row, more only where a sentence has more.
    input_ids: (B, T) int64, right-padded, lengths: (B,) int64 on the CPU, each in 0..T (0: no
    words) -> (B, d) float.
    Raises ValueError for another pooling, IndexError for a length > T, and OSError (from
    transformers) for a name or folder that holds no model.
    """

    def __init__(
        self,
        bert: str | nn.Module,
        d: int,
        pooling: str = "mean",
        dropout: float = 0.1,
        row_length: int = 64,
    ):
        super().__init__()
        if pooling not in ("mean", "cls"):
            raise ValueError(f"pooling must be 'mean' or 'cls', not {pooling!r}")
        if isinstance(bert, str):
            from transformers import AutoModel

            bert = AutoModel.from_pretrained(bert)
        if getattr(bert, "pooler", None) is not None:
            bert.pooler = None  # serves next-sentence prediction; here it would get no gradient
        self.bert, self.pooling = bert, pooling
        self.row_length = row_length if bert.config.model_type == "bert" else 0
        self.dropout = nn.Dropout(dropout)
        self.dense = nn.Linear(bert.config.hidden_size, d)

    def forward(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        pooled = self.dense.weight.new_zeros(len(input_ids), self.dense.in_features)
        if lengths.any():
            # What goes where is found on the CPU: a GPU need not be waited for.
            sentence, position = pack(lengths, self.row_length)
            whole = self.pooling == "mean"
            taken = (sentence >= 0) & (whole | (position == 0))  # (R, W)
            number = lengths.clamp(min=1) if whole else torch.ones_like(lengths)  # of states each
            parts = sentence, position, taken.flatten().nonzero()[:, 0], sentence[taken], number
            sentence, position, where, whose, number = (t.to(input_ids.device) for t in parts)
            if self.row_length:
                itself = sentence[:, None, :, None] == sentence[:, None, None, :]  # (R, 1, W, W)
                limits = {"attention_mask": itself, "position_ids": position}
            else:
                limits = {"attention_mask": sentence >= 0}
            states = self.bert(input_ids[sentence, position], **limits).last_hidden_state
            states = states.flatten(0, 1)[where].to(pooled.dtype)  # (states taken, D)
            pooled = pooled.index_add(0, whose, states) / number[:, None]
        return self.dense(self.dropout(pooled))


def pack(lengths: Tensor, row_length: int) -> tuple[Tensor, Tensor]:
    """First fit: which token of which sentence stands where in R rows.

    row_length: tokens in a row, or those of the longest sentence if it has more; 0: a row a
    sentence

    lengths: (B,) int64 on the CPU, not all 0 -> sentence: (R, W) int64, -1 where there is none;
    position in it: (R, W) int64, 0 where there is none
    """
    width, rows, free = max(row_length, int(lengths.max())), [], []
    for i in lengths.argsort(descending=True, stable=True).tolist():
        n = int(lengths[i])
        if n == 0:
            break
        r = next((r for r, left in enumerate(free) if row_length and left >= n), len(rows))
        if r == len(rows):
            rows.append([])
            free.append(width)
        rows[r].append(i)
        free[r] -= n
    sentence = torch.full((len(rows), width - min(free)), -1)
    position = torch.zeros_like(sentence)
    for r, row in enumerate(rows):
        used = width - free[r]
        sentence[r, :used] = torch.tensor(row).repeat_interleave(lengths[row])
        position[r, :used] = torch.cat([torch.arange(n) for n in lengths[row].tolist()])
    return sentence, position


# ── 3.3 Multimodal similarity learning: Eq. 4 ─────────────────────────────────────────────────────


class Generator(nn.Sequential):
    """Eq. 4:  h_m = G_m(x_m; θ_m^G)

    The unimodal encoder into the shared subspace. Its layers are in Figure 2, which gives no text.

    x: (B, d) float -> (B, d) float
    """

    def __init__(self, d: int, dropout: float = 0.1):
        super().__init__(
            nn.Linear(d, d), nn.LayerNorm(d), nn.ReLU(), nn.Dropout(dropout), nn.Linear(d, d)
        )


class Discriminator(nn.Module):
    """D_m of Eqs. 5–7, before its sigmoid:  D_m(h) = σ(z)

    Takes the features of its own modality for true and those of the other two for false.

    h: (B, d) float -> logits z: (B,) float
    """

    def __init__(self, d: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(d, d), nn.LeakyReLU(0.2), nn.Linear(d, 1))

    def forward(self, h: Tensor) -> Tensor:
        return self.layers(h).squeeze(-1)


# ── 3.3.1 Multimodal adversarial loss: Eqs. 5–8 ───────────────────────────────────────────────────


def adversarial_loss(
    logits: dict[str, dict[str, Tensor]], form: str = "literal"
) -> tuple[Tensor, dict[str, Tensor]]:
    """Eqs. 5–7:  L_m = E[ log D_m(G_m(x_m)) − Σ_{k≠m} log D_m(G_k(x_k)) ]  for m = l, a, v
    Eq. 8:       L^a = (L_l + L_a + L_v) / 3

    The value of a minimax game: the discriminators *ascend* it, everything else descends it. Give
    the discriminators' parameter group `maximize=True` (see `MSFN.parameter_groups`) and one
    backward pass serves both sides.

    form "literal": as printed. The discriminators can raise −log D(fake) without bound.
    form "bounded": the GAN's own,  L_m = E[ log D_m(G_m(x_m)) + Σ_{k≠m} log(1 − D_m(G_k(x_k))) ],
    at most 0. Both push each logit the same way. On the fakes the literal form is the generator's
    "non-saturating" one (Goodfellow et al., 2014): where D → 0 its gradient stays at 1 and the
    bounded one's vanishes. Of three modalities that are alike, one real and two fakes, the best
    D_m says 1/3 in the bounded form; in the literal form it falls to 0 and L_m rises for ever.

    Each E is over its own samples x_k ~ P(x_k): a segment in which modality k is empty is no sample
    of it, so the nine vectors may differ in length. Without fakes of k its term is 0; without a
    real m, or without any fake, there is nothing to tell apart and L_m is 0.

    logits[m][k]: (B_k,) float, any magnitude -> L^a: (), {m: L_m: ()}. Raises ValueError for
    another form.
    """
    if form not in ("literal", "bounded"):
        raise ValueError(f"form must be 'literal' or 'bounded', not {form!r}")
    losses = {}
    for m, row in logits.items():
        real, fake = F.logsigmoid(row[m]), [z for k, z in row.items() if k != m]
        # log(1 − σ(z)) = log σ(−z)
        fake = [-F.logsigmoid(z) if form == "literal" else F.logsigmoid(-z) for z in fake]
        game = len(real) and sum(map(len, fake))
        losses[m] = mean(real) + sum(map(mean, fake)) if game else row[m].sum() * 0
    return sum(losses.values()) / len(losses), losses


def mean(values: Tensor) -> Tensor:
    """The mean of all elements; 0 of none, where torch says NaN. values: any shape -> ()"""
    return values.sum() / max(values.numel(), 1)


# ── 3.3.2 Distance metric loss: Eqs. 9, 10 ────────────────────────────────────────────────────────


def sentiment_classes(y: Tensor, kind: str = "seven") -> Tensor:
    """The classes that Eq. 9 compares, y_a = y_p ≠ y_n, of a continuous label.

    Paper: says "class" and never which, of a label in [−3, 3].
    Here:  "seven": −3 … 3, those of Acc-7 (round half to even); "sign": negative, zero, positive.
    Why:   equality of the raw labels would make almost every segment a class of its own.

    y: (B,) float -> (B,) int64. Raises ValueError for another kind.
    """
    if kind not in ("seven", "sign"):
        raise ValueError(f"kind must be 'seven' or 'sign', not {kind!r}")
    return (y.clamp(-3, 3).round() if kind == "seven" else y.sign()).long()


def triplet_loss(h: Tensor, y: Tensor, margin: float = 1.0, reduction: str = "mean") -> Tensor:
    """Eq. 9:  L^d_m = Σ_{a,p,n : y_a = y_p ≠ y_n} [ d_{a,p} − d_{a,n} + δ ]₊,    p ≠ a

    d_{i,j} is the Euclidean distance between rows i and j.

    Paper: the sum without the hinge [·]₊.
    Here:  the hinge; and the mean over all valid triplets, or the sum on request.
    Why:   the text wants the positive nearer "by a boundary value", as FaceNet (its ref. 21) does;
           without the hinge the margin has no effect and negatives are pushed away for ever. The
           sum grows as B³, so no β would fit two batch sizes.

    All valid triplets, exactly, in O(B² (d + log B)) time and O(B²) memory. Inside its hinge the loss is
    linear: each triplet with d_an < d_ap + δ adds d_ap once, −d_an once and δ once. So it is enough
    to *count* these triplets, by binary search in each anchor's sorted distances: for each positive
    its negatives, for each negative its positives.

    h: (B, d) float32 or float64, y: (B,) integer classes -> (), 0 where no triplet is valid.
    Gradients are finite for equal rows. Raises ValueError for another reduction.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction must be 'mean' or 'sum', not {reduction!r}")
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
        weight = (inside - outside).to(distance.dtype)
        valid = (positive.sum(1) * negative.sum(1)).sum()
        scale = 1 / valid.clamp(min=1).to(distance.dtype) if reduction == "mean" else 1.0
        constant = margin * inside.sum() * scale
    return (distance * (weight * scale)).sum() + constant


def distance_loss(
    h: dict[str, Tensor], y: dict[str, Tensor], margin: float = 1.0, reduction: str = "mean"
) -> Tensor:
    """Eq. 10:  L^d = (L^d_l + L^d_a + L^d_v) / 3

    h[m]: (B_m, d) float, y[m]: (B_m,) integer classes of the same segments -> (). Raises ValueError
    for another reduction.
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
    x: dict[str, Tensor],
    x_hat: dict[str, Tensor],
    reduction: str = "mean",
    detach_target: bool = False,
) -> Tensor:
    """Eq. 12:  L^rl = (1/3) Σ_m ‖x_m − x̂_m‖²₂

    Paper: the squared norm of an N × d matrix, a sum over segments and features.
    Here:  their mean, or the sum on request.
    Why:   a sum changes γ's meaning with the batch size and with d; Table 1's γ = 0.2 of it would
           drown L^task.

    The target x_m is trainable too, so the loss also falls by shrinking x_m; detach_target stops
    that path.

    x[m], x_hat[m]: (B_m, d) float -> (). Raises ValueError for another reduction.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction must be 'mean' or 'sum', not {reduction!r}")
    errors = [((x[m].detach() if detach_target else x[m]) - x_hat[m]).square() for m in x]
    return sum(mean(e) if reduction == "mean" else e.sum() for e in errors) / len(errors)


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

    Paper: "The task of MSA is to build a model to predict the emotional state of a video clip …
           The input to the model is a set of multimodal datasets X … containing N segments"; Q_m
           and K_m have N rows, one vector a segment.
    Here:  "video": the segments of the same video (one whose video is unknown attends to itself
           alone); "batch": all that happen to share the batch; "segment": itself alone, where the
           softmax is 1 and F_m = V_m.
    Why:   the input is a video's N segments; over the batch a prediction depends on whatever else
           was drawn into it, and over the segment Eq. 13 has nothing to do.

    video: (B,) int64, equal numbers for the same video, negative for unknown -> (B, B) bool.
    Raises ValueError for another reading.
    """
    if over not in ("video", "batch", "segment"):
        raise ValueError(f"over must be 'video', 'batch' or 'segment', not {over!r}")
    itself = torch.eye(len(video), dtype=torch.bool, device=video.device)
    if over == "segment":
        return itself
    if over == "batch":
        return torch.ones_like(itself)
    return itself | ((video[:, None] == video[None, :]) & (video[:, None] >= 0))


class FusionPredictor(nn.Module):
    """3.5:  F = [F_a, F_v, F_l],  ŷ = f(F; θ_f)        (f: "composed of fully connected layers")

    The output is not squashed into [−3, 3]: Eq. 15 keeps it there, and a squashed one cannot reach
    ±3.

    F_m for each modality, in the order a, v, l: (B, d) float each -> (B,) float
    """

    def __init__(self, d: int, modalities: int = 3, dropout: float = 0.1):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(modalities * d, d), nn.ReLU(), nn.Dropout(dropout), nn.Linear(d, 1)
        )

    def forward(self, *features: Tensor) -> Tensor:
        return self.layers(torch.cat(features, dim=-1)).squeeze(-1)


def task_loss(y: Tensor, prediction: Tensor, reduction: str = "mean") -> Tensor:
    """Eq. 15:  L^task = Σ_{i=1..M} ‖y_i − ŷ_i‖²₂

    Paper: a sum over M segments.
    Here:  their mean, or the sum on request.
    Why:   with the mean, α, β, γ and the learning rate keep their meaning when the batch size
           changes.

    y, prediction: (B,) float -> (). Raises ValueError for another reduction.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction must be 'mean' or 'sum', not {reduction!r}")
    return F.mse_loss(prediction, y, reduction=reduction)


# ── 3.6 Optimization: Eq. 16, and the model ───────────────────────────────────────────────────────


def total_loss(
    task: Tensor,
    adversarial: Tensor,
    distance: Tensor,
    reconstruction: Tensor,
    alpha: float,
    beta: float,
    gamma: float,
) -> Tensor:
    """Eq. 16:  L = L^task + α L^a + β L^d + γ L^rl.        all () -> ()"""
    return task + alpha * adversarial + beta * distance + gamma * reconstruction


class Output(NamedTuple):
    """What `MSFN.forward` computes: all that the losses need."""

    prediction: Tensor  # ŷ: (B,)
    x: dict[str, Tensor]  # x_m: (B, d)
    h: dict[str, Tensor]  # h_m: (B, d)
    x_hat: dict[str, Tensor]  # x̂_m: (B, d)
    logits: dict[str, dict[str, Tensor]]  # [m][k], D_m(G_k(x_k)) before its sigmoid: (B,)


class Losses(NamedTuple):
    """Eq. 16 and its four terms, each ()."""

    total: Tensor
    task: Tensor
    adversarial: Tensor
    distance: Tensor
    reconstruction: Tensor


class MSFN(nn.Module):
    """The whole model: Eqs. 1–4, 11, 13, 14 in `forward`, the losses in `losses`.

    widths: {"a": d_a, "v": d_v}, the widths of the raw features. bert: an encoder module, or its
    folder or name, in place of config.bert.
    """

    def __init__(
        self, config: MSFNConfig, widths: dict[str, int], bert: str | nn.Module | None = None
    ):
        super().__init__()
        c, d = config, config.d
        self.config = config
        self.embeddings = nn.ModuleDict()
        for m in ("a", "v"):
            self.embeddings[m] = LSTMs(widths[m], d, c.lstm_width, c.dropout)
        self.embeddings["l"] = BERTs(bert or c.bert, d, c.pooling, c.dropout)
        self.generators = nn.ModuleDict({m: Generator(d, c.dropout) for m in MODALITIES})
        self.discriminators = nn.ModuleDict({m: Discriminator(d) for m in MODALITIES})
        self.decoders = nn.ModuleDict({m: Decoder(d) for m in MODALITIES})
        self.attentions = nn.ModuleDict({m: SelfAttention(d) for m in MODALITIES})
        self.predictor = FusionPredictor(d, len(MODALITIES), c.dropout)

    @classmethod
    def from_run(cls, folder: str | Path) -> "MSFN":
        """The trained model, in eval mode, of a folder that train.py wrote; needs no hub.

        Raises OSError if a file is missing, KeyError if config.json is not a run's.
        """
        from safetensors.torch import load_file
        from transformers import AutoConfig, AutoModel

        folder = Path(folder)
        saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config = MSFNConfig(**{f.name: saved[f.name] for f in fields(MSFNConfig)})
        weights = load_file(folder / "model.safetensors")
        widths = {
            m: weights[f"embeddings.{m}.forward_lstm.weight_ih_l0"].shape[1] for m in ("a", "v")
        }
        bert = AutoModel.from_config(AutoConfig.from_pretrained(folder / "bert"))
        model = cls(config, widths, bert)
        model.load_state_dict(weights)
        return model.eval()

    def forward(
        self, inputs: dict[str, tuple[Tensor, Tensor]], video: Tensor | None = None
    ) -> Output:
        """Eqs. 1–4, 11, 13, 14, ŷ, and the discriminators' logits of Eqs. 5–7.

        inputs[m]: (values, lengths): features (B, T_m, d_m) float for m = a, v, input_ids (B, T_l)
        int64 for m = l, padded on the right; lengths (B,) int64 on the CPU, 0 is legal.
        video: (B,) int64, negative or None where unknown -> Output
        """
        x = {m: self.embeddings[m](*inputs[m]) for m in MODALITIES}
        h = {m: self.generators[m](x[m]) for m in MODALITIES}
        logits = {m: {k: self.discriminators[m](h[k]) for k in MODALITIES} for m in MODALITIES}
        x_hat = {m: self.decoders[m](h[m]) for m in MODALITIES}
        if video is None:
            video = torch.full((len(h["l"]),), -1, device=h["l"].device)
        mask = attention_mask(video, self.config.attention)
        prediction = self.predictor(*(self.attentions[m](h[m], mask) for m in MODALITIES))
        return Output(prediction, x, h, x_hat, logits)

    def losses(self, output: Output, y: Tensor, lengths: dict[str, Tensor]) -> Losses:
        """Eqs. 5–10, 12, 15, 16 of one batch.

        A segment in which modality m is empty (length 0) is no sample of m: in Eqs. 5–12 it counts
        for its other modalities alone.

        y: (B,) float, lengths[m]: (B,) int64, those of `forward` -> Losses
        """
        c = self.config
        rows = {m: lengths[m].nonzero().squeeze(1).to(y.device) for m in MODALITIES}
        x = {m: output.x[m][rows[m]] for m in MODALITIES}
        h = {m: output.h[m][rows[m]] for m in MODALITIES}
        x_hat = {m: output.x_hat[m][rows[m]] for m in MODALITIES}
        logits = {m: {k: output.logits[m][k][rows[k]] for k in MODALITIES} for m in MODALITIES}
        classes = {m: sentiment_classes(y[rows[m]], c.classes) for m in MODALITIES}
        near = {m: F.normalize(h[m], dim=-1) for m in MODALITIES} if c.triplet_normalize else h
        terms = (
            task_loss(y, output.prediction, c.task_reduction),
            adversarial_loss(logits, c.adversarial)[0],
            distance_loss(near, classes, c.margin, c.triplet_reduction),
            reconstruction_loss(x, x_hat, c.reconstruction_reduction, c.detach_target),
        )
        return Losses(total_loss(*terms, c.alpha, c.beta, c.gamma), *terms)

    def parameter_groups(self) -> list[dict]:
        """Eqs. 5–8, both sides for one optimiser: discriminators ascend L, everything else descends.

        Of L's four terms L^a alone depends on the discriminators, so they ascend α L^a.
        """
        adversary = list(self.discriminators.parameters())
        ids = {id(p) for p in adversary}
        rest = [p for p in self.parameters() if id(p) not in ids]
        return [{"params": rest}, {"params": adversary, "maximize": True}]
