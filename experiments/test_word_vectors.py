"""Word vectors: each known word has its vector. test_baselines.py trains and resumes with them."""

from pathlib import Path

import pytest
import torch

from experiments.test_baselines import GLOVE
from experiments.word_vectors import static, word_vectors
from plumbing import UserError, encoders

ZERO, WAS, SUPERB = [0.0] * 3, [0.5, -1, 0.2], [1.0, 2, 3]


@pytest.mark.parametrize("header", [[], ["9 3"]], ids=["GloVe", "fastText"])
def test_a_word_has_its_vector(header, tmp_path: Path, capsys):
    """Case and punctuation of a text do not matter; other words and special tokens are 0."""
    file = tmp_path / "vectors"
    file.write_text("\n".join([*header, *GLOVE]))
    texts = ["The movie WAS superb.", "awful 5", "SUPERB, was it?"]
    encoder, tokenizer = word_vectors(str(file), texts)
    assert "vectors of 2 of 7 words, each of width 3" in capsys.readouterr().out
    ids = torch.tensor(encoders.tokenize(tokenizer, ["The movie WAS superb!"]))
    mask = torch.ones_like(ids)
    expected = torch.tensor([[ZERO, ZERO, ZERO, WAS, SUPERB, ZERO]])
    assert torch.equal(encoder(ids, attention_mask=mask).last_hidden_state, expected)
    assert not encoder(ids, attention_mask=0 * mask).last_hidden_state.any()
    assert encoder.config.hidden_size == 3 and static(encoder) is encoder


@pytest.mark.parametrize(
    "content, says",
    [
        ("was 1 2\nsuperb 1 x\n", "could not convert"),
        ("was 1 2\nsuperb 1\n", "line 2 is not a word and 2 numbers"),
        ("was 1 nan\n", "line 1 is not a word and 2 numbers"),
        ("1 2\nother 1 2\n", "none of the words"),
        ("\udcff", "utf-8"),
    ],
)
def test_another_file_is_one_sentence(content: str, says: str, tmp_path: Path):
    file = tmp_path / "vectors"
    file.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=f"does not hold word vectors as text.*{says}"):
        word_vectors(str(file), ["was superb"])
