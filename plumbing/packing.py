"""A BERT that computes almost no padding: several sentences share a row of tokens.

MOSI's texts have 15 tokens on average: padded to the longest of a batch, most slots are padding.
"""

from types import SimpleNamespace

import torch
from torch import Tensor, nn


def first_fit(sizes: list[int], capacity: int) -> list[list[int]]:
    """Put each item, in the order given, into the first bin that has room. Returns their indices.

    An item larger than the capacity gets a bin of its own.
    """
    bins, room = [], []
    for i, size in enumerate(sizes):
        b = next((b for b, left in enumerate(room) if size <= left), len(bins))
        if b == len(bins):
            bins.append([])
            room.append(capacity)
        bins[b].append(i)
        room[b] -= size
    return bins


class Packed(nn.Module):
    """A BERT of transformers that packs the sentences of a batch into rows. Called as the BERT is.

    Each sentence keeps its own positions and attends to itself alone, in every implementation of
    attention. The encoder's positions must start at 0, as BERT's do (RoBERTa's start at 2).

    row_length: tokens in a row; a longer sentence makes all rows as long as itself
    input_ids, attention_mask: (B, T) int64, padded on the right, at least one token in a sentence
    -> last_hidden_state: (B, T, D), 0 at padding
    """

    def __init__(self, encoder: nn.Module, row_length: int = 64):
        super().__init__()
        self.encoder, self.row_length = encoder, row_length
        self.config = encoder.config

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        lengths = attention_mask.sum(1).cpu()  # the only place in a step that waits for the GPU
        sentence, position = (t.to(input_ids.device) for t in pack(lengths, self.row_length))
        others = sentence[:, None, :, None] != sentence[:, None, None, :]  # (R, 1, W, W)
        # Eager attention adds its mask, so a boolean one would hide nothing: -inf does in any.
        mask = torch.zeros_like(others, dtype=self.encoder.dtype).masked_fill(others, -torch.inf)
        states = self.encoder(
            input_ids[sentence, position], attention_mask=mask, position_ids=position
        ).last_hidden_state
        # Padding slots (-1) write to an extra row that is dropped.
        padded = states.new_zeros(len(lengths) + 1, input_ids.shape[1], states.shape[2])
        padded = padded.index_put((sentence, position), states)[:-1]
        return SimpleNamespace(last_hidden_state=padded)


def pack(lengths: Tensor, row_length: int) -> tuple[Tensor, Tensor]:
    """Lay out the sentences in R rows of W tokens, the longest sentences first.

    lengths: (B,) int64 on the CPU, each at least 1
    -> sentence and position of each slot: (R, W) int64 each, -1 and 0 for padding
    """
    order = lengths.argsort(descending=True, stable=True)
    capacity = max(row_length, int(lengths.max()))
    rows = [order[bin_] for bin_ in first_fit(lengths[order].tolist(), capacity)]
    sentences = [row.repeat_interleave(lengths[row]) for row in rows]
    positions = [torch.cat([torch.arange(n) for n in lengths[row].tolist()]) for row in rows]
    pad = nn.utils.rnn.pad_sequence
    return pad(sentences, True, -1), pad(positions, True, 0)
