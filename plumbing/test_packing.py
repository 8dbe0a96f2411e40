"""Packing is a rearrangement: every token once, and what the encoder says of it unchanged."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertModel

from plumbing.packing import Packed, first_fit, pack

exact = settings(deadline=None, derandomize=True, database=None, max_examples=60)
lengths_lists = st.lists(st.integers(1, 9), min_size=1, max_size=7)


@exact
@given(st.lists(st.integers(1, 12)), st.integers(1, 10))
def test_first_fit_laws(sizes, capacity):
    """Each item once, in order; no bin overflows but that of one too large; the first that fits."""
    bins = first_fit(sizes, capacity)
    assert sorted(i for bin_ in bins for i in bin_) == list(range(len(sizes)))
    assert all(bin_ == sorted(bin_) and bin_ for bin_ in bins)
    assert all(sum(sizes[i] for i in bin_) <= capacity or len(bin_) == 1 for bin_ in bins)
    for b, bin_ in enumerate(bins):
        for i in bin_:
            for earlier in bins[:b]:
                assert sum(sizes[j] for j in earlier if j < i) + sizes[i] > capacity
    assert first_fit([], capacity) == []


@exact
@given(lengths_lists, st.integers(1, 20))
def test_rows_hold_whole_sentences_and_every_token_once(lengths, row_length):
    sentence, position = pack(torch.tensor(lengths), row_length)
    rows = [
        [(i, t) for i, t in zip(s, p, strict=True) if i >= 0]
        for s, p in zip(sentence.tolist(), position.tolist(), strict=True)
    ]
    held = [token for row in rows for token in row]
    assert sorted(held) == [(i, t) for i, n in enumerate(lengths) for t in range(n)]
    for row in rows:
        whole = [(i, t) for i in dict.fromkeys(i for i, _ in row) for t in range(lengths[i])]
        assert row == whole
    assert sentence.shape == position.shape
    assert sentence.shape[1] <= max(row_length, *lengths)
    assert ((sentence >= 0) | (position == 0)).all()


def tiny_bert():
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "max_position_embeddings": 16}
    return BertModel(BertConfig(**sizes), add_pooling_layer=False).double().eval()


@exact
@given(lengths_lists, st.integers(1, 20), st.integers(0, 3), st.integers(0, 2**31 - 1))
def test_packed_is_the_plain_encoder(lengths, row_length, extra, seed):
    """States and gradients, of the true tokens alone; what stands in the padding changes nothing."""
    encoder, n = tiny_bert(), torch.tensor(lengths)
    T = max(lengths) + extra
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 50, (len(lengths), T), generator=random)
    weight = torch.randn(len(lengths), T, 8, generator=random, dtype=torch.float64)
    mask = (torch.arange(T) < n[:, None]).long()
    found = []
    for model in (encoder, Packed(encoder, row_length)):
        states = model(input_ids=ids, attention_mask=mask).last_hidden_state
        if model is not encoder:
            assert (states[mask == 0] == 0).all()
            ids = ids.masked_fill(mask == 0, 7)
            again = model(input_ids=ids, attention_mask=mask).last_hidden_state
            torch.testing.assert_close(again, states, atol=1e-10, rtol=0)
        states = states * mask[:, :, None]
        encoder.zero_grad()
        (states * weight).sum().backward()
        gradients = {name: p.grad for name, p in encoder.named_parameters()}
        found.append({"states": states.detach(), **gradients})
    torch.testing.assert_close(*found, atol=1e-9, rtol=1e-9)
