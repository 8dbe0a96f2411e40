"""Encoders and tokenisers from folders: positions, missing weights, tokens that are not known."""

import json

import pytest
import safetensors.torch
import torch
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from plumbing import UserError, encoders
from plumbing.packing import Packed

TEXTS = ["the movie was good", "bad"]
SIZES = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture
def folder(tmp_path):
    """A BERT of 10 positions with its tokeniser, which knows no limit."""
    return saved(tmp_path / "bert", BertModel, BertConfig)


def saved(folder, model, config):
    tokenizer = encoders.word_tokenizer(TEXTS, 10**30)
    sizes = {**SIZES, "vocab_size": len(tokenizer), "max_position_embeddings": 10}
    model(config(**sizes, pad_token_id=0)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("model, config", [(BertModel, BertConfig), (RobertaModel, RobertaConfig)])
def test_a_text_longer_than_the_positions_is_cut(model, config, tmp_path):
    encoder, tokenizer = encoders.pretrained(str(saved(tmp_path / "f", model, config)), [])
    ids = torch.tensor(encoders.tokenize(tokenizer, ["good " * 99]))
    states = encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    assert states.shape == (1, 10 if model is BertModel else 8, 8) and states.isfinite().all()
    assert isinstance(encoder, Packed) == (model is BertModel)


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def without_weight(folder):
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    del weights["embeddings.word_embeddings.weight"]
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})


EDITS = {
    "weights are missing, such as embeddings.word": without_weight,
    "token 99 is none": lambda f: edit(
        f / "tokenizer.json", lambda c: c["model"]["vocab"].update(bad=99)
    ),
    "cut to 1 tokens": lambda f: edit(
        f / "tokenizer_config.json", lambda c: c.update(model_max_length=1)
    ),
    "holds no tokeniser of its": lambda f: edit(
        f / "config.json", lambda c: c.update(num_attention_heads=-2)
    ),
    "no encoder can be": lambda f: edit(f / "config.json", lambda c: c.update(hidden_size="x")),
    "holds no tokeniser": lambda f: (f / "tokenizer.json").unlink(),
}


@pytest.mark.parametrize("says, change", EDITS.items())
def test_a_damaged_folder_is_one_sentence(says, change, folder):
    change(folder)
    with pytest.raises(UserError, match=says) as caught:
        encoders.pretrained(str(folder), [])
    assert str(caught.value).isprintable()


def test_capitals_are_read_alike_in_files_and_when_predicting():
    tokenizer = encoders.word_tokenizer(["GOOD MOVIE", "Bad movie"], 64)
    assert len(tokenizer) == 7 and tokenizer.pad_token_id == 0
    assert encoders.tokenize(tokenizer, ["GOOD MOVIE"]) == [[2, 5, 6, 3]]
    assert encoders.tokenize(tokenizer, ["good movie", "Good film"]) == [[2, 5, 6, 3], [2, 1, 1, 3]]
    with pytest.raises(UserError, match="a text cannot be tokenised: .*surrogate"):
        encoders.tokenize(tokenizer, ["good", "good \ud800"])
