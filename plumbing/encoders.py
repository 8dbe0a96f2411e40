"""Text encoders and their tokenizers: from a folder, from the hub, or a small untrained BERT."""

import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import safetensors.torch
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    logging,
)

from plumbing import devices, explained, fetch, first_line, regular
from plumbing.packing import Packed

SMALL = "small"  # the name of a BERT of 2 layers of width 64 with random weights
SMALL_TOKENS = 64  # its longest text
LONGEST = 512  # tokens of a text, even if the encoder could take more
UNKNOWN = 0.6  # a run starts with at most this share of unknown tokens
EXAMPLES = ["good", "the movie was not that good"]  # checked beside the texts of the run
NO_FOLDER = "it is a file, not a folder; experiments.rows takes word vectors by --vectors"
CPU = torch.device("cpu")
LOCAL = {"trust_remote_code": False, "local_files_only": True}


class Encoder(NamedTuple):
    """A text encoder and its tokenizer."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase


# ── Loading ───────────────────────────────────────────────────────────────────────────────────────
def pretrained(
    name: str,
    texts: list[list[str]],
    device: torch.device = CPU,
    amp: str = "off",
    pooling: str = "mean",
) -> Encoder:
    """Load and check the encoder of a new run. Its weights are float32, on the CPU.

    name: a folder, a hub name, or "small", whose vocabulary is the words of the train split
    texts: those of each split, train first; device, amp, pooling: those of the run
    Raises UserError if the encoder cannot be loaded, or would fail during the run (see `check`).
    """
    with explained(f"--bert {name} cannot be used"):
        if Path(name).is_file():
            raise ValueError(NO_FOLDER)
        source, tokenizer, missing = small(texts[0]) if name == SMALL else read(fetch.encoder(name))
        weights = {key: weight.contiguous() for key, weight in source.state_dict().items()}
        # A run trains what it can rebuild: an encoder made from the files that it will save.
        with torch.random.fork_rng([]), TemporaryDirectory() as folder:
            source.config.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            encoder = build(folder)
        encoder.model.load_state_dict(safetensors.torch.load(safetensors.torch.save(weights)))
        every = [text for split in texts for text in split]
        check(encoder, every[:: len(every) // 200 + 1], device, amp, pooling)
        if random := [key for key in missing if encoder.model.get_parameter(key).requires_grad]:
            raise ValueError(f"{len(random)} of its weights are missing or misshapen: {random[0]}")
    return encoder


def rebuild(folder: str, device: torch.device = CPU, amp: str = "off") -> Encoder:
    """Build and check the encoder of a saved run. Its weights are random: the caller loads them.

    folder: what `save_pretrained` of model.config and tokenizer wrote. Raises UserError.
    """
    with explained(f"{folder} holds no encoder that can be used"):
        encoder = build(folder)
        check(encoder, [], device, amp, "mean")
    return encoder


def build(folder: str) -> Encoder:
    """The encoder of a configuration, with random weights, and a tokenizer that cuts long texts."""
    with quiet():
        config = AutoConfig.from_pretrained(readable(folder), **LOCAL)
        model = AutoModel.from_config(config, dtype=torch.float32)
        tokenizer = read_tokenizer(folder)
    positions = getattr(config, "max_position_embeddings", None) or 0
    if config.model_type != "bert":
        positions -= 2  # RoBERTa's start at 2
    limits = [n for n in (tokenizer.model_max_length, positions) if n > 0]  # -1: no limit
    tokenizer.model_max_length = min([LONGEST, *limits])
    return Encoder(text_encoder(model), tokenizer)


def read(folder: str) -> tuple[nn.Module, PreTrainedTokenizerBase, list[str]]:
    """The encoder and tokenizer in a folder, and the names of parameters that are missing there."""
    with quiet():
        settings = {"dtype": torch.float32, "output_loading_info": True, **LOCAL}
        settings["ignore_mismatched_sizes"] = True  # they are reported as missing
        model, info = AutoModel.from_pretrained(readable(folder), **settings)
        tokenizer = read_tokenizer(folder)
    lost = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    missing = {id(p) for key, p in model.named_parameters() if key in lost}
    encoder = text_encoder(model)
    return encoder, tokenizer, [key for key, p in encoder.named_parameters() if id(p) in missing]


def small(texts: list[str]) -> tuple[nn.Module, PreTrainedTokenizerBase, list[str]]:
    """An untrained BERT whose vocabulary is the words of `texts`; no parameter is missing."""
    tokenizer = word_tokenizer(texts, SMALL_TOKENS)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "max_position_embeddings": SMALL_TOKENS}
    model = BertModel(BertConfig(vocab_size=len(tokenizer), **sizes))
    return text_encoder(model), tokenizer, []


def text_encoder(model: PreTrainedModel) -> nn.Module:
    """The part that encodes text: the encoder of T5 or BART; BERT packed and without its pooler."""
    if model.config.is_encoder_decoder:
        return model.get_encoder()
    if model.config.model_type == "bert" and not model.config.is_decoder:
        model.pooler = None
        return Packed(model)
    return model


def readable(folder: str) -> str:
    """The folder. Raises an exception if one of its files is a pipe or a pointer of Git LFS."""
    for path in Path(folder).iterdir():
        if not path.is_dir():
            with open(regular(path), "rb") as file:
                if file.read(40).startswith(b"version https://git-lfs"):
                    raise ValueError(f"{path.name} is a Git LFS pointer; run `git lfs pull`")
    if not json.loads(regular(Path(folder, "config.json")).read_bytes()).get("model_type"):
        raise ValueError('add its family to its config.json, such as "model_type": "bert"')
    return folder


def read_tokenizer(folder: str) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder. Raises ValueError if there is none that can be read."""
    try:
        return AutoTokenizer.from_pretrained(folder, **LOCAL)
    except Exception as error:
        why = first_line(error)
        if "tiktoken" in str(error):  # transformers advises it, which does not help
            why = "no tokenizer.json, and SentencePiece needs pip install sentencepiece protobuf"
        raise ValueError(f"its tokenizer cannot be read: {why}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Hide the tables and progress bars of transformers; our errors say what matters in them."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(level)


# ── The check: what training and predicting will do ───────────────────────────────────────────────
def check(encoder: Encoder, texts: list[str], device: torch.device, amp: str, pooling: str) -> None:
    """Try the encoder on a few texts, and freeze the parameters that get no gradient.

    Raises ValueError if most tokens are unknown, if a text's states change in a batch, or if the
    pooling, the longest possible text, or a training step in the run's number format fails.
    """
    tokenizer = encoder.tokenizer
    limit, vocabulary = tokenizer.model_max_length, tokenizer.get_vocab()
    words = set(vocabulary) - set(tokenizer.all_special_tokens)
    if not any(character.isalnum() for word in words for character in word):
        raise ValueError("it holds no tokenizer, or one without a vocabulary")
    if limit < 3:
        raise ValueError(f"texts would be cut to {limit} tokens")
    with quiet(), torch.random.fork_rng([]):
        ids = tokenize(tokenizer, [*EXAMPLES, *texts])
        share = unknown_share(tokenizer, ids[len(EXAMPLES) :])
        if share > UNKNOWN and len(texts) > 5:  # fewer say little
            raise ValueError(f"{share:.0%} of the texts' tokens are unknown to its tokenizer")
        ids = sorted(ids[:16], key=len)
        rows, longest = [ids[0], ids[len(ids) // 2], ids[-1]], ids[-1] * limit
        first = check_batch(encoder, rows)
        constant = first.std(0).max() <= 1e-5 * first.abs().max()  # as before a causal mask
        if pooling == "cls" and (constant or len({row[0] for row in ids}) > 1):
            raise ValueError("its first token does not see the whole text; use --pooling mean")
        with torch.no_grad():
            encode(encoder, [[*longest[: limit - 1], max(vocabulary.values())]])
        check_step(encoder, rows, device, amp)


@torch.no_grad()
def check_batch(encoder: Encoder, rows: list[list[int]]) -> Tensor:
    """The first state of each row. Raises ValueError if a row has other states in a batch."""
    model = encoder.model.eval()
    plain = encoder._replace(model=model.encoder if isinstance(model, Packed) else model)
    texts = [encode(plain, [row]) for row in rows]
    alone = torch.cat(texts)
    change = (encode(encoder, rows) - alone).abs().max() / alone.abs().max()
    if not change <= 1e-4:
        raise ValueError(f"a text's states change by {change:.1%} in a batch of texts")
    return torch.stack([states[0] for states in texts])


def check_step(encoder: Encoder, rows: list[list[int]], device: torch.device, amp: str) -> None:
    """Raises ValueError if a step fails in the run's number format; else freezes unused weights."""
    model = encoder.model.to(device)
    with devices.autocast(amp, device):
        advice = " in bf16, so use --amp off" * torch.is_autocast_enabled(device.type)
        with reason(f"training fails{advice}"):
            model.train()
            numbers = [encode(encoder, rows)]
            model.eval()  # in training, some encoders skip layers at random
            numbers.append(encode(encoder, rows))
            numbers[-1].float().abs().mean().backward()
            numbers += [p.grad for p in model.parameters() if p.grad is not None]
            if not all(x.isfinite().all() for x in numbers):
                raise ValueError("its numbers are not finite")
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.grad is not None)
    model.to(CPU).zero_grad()


def encode(encoder: Encoder, rows: list[list[int]]) -> Tensor:
    """The states of all tokens, one row of ids after the other, computed as one padded batch."""
    device, pad_id = next(encoder.model.parameters()).device, encoder.tokenizer.pad_token_id or 0
    ids = pad_sequence([torch.tensor(row) for row in rows], True, pad_id).to(device)
    mask = pad_sequence([torch.ones(len(row)).long() for row in rows], True).to(device)
    with reason(f"it fails on {ids.shape[1]} tokens with ids up to {ids.max()}"):
        states = encoder.model(input_ids=ids, attention_mask=mask).last_hidden_state
    expected = [*ids.shape, encoder.model.config.hidden_size]
    if list(states.shape) != expected:
        raise ValueError(f"its output has shape {list(states.shape)} instead of {expected}")
    return states[mask.bool()]


@contextmanager
def reason(what: str) -> Iterator[None]:
    """Raise an exception again as a ValueError: "what: why"."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{what}: {first_line(error)}") from error


# ── Texts to token ids ────────────────────────────────────────────────────────────────────────────
def word_tokenizer(texts: list[str], limit: int) -> PreTrainedTokenizerFast:
    """A tokenizer whose vocabulary is [PAD] [UNK] [CLS] [SEP] and the words of `texts`.

    limit: the most tokens of a text; the rest is cut off. Raises UserError for invalid Unicode.
    """
    with explained("a text is not valid Unicode"):
        words = sorted({word for text in texts for word in plain(text).split()})
    ids = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    core = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    core.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep")}
    return PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=limit, **special)


def plain(text: str) -> str:
    """Lower-case a text in capitals, as MMSA's MOSI is: a cased tokenizer would spell it out."""
    text.encode("utf-8")  # half a surrogate pair raises here; a fast tokenizer ends the process
    return text.lower() if text.isupper() else text


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, at most tokenizer.model_max_length: for training and predicting.

    Notes on stderr how many texts are that long, and a large share of unknown tokens. Raises
    UserError for a text that is not valid Unicode.
    """
    size = tokenizer.model_max_length
    with explained("a text cannot be tokenized"):
        ids = tokenizer([plain(t) for t in texts], truncation=True, max_length=size)["input_ids"]
    if full := sum(len(row) == size for row in ids):
        print(f"note: {full} texts have {size} tokens or are cut to as many", file=sys.stderr)
    if (share := unknown_share(tokenizer, ids)) > 0.1:
        print(f"note: {share:.0%} of the tokens are unknown to the encoder", file=sys.stderr)
    return ids


def unknown_share(tokenizer: PreTrainedTokenizerBase, ids: list[list[int]]) -> float:
    """The share of unknown tokens among those that are no special tokens. ids: of each text"""
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    words = [token for row in ids for token in row if token not in special]
    return words.count(tokenizer.unk_token_id) / max(len(words), 1)
