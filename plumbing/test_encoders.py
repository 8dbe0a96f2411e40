"""Encoders are checked when they are loaded: each trains, resumes and predicts, or is rejected."""

import json
import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers
from torch import nn

from plumbing import UserError, encoders
from plumbing.packing import Packed

TEXTS = [
    ["the movie was good", "bad", "the plot was not that good so i would not see it again"] * 3
]
SIZES = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
BART = {"d_model": 8, "max_position_embeddings": 30, "bos_token_id": 2, "eos_token_id": 3} | {
    f"{part}_{name}": size
    for part in ("encoder", "decoder")
    for name, size in {"layers": 1, "ffn_dim": 12, "attention_heads": 2}.items()
}
FAMILIES = {  # name: configuration, class of the encoder that is trained
    "Bert": (SIZES, "Packed"),
    "Roberta": (SIZES, "RobertaModel"),
    "SqueezeBert": (SIZES | {"embedding_size": 8}, "SqueezeBertModel"),
    "T5": ({"d_model": 8, "d_ff": 12, "d_kv": 4, "num_layers": 1, "num_heads": 2}, "T5Stack"),
    "Bart": (BART, "BartEncoder"),
    "XLNet": ({"d_model": 8, "d_inner": 12, "n_layer": 1, "n_head": 2}, "XLNetModel"),
}


def saved(folder: Path, family: str = "Bert", dtype: torch.dtype = torch.float32, **more) -> str:
    """A tiny encoder with random weights and its tokenizer, which has no limit of its own."""
    tokenizer = encoders.word_tokenizer(TEXTS[0], 10**30)
    sizes = {**FAMILIES.get(family, (SIZES,))[0], "pad_token_id": 0, **more}
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(vocab_size=len(tokenizer), **sizes)
    with encoders.quiet():
        getattr(transformers, f"{family}Model")(config).to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def states(encoder: encoders.Encoder, texts: list[str]) -> torch.Tensor:
    with torch.no_grad():
        model = encoder.model.eval()
        ids = encoders.tokenize(encoder.tokenizer, texts)
        return encoders.encode(encoder._replace(model=model), ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_trains_and_is_rebuilt(family: str, tmp_path: Path):
    """One step moves each trainable weight; saved and rebuilt, a text has the same states."""
    encoder = encoders.pretrained(saved(tmp_path / "hub", family, torch.float16), TEXTS)
    model, tokenizer = encoder
    assert type(model).__name__ == FAMILIES[family][1]
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not any(p.grad is not None for p in model.parameters())
    original = read_again(tmp_path / "hub")
    assert all(torch.equal(x, original[key]) for key, x in model.state_dict().items())
    assert family != "Bert" or not any("pooler" in key for key in model.state_dict())
    trained = {key: p.detach().clone() for key, p in model.named_parameters() if p.requires_grad}
    encoders.encode(encoder, encoders.tokenize(tokenizer, TEXTS[0])).abs().mean().backward()
    torch.optim.Adam(model.parameters(), 0.1).step()
    still = {key for key, p in model.named_parameters() if key in trained and p.grad is None}
    assert still == set() and len(trained) > 8
    for part in (model.config, tokenizer):
        part.save_pretrained(tmp_path / "run")
    edit(tmp_path / "run", "config.json", dtype="float16")
    weights = safetensors.torch.save(model.state_dict())
    again = encoders.rebuild(str(tmp_path / "run"))
    again.model.load_state_dict(safetensors.torch.load(weights))
    assert {p.dtype for p in again.model.parameters()} == {torch.float32}
    assert torch.equal(states(again, TEXTS[0]), states(encoder, TEXTS[0]))


def read_again(folder: Path) -> dict[str, torch.Tensor]:
    """The parameters in a folder, with all prefixes under which an encoder can have them."""
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights = {key: weight.float() for key, weight in weights.items()}
    if "shared.weight" in weights:
        weights["encoder.embed_tokens.weight"] = weights["shared.weight"]
    without = {key.removeprefix("encoder."): weight for key, weight in weights.items()}
    return without | weights | {f"encoder.{key}": weight for key, weight in weights.items()}


def test_loading_leaves_everything_else_as_it_was(tmp_path: Path):
    """The random numbers that follow, transformers' verbosity, and no gradient is left."""
    folder, level = saved(tmp_path / "hub"), transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_info()
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    encoders.pretrained(folder, TEXTS)
    assert torch.equal(torch.rand(3), expected)
    assert transformers.logging.get_verbosity() == transformers.logging.INFO
    transformers.logging.set_verbosity(level)


@pytest.mark.parametrize("family, limit, own", [("Bert", 10, -1), ("Roberta", 8, 10**30)])
def test_a_text_longer_than_the_positions_is_cut(
    family: str, limit: int, own: int, tmp_path: Path, capsys: pytest.CaptureFixture
):
    """Limits below 1 are none: XLNet and some tokenizers say -1."""
    folder = saved(tmp_path / "f", family, max_position_embeddings=10)
    edit(folder, "tokenizer_config.json", model_max_length=own)
    encoder = encoders.pretrained(folder, TEXTS)
    assert capsys.readouterr().err == ""
    assert states(encoder, ["good " * 99]).shape == (limit, 8)
    assert f"1 texts have {limit} tokens" in capsys.readouterr().err
    assert isinstance(encoder.model, Packed) == (family == "Bert")


def edit(folder: str | Path, name: str, **changes):
    path = Path(folder, name)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def without_weight(folder: str):
    path = Path(folder, "model.safetensors")
    weights = safetensors.torch.load_file(path)
    del weights["embeddings.word_embeddings.weight"]
    safetensors.torch.save_file(weights, path, {"format": "pt"})


def with_token_99(folder: str):
    model = json.loads(Path(folder, "tokenizer.json").read_text())["model"]
    edit(folder, "tokenizer.json", model=model | {"vocab": model["vocab"] | {"bad": 99}})


def without_tokenizer(folder: str):
    for path in Path(folder).glob("*token*"):
        path.unlink()


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
DAMAGES = {
    "1 of its weights are missing .*: encoder.embeddings.word": without_weight,
    "weights are missing or misshapen": lambda f: edit(f, "config.json", intermediate_size=16),
    "fails on 512 tokens with ids up to 99: index out of range": with_token_99,
    "cut to 1 tokens": lambda f: edit(f, "tokenizer_config.json", model_max_length=1),
    "--bert .* cannot be used": lambda f: edit(f, "config.json", hidden_size="x"),
    "holds no tokenizer": without_tokenizer,
    "no tokenizer.json, and": lambda f: Path(f, "tokenizer.json").unlink(),
    'such as "model_type": "bert"': lambda f: edit(f, "config.json", model_type=None),
    "safetensors is a Git LFS": lambda f: Path(f, "model.safetensors").write_text(POINTER),
    "config.json cannot be read": lambda f: Path(f, "config.json").unlink(),
}
if hasattr(os, "mkfifo"):  # a pipe must not hang
    DAMAGES["vocab.txt cannot be read"] = lambda f: os.mkfifo(Path(f, "vocab.txt"))


@pytest.mark.parametrize("says, damage", DAMAGES.items())
def test_a_damaged_folder_is_one_sentence(says: str, damage, tmp_path: Path):
    folder = saved(tmp_path / "f", max_position_embeddings=512)
    damage(folder)
    with pytest.raises(UserError, match=says) as caught:
        encoders.pretrained(folder, TEXTS)
    assert str(caught.value).isprintable()


@pytest.mark.skipif(find_spec("sentencepiece") is not None, reason="sentencepiece is installed")
def test_a_folder_with_only_a_sentencepiece_model_says_what_to_install(tmp_path: Path):
    folder = saved(tmp_path / "f", "T5")
    without_tokenizer(folder)
    (tmp_path / "f" / "spiece.model").write_bytes(b"\n\x07\n\x05<unk>")
    with pytest.raises(UserError, match="pip install sentencepiece protobuf") as caught:
        encoders.pretrained(folder, TEXTS)
    assert "tiktoken" not in str(caught.value)


DEBERTA = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 0}
UNUSABLE = {  # what the error says: family, its configuration, how the run uses it
    r"states change by \d+\.\d% in a batch": ("FNet", SIZES, {}),
    "in bf16, so use --amp off": ("Deberta", SIZES | DEBERTA, {"amp": "bf16"}),
    "forward.. missing 1 required": ("Perceiver", {"d_model": 8, "d_latents": 8}, {}),
    "use --pooling mean": ("GPT2", {"n_embd": 8, "n_layer": 1, "n_head": 2}, {"pooling": "cls"}),
}


@pytest.mark.parametrize("says, case", UNUSABLE.items())
def test_an_encoder_that_would_fail_later_is_one_sentence_now(says: str, case, tmp_path: Path):
    family, sizes, use = case
    folder = saved(tmp_path / "f", family, **sizes)
    with pytest.raises(UserError, match=says):
        encoders.pretrained(folder, TEXTS, **use)
    if use:
        encoders.pretrained(folder, TEXTS)


def test_texts_of_another_language_are_one_sentence(tmp_path: Path):
    folder = saved(tmp_path / "f")
    with pytest.raises(UserError, match="75% of the texts' tokens are unknown"):
        encoders.pretrained(folder, [["good 这 部 电影"] * 6])


def test_a_file_is_no_encoder(tmp_path: Path):
    (tmp_path / "file").write_text("good 0.1 -2e-1 3")
    with pytest.raises(UserError, match=r"not a folder; .* takes word vectors"):
        encoders.pretrained(str(tmp_path / "file"), TEXTS)


class Faulty(nn.Module):
    """A BERT that lets a text see the first one of its batch, or that fails in training alone."""

    fault = "leaks"

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder, self.config = encoder, encoder.config

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor):
        output = self.encoder(input_ids=input_ids, attention_mask=attention_mask)
        if self.fault == "leaks":
            output.last_hidden_state = output.last_hidden_state + output.last_hidden_state[:1, :1]
        elif self.training:
            output.last_hidden_state = output.last_hidden_state * torch.nan
        return output


@pytest.mark.parametrize("fault, says", [("leaks", "in a batch"), ("training", "are not finite")])
def test_a_fault_of_the_wrapper_is_seen(fault: str, says: str, tmp_path: Path, monkeypatch):
    """The BERT alone is right, so only what `Packed` stands for can be wrong."""
    monkeypatch.setattr(encoders, "Packed", Faulty)
    monkeypatch.setattr(Faulty, "fault", fault)
    with pytest.raises(UserError, match=says):
        encoders.pretrained(saved(tmp_path / "f"), TEXTS)


def test_bert_as_a_decoder_is_not_packed(tmp_path: Path):
    """Its mask is causal, and `Packed` would replace it."""
    encoder = encoders.pretrained(saved(tmp_path / "f", is_decoder=True), TEXTS)
    assert type(encoder.model).__name__ == "BertModel"


def test_a_tokenizer_without_a_first_token_takes_no_cls_pooling(tmp_path: Path):
    folder = saved(tmp_path / "f")
    edit(folder, "tokenizer.json", post_processor=None)
    encoders.pretrained(folder, TEXTS)
    with pytest.raises(UserError, match="use --pooling mean"):
        encoders.pretrained(folder, TEXTS, pooling="cls")


def test_capitals_are_read_alike_in_files_and_when_predicting(capsys: pytest.CaptureFixture):
    tokenizer = encoders.word_tokenizer(["GOOD MOVIE", "Bad movie"], 64)
    assert len(tokenizer) == 7 and tokenizer.pad_token_id == 0
    assert encoders.tokenize(tokenizer, ["GOOD MOVIE"]) == [[2, 5, 6, 3]]
    assert capsys.readouterr().err == ""
    assert encoders.tokenize(tokenizer, ["good movie", "Good film"]) == [[2, 5, 6, 3], [2, 1, 1, 3]]
    assert "50% of the tokens are unknown" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"a text cannot be tokenized: .*surrogate"):
        encoders.tokenize(tokenizer, ["good", "good \ud800"])
