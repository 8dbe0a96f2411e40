"""Text encoders and their tokenizers: from a folder, from the hub, or a small untrained BERT."""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from plumbing import devices, explained, fetch
from plumbing.packing import Packed

SMALL = "small"  # the name of a BERT of 2 layers of width 64 with random weights
SMALL_TOKENS = 64  # its longest text
LONGEST = 512  # tokens of a text, even if the encoder could take more
UNKNOWN = 0.6  # a run starts with at most this share of unknown tokens
EXAMPLES = ["good", "the movie was not that good"]  # checked beside the texts of the run
CPU = torch.device("cpu")
LOCAL = {"trust_remote_code": False, "local_files_only": True}
Encoder = tuple[nn.Module, PreTrainedTokenizerBase]  # a text encoder and its tokenizer


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
    what = f"--bert {name} cannot be used"
    with explained(what):
        if Path(name).is_file():
            raise ValueError("it is a file; experiments.rows takes word vectors by --vectors")
        folder = None if name == SMALL else fetch.encoder(name)
    with explained(what), quiet():
        source, source_tokenizer, missing = read(folder) if folder else small(texts[0])
        # A run trains what it can rebuild: an encoder made from the files that it will save.
        with torch.random.fork_rng([]), TemporaryDirectory() as rebuilt:
            source.config.save_pretrained(rebuilt)
            source_tokenizer.save_pretrained(rebuilt)
            encoder, tokenizer = build(rebuilt)
            encoder.load_state_dict(source.state_dict())
            every = [text for split in texts for text in split]
            check(encoder, tokenizer, every[:: len(every) // 200 + 1], device, amp, pooling)
        if random := [key for key in missing if encoder.get_parameter(key).requires_grad]:
            raise ValueError(f"{len(random)} of its weights are missing or misshapen: {random[0]}")
    return encoder, tokenizer


def rebuild(folder: str, device: torch.device = CPU, amp: str = "off") -> Encoder:
    """Build and check the encoder of a saved run. Its weights are random: the caller loads them.

    folder: what `save_pretrained` of model.config and tokenizer wrote. Raises UserError.
    """
    with explained(f"{folder} holds no encoder that can be used"), quiet():
        encoder, tokenizer = build(folder)
        check(encoder, tokenizer, [], device, amp, "mean")
    return encoder, tokenizer


def build(folder: str) -> Encoder:
    """The encoder of a configuration, with random weights, and a tokenizer that cuts long texts."""
    config = AutoConfig.from_pretrained(folder, **LOCAL)
    model = AutoModel.from_config(config, dtype=torch.float32)
    tokenizer = read_tokenizer(folder)
    positions = getattr(config, "max_position_embeddings", None) or 0
    if config.model_type != "bert":
        positions -= 2  # RoBERTa's start at 2
    limits = [n for n in (tokenizer.model_max_length, positions) if n > 0]  # -1: no limit
    tokenizer.model_max_length = min([LONGEST, *limits])
    return text_encoder(model), tokenizer


def read(folder: str) -> tuple[nn.Module, PreTrainedTokenizerBase, list[str]]:
    """The encoder and tokenizer in a folder, and the names of parameters that are missing there."""
    for path in Path(folder).glob("*.safetensors"):
        with open(path, "rb") as file:
            if file.read(40).startswith(b"version https://git-lfs"):
                raise ValueError(f"{path.name} is a Git LFS pointer; run `git lfs pull`")
    settings = {"dtype": torch.float32, "output_loading_info": True, **LOCAL}
    settings["ignore_mismatched_sizes"] = True  # they are reported as missing
    model, info = AutoModel.from_pretrained(folder, **settings)
    lost = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    missing = {id(p) for key, p in model.named_parameters() if key in lost}
    encoder = text_encoder(model)
    names = [key for key, p in encoder.named_parameters() if id(p) in missing]
    return encoder, read_tokenizer(folder), names


def read_tokenizer(folder: str) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(folder, **LOCAL)
    except Exception as error:
        if "tiktoken" in str(error):  # transformers advises to install it, which does not help
            raise ValueError("its tokenizer needs pip install sentencepiece protobuf") from error
        raise


def small(texts: list[str]) -> tuple[nn.Module, PreTrainedTokenizerBase, list[str]]:
    """An untrained BERT whose vocabulary is the words of `texts`; no parameter is missing."""
    tokenizer = word_tokenizer(texts, SMALL_TOKENS)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "max_position_embeddings": SMALL_TOKENS}
    model = transformers.BertModel(transformers.BertConfig(vocab_size=len(tokenizer), **sizes))
    return text_encoder(model), tokenizer, []


def text_encoder(model: transformers.PreTrainedModel) -> nn.Module:
    """The part that encodes text: the encoder of T5 or BART; BERT packed and without its pooler."""
    if model.config.is_encoder_decoder:
        return model.get_encoder()
    if model.config.model_type == "bert" and not model.config.is_decoder:
        model.pooler = None
        return Packed(model)
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """Hide the tables and progress bars of transformers; our errors say what matters in them."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        transformers.logging.set_verbosity(level)


# ── The check: what training and predicting will do ───────────────────────────────────────────────
def check(
    encoder: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    device: torch.device,
    amp: str,
    pooling: str,
) -> None:
    """Try the encoder on a few texts, and freeze the parameters that get no gradient.

    Raises an exception if most tokens are unknown, if pooling is "cls" and a text does not start
    with [CLS], if a text's states change in a batch, or if the longest possible text or a training
    step in the run's number format fails.
    """
    words = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
    if not any(character.isalnum() for word in words for character in word):
        raise ValueError("it holds no tokenizer, or one without a vocabulary")
    ids = tokenize(tokenizer, [*EXAMPLES, *texts])
    share = unknown_share(tokenizer, ids[len(EXAMPLES) :])
    if share > UNKNOWN and len(texts) > 5:  # fewer texts say little
        raise ValueError(f"{share:.0%} of the texts' tokens are unknown to its tokenizer")
    if pooling == "cls" and ids[0][0] != tokenizer.cls_token_id:
        raise ValueError("a text does not start with [CLS]; use --pooling mean")
    by_length = sorted(ids[:16], key=len)
    rows = [by_length[0], by_length[len(by_length) // 2], by_length[-1]]
    last_id, limit = max(tokenizer.get_vocab().values()), tokenizer.model_max_length
    encoder.eval()
    with torch.no_grad():
        alone = torch.cat([encode(encoder, tokenizer, [row]) for row in rows])
        if alone.shape[1] != encoder.config.hidden_size:
            raise ValueError(f"its states have width {alone.shape[1]}, not its hidden_size")
        change = (encode(encoder, tokenizer, rows) - alone).abs().max() / alone.abs().max()
        if not change <= 1e-4:
            raise ValueError(f"a text's states change by {change:.1%} in a batch of texts")
        with explained(f"the encoder fails on {limit} tokens with ids up to {last_id}"):
            encode(encoder, tokenizer, [[*(rows[-1] * limit)[: limit - 1], last_id]])
    encoder.to(device)
    with explained(f"training the encoder with --amp {amp} fails"):
        with devices.autocast(amp, device):  # in eval mode: in training, some skip layers at random
            states = encode(encoder, tokenizer, rows)
            states.float().abs().mean().backward()
        gradients = [p.grad for p in encoder.parameters() if p.grad is not None]
        if not all(x.isfinite().all() for x in (states, *gradients)):
            raise ValueError("its numbers are not finite")
    for parameter in encoder.parameters():
        parameter.requires_grad_(parameter.grad is not None)
    encoder.to(CPU).zero_grad()


def encode(encoder: nn.Module, tokenizer: PreTrainedTokenizerBase, rows: list[list[int]]) -> Tensor:
    """The states of all tokens, one row of ids after the other, computed as one padded batch."""
    device, pad_id = next(encoder.parameters()).device, tokenizer.pad_token_id or 0
    ids = pad_sequence([torch.tensor(row) for row in rows], True, pad_id).to(device)
    mask = pad_sequence([torch.ones(len(row)).long() for row in rows], True).to(device)
    return encoder(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()]


# ── Texts to token ids ────────────────────────────────────────────────────────────────────────────
def word_tokenizer(texts: list[str], limit: int) -> transformers.PreTrainedTokenizerFast:
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
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, model_max_length=limit, **special
    )


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
