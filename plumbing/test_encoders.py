"""Encoders are checked when they are loaded: each trains, resumes and predicts, or is rejected."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers
from torch import nn

from plumbing import UserError, encoders

TEXTS = [["the movie was good", "bad", "the plot was not that good so i would not see it"] * 3]
SIZES = {"hidden_size": 8, "intermediate_size": 12}
SIZES |= {"num_hidden_layers": 1, "num_attention_heads": 2}
FAMILIES = {  # the class of the encoder that is trained: family, configuration
    "Packed": ("Bert", SIZES),
    "BertModel": ("Bert", SIZES | {"is_decoder": True}),  # causal: `Packed` would replace its mask
    "RobertaModel": ("Roberta", SIZES),
    "T5Stack": ("T5", {"d_model": 8, "d_ff": 12, "d_kv": 4, "num_layers": 1, "num_heads": 2}),
    "XLNetModel": ("XLNet", {"d_model": 8, "d_inner": 12, "n_layer": 1, "n_head": 2}),
}


def saved(folder: Path, family: str = "Bert", sizes: dict = SIZES, **more) -> nn.Module:
    """A tiny encoder with random float16 weights, saved with a tokenizer that has no limit."""
    tokenizer = encoders.word_tokenizer(TEXTS[0], 10**30)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")
    config = config(**{"vocab_size": len(tokenizer), "pad_token_id": 0, **sizes, **more})
    model = getattr(transformers, f"{family}Model")(config).half()
    with encoders.quiet():
        model.save_pretrained(folder)
    return model.get_encoder() if config.is_encoder_decoder else model


def edit(folder: Path, name: str, **changes) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@torch.no_grad()
def states(encoder: nn.Module, tokenizer, texts: list[str]) -> torch.Tensor:
    return encoders.encode(encoder.eval(), tokenizer, encoders.tokenize(tokenizer, texts))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_trains_and_is_rebuilt(name: str, tmp_path: Path):
    """It computes what was saved, in float32; saved again and rebuilt after a step, it is equal."""
    original = saved(tmp_path / "hub", *FAMILIES[name]).float().eval()
    encoder, tokenizer = encoders.pretrained(str(tmp_path / "hub"), TEXTS)
    assert type(encoder).__name__ == name
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
    assert not any(p.grad is not None for p in encoder.parameters())
    assert name != "Packed" or not any("pooler" in key for key in encoder.state_dict())
    for text in TEXTS[0]:
        ids = torch.tensor(encoders.tokenize(tokenizer, [text]))
        expected = original(input_ids=ids).last_hidden_state[0]
        torch.testing.assert_close(states(encoder, tokenizer, [text]), expected)
    ids = encoders.tokenize(tokenizer, TEXTS[0])
    encoders.encode(encoder, tokenizer, ids).abs().mean().backward()
    trained = [p.grad is not None for p in encoder.parameters() if p.requires_grad]
    assert all(trained) and len(trained) > 8
    torch.optim.Adam(encoder.parameters(), 0.1).step()
    for part in (encoder.config, tokenizer):
        part.save_pretrained(tmp_path / "run")
    edit(tmp_path / "run", "config.json", dtype="float16")
    again, same_tokenizer = encoders.rebuild(str(tmp_path / "run"))
    again.load_state_dict(encoder.state_dict())
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    trained_states = states(encoder, tokenizer, TEXTS[0])
    assert torch.equal(states(again, same_tokenizer, TEXTS[0]), trained_states)


def test_loading_draws_no_random_number(tmp_path: Path):
    """So the weights that are drawn next are the same with any encoder."""
    saved(tmp_path)
    before = torch.get_rng_state()
    encoders.pretrained(str(tmp_path), TEXTS)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("family, limit, own", [("Bert", 10, -1), ("Roberta", 8, 10**30)])
def test_a_text_longer_than_the_positions_is_cut(family, limit, own, tmp_path, capsys):
    """Limits below 1 are none: XLNet and some tokenizers say -1."""
    saved(tmp_path, family, max_position_embeddings=10)
    edit(tmp_path, "tokenizer_config.json", model_max_length=own)
    encoder, tokenizer = encoders.pretrained(str(tmp_path), TEXTS)
    assert capsys.readouterr().err == ""
    assert states(encoder, tokenizer, ["good " * 99]).shape == (limit, 8)
    assert f"1 texts have {limit} tokens" in capsys.readouterr().err


def without_weight(folder: Path) -> None:
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    del weights["embeddings.word_embeddings.weight"]
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})


def with_token_99(folder: Path) -> None:
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    edit(folder, "tokenizer.json", model=model | {"vocab": model["vocab"] | {"bad": 99}})


def without_tokenizer(folder: Path) -> None:
    for path in folder.glob("*token*"):
        path.unlink()


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
DAMAGES = {
    "1 of its weights are missing .*: encoder.embeddings.word": without_weight,
    "weights are missing or misshapen": lambda f: edit(f, "config.json", intermediate_size=16),
    "fails on 512 tokens with ids up to 99: index out of range": with_token_99,
    "^--bert .* cannot be used: .*hidden_size": lambda f: edit(f, "config.json", hidden_size="x"),
    "it holds no tokenizer, or one without": without_tokenizer,
    "safetensors is a Git LFS": lambda f: (f / "model.safetensors").write_text(POINTER),
    "model_type": lambda f: (f / "config.json").unlink(),
}


@pytest.mark.parametrize("says, damage", DAMAGES.items())
def test_a_damaged_folder_is_one_sentence(says: str, damage: Callable, tmp_path: Path):
    saved(tmp_path / "f", max_position_embeddings=512)
    damage(tmp_path / "f")
    with pytest.raises(UserError, match=says) as caught:
        encoders.pretrained(str(tmp_path / "f"), TEXTS)
    assert str(caught.value).isprintable()


DEBERTA = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 0}


def test_an_encoder_that_would_fail_later_is_one_sentence_now(tmp_path: Path):
    """FNet has no attention mask; DeBERTa's masks overflow in bf16."""
    saved(tmp_path / "fnet", "FNet")
    with pytest.raises(UserError, match=r"states change by \d+\.\d% in a batch"):
        encoders.pretrained(str(tmp_path / "fnet"), TEXTS)
    saved(tmp_path / "deberta", "Deberta", SIZES | DEBERTA)
    encoders.pretrained(str(tmp_path / "deberta"), TEXTS)
    with pytest.raises(UserError, match="training the encoder with --amp bf16 fails: "):
        encoders.pretrained(str(tmp_path / "deberta"), TEXTS, amp="bf16")


def test_what_the_tokenizer_must_know(tmp_path: Path):
    """The language of the texts, and [CLS] for its pooling. Word vectors have no tokenizer."""
    saved(tmp_path)
    with pytest.raises(UserError, match="75% of the texts' tokens are unknown"):
        encoders.pretrained(str(tmp_path), [["good 这 部 电影"] * 6])
    encoders.pretrained(str(tmp_path), [["unheard"]])  # one word says little
    edit(tmp_path, "tokenizer.json", post_processor=None)
    encoders.pretrained(str(tmp_path), TEXTS)
    with pytest.raises(UserError, match="use --pooling mean"):
        encoders.pretrained(str(tmp_path), TEXTS, pooling="cls")
    with pytest.raises(UserError, match=r"is a file; .* takes word vectors"):
        encoders.pretrained(str(tmp_path / "config.json"), TEXTS)


def test_capitals_are_read_alike_in_files_and_when_predicting(capsys):
    tokenizer = encoders.word_tokenizer(["GOOD MOVIE", "Bad movie"], 64)
    assert len(tokenizer) == 7 and tokenizer.pad_token_id == 0
    assert encoders.tokenize(tokenizer, ["GOOD MOVIE"]) == [[2, 5, 6, 3]]
    assert capsys.readouterr().err == ""
    assert encoders.tokenize(tokenizer, ["good movie", "Good film"]) == [[2, 5, 6, 3], [2, 1, 1, 3]]
    assert "50% of the tokens are unknown" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"a text cannot be tokenized: .*surrogate"):
        encoders.tokenize(tokenizer, ["good", "good \ud800"])


@pytest.mark.skipif(find_spec("sentencepiece") is not None, reason="sentencepiece is installed")
def test_a_folder_with_only_a_sentencepiece_model_says_what_to_install(tmp_path: Path):
    saved(tmp_path, *FAMILIES["T5Stack"])
    for path in (*tmp_path.glob("tokenizer*"), *tmp_path.glob("special_tokens_map*")):
        path.unlink()
    (tmp_path / "spiece.model").write_bytes(b"\n\x07\n\x05<unk>")
    with pytest.raises(UserError, match="pip install sentencepiece protobuf"):
        encoders.pretrained(str(tmp_path), TEXTS)
