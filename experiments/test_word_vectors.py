"""Word vectors: each known word has its vector, in training and after a run was saved."""

from pathlib import Path

import pytest
import torch

from experiments.test_baselines import GLOVE
from experiments.word_vectors import Static, rebuild, static, word_vectors
from plumbing import UserError, encoders

TEXTS = ["The movie WAS superb.", "awful 5", "SUPERB, was it?"]
ZERO, WAS, SUPERB = [0.0] * 3, [0.5, -1, 0.2], [1.0, 2, 3]


def states(encoder: Static, ids: list[int], mask: int = 1) -> torch.Tensor:
    attention = torch.full((1, len(ids)), mask)
    return encoder(torch.tensor([ids]), attention_mask=attention).last_hidden_state[0]


@pytest.mark.parametrize("first, end", [([], "\n"), (["5 3"], " \n")], ids=["GloVe", "fastText"])
def test_a_word_has_its_vector(first: list[str], end: str, tmp_path: Path, capsys):
    """Case and punctuation of a text do not matter; other words and special tokens are 0."""
    file = tmp_path / "vectors"
    file.write_text(end.join([*first, *GLOVE, ""]))
    encoder, tokenizer = word_vectors(str(file), TEXTS)
    assert "vectors of 2 of 7 words, each of width 3" in capsys.readouterr().out
    one, two = encoders.tokenize(tokenizer, ["The movie WAS superb!", "movie"])
    expected = torch.tensor([ZERO, ZERO, ZERO, WAS, SUPERB, ZERO])
    assert torch.equal(states(encoder, one), expected)
    assert torch.equal(states(encoder, two), torch.zeros(3, 3))
    assert torch.equal(states(encoder, one, mask=0), torch.zeros(6, 3))
    assert encoder.config.hidden_size == 3 and static(encoder) is encoder


def test_static_vectors_of_an_encoder(tmp_path: Path):
    """They are its input embeddings, have no gradient, and a run that saved them is rebuilt."""
    encoder, tokenizer = encoders.pretrained("small", [TEXTS])
    vectors = static(encoder)
    embeddings = encoder.encoder.get_input_embeddings().weight
    assert torch.equal(vectors.vectors, embeddings) and not vectors.vectors.requires_grad
    assert list(vectors.parameters()) == [] and list(vectors.state_dict()) == ["vectors"]
    for part in (encoder.config, tokenizer):
        part.save_pretrained(tmp_path)
    again, _ = rebuild(str(tmp_path))
    assert static(again).vectors.shape == embeddings.shape


@pytest.mark.parametrize(
    "content, says",
    [
        ("was 1 2\nsuperb 1 x\n", "could not convert"),
        ("was 1 2\nsuperb 1\n", "line 2 is not a word and 2 numbers"),
        ("was 1 nan\n", "line 1 is not a word and 2 numbers"),
        ("1 2\nother 1 2\n", "none of the words"),
        ("", "none of the words"),
        ("\udcff", "utf-8"),
    ],
)
def test_another_file_is_one_sentence(content: str, says: str, tmp_path: Path):
    file = tmp_path / "vectors"
    file.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=f"does not hold word vectors as text.*{says}"):
        word_vectors(str(file), ["was superb"])
    with pytest.raises(UserError, match="not a regular file"):
        word_vectors(str(tmp_path), ["was"])
