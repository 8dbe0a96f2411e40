"""Sentences end to end: a BERT that computes next to no padding.

MOSI's texts have 15 tokens in the mean; padded to the longest of a batch, most positions are padding.
"""

from types import SimpleNamespace

import torch
from torch import Tensor, nn


def first_fit(sizes: list[int], capacity: int) -> list[list[int]]:
    """Indices of items, in the order given, each put into the first bin that has room for it.

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
    """A BERT of transformers, called as it is and with its output, over packed rows of tokens.

    Each sentence keeps its own positions and attends to itself alone. For encoders whose positions
    are those of BERT, from 0 on (RoBERTa's begin at 2).

    row_length: tokens in a row, or those of the longest sentence if it has more
    input_ids, attention_mask: (B, T) int64, padded on the right, at least one token a sentence
    -> last_hidden_state: (B, T, D), 0 where there is no token
    """

    def __init__(self, encoder: nn.Module, row_length: int = 64):
        super().__init__()
        self.encoder, self.row_length = encoder, row_length
        self.config = encoder.config

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        lengths = attention_mask.sum(1).cpu()  # the one place in a step where a GPU is waited for
        sentence, position = (t.to(input_ids.device) for t in pack(lengths, self.row_length))
        itself = sentence[:, None, :, None] == sentence[:, None, None, :]  # (R, 1, W, W)
        row, column = where_it_stands(sentence, position, input_ids.shape)
        states = self.encoder(
            input_ids[sentence, position], attention_mask=itself, position_ids=position
        ).last_hidden_state
        states = states[row, column] * attention_mask[:, :, None].to(states.dtype)  # (B, T, D)
        return SimpleNamespace(last_hidden_state=states)


def pack(lengths: Tensor, row_length: int) -> tuple[Tensor, Tensor]:
    """Which token of which sentence stands where in R rows, the longest sentences first.

    lengths: (B,) int64 on the CPU, each at least 1 -> sentence: (R, W) int64, -1 where there is
    none; position in it: (R, W) int64, 0 where there is none
    """
    order = lengths.argsort(descending=True, stable=True)
    capacity = max(row_length, int(lengths.max()))
    rows = [order[bin_] for bin_ in first_fit(lengths[order].tolist(), capacity)]
    sentences = [row.repeat_interleave(lengths[row]) for row in rows]
    positions = [torch.cat([torch.arange(n) for n in lengths[row].tolist()]) for row in rows]
    pad = nn.utils.rnn.pad_sequence
    return pad(sentences, True, -1), pad(positions, True, 0)


def where_it_stands(sentence: Tensor, position: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """The row and the column of each token of each sentence: (B, T) int64 each, 0 of none."""
    rows, columns = (torch.arange(n, device=sentence.device) for n in sentence.shape)
    grid = rows[:, None].expand_as(sentence), columns.expand_as(sentence)
    found = []
    for values in grid:
        # One more sentence, which is thrown away, takes what stands nowhere (-1).
        table = sentence.new_zeros(shape[0] + 1, shape[1])
        found.append(table.index_put((sentence, position), values)[:-1])
    return found[0], found[1]
