"""Packing only rearranges tokens: each appears once, and the encoder computes the same states."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig, BertModel

from plumbing.packing import Packed, first_fit

lengths_lists = st.lists(st.integers(1, 9), min_size=1, max_size=7)


@given(st.lists(st.integers(1, 12)), st.integers(1, 10))
def test_first_fit_laws(sizes: list[int], capacity: int):
    """Each item once, in order, in the first bin that fits; only one too large overflows a bin."""
    bins = first_fit(sizes, capacity)
    assert sorted(i for bin_ in bins for i in bin_) == list(range(len(sizes)))
    assert all(bin_ == sorted(bin_) and bin_ for bin_ in bins)
    assert all(sum(sizes[i] for i in bin_) <= capacity or len(bin_) == 1 for bin_ in bins)
    for b, bin_ in enumerate(bins):
        for i in bin_:
            for earlier in bins[:b]:
                assert sum(sizes[j] for j in earlier if j < i) + sizes[i] > capacity
    assert first_fit([], capacity) == []


def tiny_bert(attention: str) -> BertModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "max_position_embeddings": 16, "initializer_range": 0.3}
    config = BertConfig(**sizes, attn_implementation=attention)
    return BertModel(config, add_pooling_layer=False).double().eval()


@given(st.sampled_from(["sdpa", "eager"]), lengths_lists, st.integers(1, 20), st.integers(0, 3))
def test_packed_is_the_plain_encoder(
    attention: str, lengths: list[int], row_length: int, extra: int
):
    """States and gradients are those of each sentence alone; ids in the padding change nothing."""
    encoder, n = tiny_bert(attention), torch.tensor(lengths)
    T = max(lengths) + extra
    ids = torch.randint(0, 50, (len(lengths), T))
    weight = torch.randn(len(lengths), T, 8, dtype=torch.float64)
    mask = (torch.arange(T) < n[:, None]).long()
    alone = torch.zeros_like(weight)
    for i, length in enumerate(lengths):
        alone[i, :length] = encoder(ids[i : i + 1, :length]).last_hidden_state[0]
    packed = Packed(encoder, row_length)
    states = packed(input_ids=ids, attention_mask=mask).last_hidden_state
    other_padding = packed(ids.masked_fill(mask == 0, 7), mask).last_hidden_state
    torch.testing.assert_close(other_padding, states, atol=1e-10, rtol=0)
    results = []
    for result in (alone, states):
        encoder.zero_grad()
        (result * weight).sum().backward()
        gradients = {name: p.grad for name, p in encoder.named_parameters()}
        results.append({"states": result.detach(), **gradients})
    torch.testing.assert_close(*results, atol=1e-9, rtol=1e-9)
