"""The encoder of a text and its tokeniser, from a folder, from the hub, or small and untrained."""

import sys

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from plumbing import UserError, explained, fetch
from plumbing.packing import Packed

SMALL = "small"  # the name of a BERT of 2 layers of width 64 with random weights
SMALL_TOKENS = 64  # of a text


def pretrained(name: str, texts: list[str]) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """An encoder, which packs its sentences if it is a BERT, and its tokeniser. Raises UserError.

    name: a folder, a hub name, or "small", whose words are those of `texts`
    """
    if name == SMALL:
        tokenizer = word_tokenizer(texts, SMALL_TOKENS)
        sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
        sizes |= {"num_attention_heads": 4, "max_position_embeddings": SMALL_TOKENS}
        return pack(BertModel(BertConfig(vocab_size=len(tokenizer), **sizes))), tokenizer
    folder = fetch.encoder(name)
    tokenizer = load_tokenizer(folder)
    with explained(f"--bert {name}: no encoder can be loaded"):
        encoder = AutoModel.from_pretrained(folder, trust_remote_code=False)
        known = encoder.get_input_embeddings().num_embeddings
    positions = getattr(encoder.config, "max_position_embeddings", 512)
    if encoder.config.model_type != "bert":
        positions -= 2  # RoBERTa's begin at 2
    tokenizer.model_max_length = min(tokenizer.model_max_length, positions)
    if len(tokenizer) > known:
        raise UserError(f"--bert {name}: {len(tokenizer)} tokens, embeddings of {known}")
    return pack(encoder), tokenizer


def pack(encoder: nn.Module) -> nn.Module:
    """A BERT without its pooler, which would get no gradient, in `Packed`; others as they are."""
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None
    return Packed(encoder) if encoder.config.model_type == "bert" else encoder


def load_tokenizer(folder: str) -> PreTrainedTokenizerBase:
    """The encoder's own tokeniser. Raises UserError if the folder holds none."""
    with explained(f"{folder} holds no tokeniser"):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def word_tokenizer(texts: list[str], limit: int) -> PreTrainedTokenizerFast:
    """A tokeniser whose vocabulary is [PAD] [UNK] [CLS] [SEP] and the words of `texts`.

    limit: tokens of a text; what is more is cut off
    """
    with explained("a text is no Unicode"):
        words = sorted({word for text in texts for word in plain(text).split()})
    ids = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    core = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    core.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep")}
    return PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=limit, **special)


def plain(text: str) -> str:
    """MMSA's MOSI IS IN CAPITALS, which shatter into letters in a cased tokeniser: lower-cased."""
    text.encode("utf-8")  # half a surrogate pair raises here; a fast tokeniser ends the process
    return text.lower() if text.isupper() else text


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, at most min(tokenizer.model_max_length, 512): for training and
    predicting alike. Says on stderr how many are that long. Raises UserError for a text that is no Unicode.
    """
    limit = min(tokenizer.model_max_length, 512)
    with explained("a text cannot be tokenised"):
        kept = tokenizer([plain(t) for t in texts], truncation=True, max_length=limit)["input_ids"]
    if full := sum(len(ids) == limit for ids in kept):
        print(f"note: {full} texts have {limit} tokens or are cut to as many", file=sys.stderr)
    return kept
