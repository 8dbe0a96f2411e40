"""What the baselines share: half of the face that train.py asks for, and how a modality is read.

Throughout: `encoder` is called as one of transformers is; inputs[m] = (values (B, T, d_m), lengths
(B,) int64) as `msfn.MSFN.forward` has them, lengths on the CPU or where the values are.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Prediction(NamedTuple):  # of a model whose loss needs nothing else
    prediction: Tensor  # ŷ: (B,)


class Total(NamedTuple):  # the one loss of such a model
    total: Tensor


class Baseline(nn.Module):
    """A model for train.py; its own forward, and its own losses if they are not the mean |y − ŷ|."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder

    def losses(self, output, y: Tensor, lengths: dict[str, Tensor]) -> NamedTuple:
        return Total(F.l1_loss(output.prediction, y))

    def observed(self, output, lengths: dict[str, Tensor]) -> dict[str, Tensor]:
        return {}

    def parameter_groups(self) -> list[dict]:
        return [{"params": list(self.parameters())}]


class BatchNorm(nn.BatchNorm1d):
    """nn.BatchNorm1d, but that one segment alone, which has no variance, takes the running statistics.

    x: (B, d) -> (B, d)
    """

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 1:
            return super().forward(x)
        statistics = self.running_mean, self.running_var
        return F.batch_norm(x, *statistics, self.weight, self.bias, eps=self.eps)


def true_steps(values: Tensor, lengths: Tensor) -> Tensor:
    """(B, T) bool: what is no padding"""
    steps = torch.arange(values.shape[1], device=values.device)
    return steps < lengths.to(values.device)[:, None]


def token_states(encoder: nn.Module, input_ids: Tensor, lengths: Tensor) -> Tensor:
    """The encoder's last layer, 0 past the end: (B, T, D)"""
    mask = true_steps(input_ids, lengths)
    attended = mask.clone()
    attended[:, 0] = True  # an empty sentence attends to its first padding: no softmax over nothing
    states = encoder(input_ids, attention_mask=attended.long()).last_hidden_state
    return states * mask[:, :, None]


def mean_over_time(values: Tensor, lengths: Tensor) -> Tensor:
    """(1/n) Σ_{t<n} x_t over the n true steps, 0 of none: (B, d)"""
    n = lengths.to(values.device)[:, None].clamp(min=1)
    return (values * true_steps(values, lengths)[:, :, None]).sum(1) / n


def end_state(lstm: nn.LSTM, values: Tensor, lengths: Tensor) -> Tensor:
    """The state of an LSTM after the last true step, 0 of none: (B, width)"""
    states, n = lstm(values)[0], lengths.to(values.device)
    rows = torch.arange(len(n), device=n.device)
    return states[rows, (n - 1).clamp(min=0)] * (n > 0)[:, None]


def mean_of(values: Tensor) -> Tensor:
    """The mean, 0 of nothing."""
    return values.sum() / max(values.numel(), 1)


def rows_of(lengths: dict[str, Tensor], *modalities: str) -> Tensor:
    """The segments in which none of these modalities is empty: (n,) int64"""
    return torch.stack([lengths[m] > 0 for m in modalities]).all(0).nonzero()[:, 0]
