"""The encoder of a text and its tokeniser: from a folder, from the hub, small and untrained, or GloVe's
vectors from their file."""

import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    logging,
)

from plumbing import explained, fetch, regular
from plumbing.packing import Packed

logging.set_verbosity_error()  # tables and bars; what matters in them is said in a sentence
logging.disable_progress_bar()

SMALL = "small"  # the name of a BERT of 2 layers of width 64 with random weights
SMALL_TOKENS = 64  # of a text
LONGEST = 512  # tokens of a text, whatever the encoder could take


def pretrained(name: str, texts: list[list[str]]) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """An encoder, which packs its sentences if it is a BERT, and its tokeniser. Raises UserError.

    name: a folder, a hub name, a file in GloVe's text format, or "small", whose words are those of
    train; texts: of each split, train first
    """
    if Path(name).is_file():
        return word_vectors(name, [text for split in texts for text in split])
    if name == SMALL:
        tokenizer = word_tokenizer(texts[0], SMALL_TOKENS)
        sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
        sizes |= {"num_attention_heads": 4, "max_position_embeddings": SMALL_TOKENS}
        return pack(BertModel(BertConfig(vocab_size=len(tokenizer), **sizes))), tokenizer
    folder = fetch.encoder(name)
    with explained(f"--bert {name}: no encoder can be loaded"):
        only_regular(folder)
        known = {"trust_remote_code": False, "output_loading_info": True}
        encoder, info = AutoModel.from_pretrained(folder, **known)
        missing = [name for name in info["missing_keys"] if "pooler" not in name]
        if missing:  # they would be random
            raise ValueError(f"{len(missing)} of its weights are missing, such as {missing[0]}")
    return pack(encoder), load_tokenizer(folder, encoder)


def configured(folder: str) -> nn.Module:
    """The encoder of a folder's configuration, its weights random. Raises UserError."""
    with explained(f"{folder} holds no encoder's configuration"):
        only_regular(folder)
        known = {"trust_remote_code": False, "local_files_only": True}
        return AutoModel.from_config(AutoConfig.from_pretrained(folder, **known)).float()


def only_regular(folder: str):
    for path in Path(folder).iterdir():
        if not path.is_dir():
            regular(path)


def pack(encoder: nn.Module) -> nn.Module:
    """A BERT without its pooler, which would get no gradient, in `Packed`; others as they are."""
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None
    return Packed(encoder) if encoder.config.model_type == "bert" else encoder


class Static(nn.Module):
    """Vectors of tokens that do not learn, called as an encoder of transformers is.

    vectors: (V, D) float; config: whose hidden_size is D
    input_ids, attention_mask: (B, T) int64 -> last_hidden_state: (B, T, D), 0 where masked
    """

    def __init__(self, vectors: Tensor, config: PreTrainedConfig):
        super().__init__()
        self.config = config
        # Not kept with a run's weights: `pretrained` makes them anew.
        self.register_buffer("vectors", vectors.detach().clone(), persistent=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        states = self.vectors[input_ids] * attention_mask[:, :, None]
        return SimpleNamespace(last_hidden_state=states)


def static(encoder: nn.Module) -> Static:
    """The encoder's input embeddings, frozen: of each token its vector, whatever stands around it."""
    if isinstance(encoder, Static):
        return encoder
    inside = encoder.encoder if isinstance(encoder, Packed) else encoder
    return Static(inside.get_input_embeddings().weight, encoder.config)


def word_vectors(file: str, texts: list[str]) -> tuple[Static, PreTrainedTokenizerBase]:
    """GloVe's text format: a word and its numbers a line. Only words of `texts` are kept; a word that
    the file lacks is 0. Words are lower-cased and rid of punctuation. Raises UserError.
    """
    punctuation = normalizers.Replace(Regex(r"[^\w\s'-]"), " ")
    normalizer = normalizers.Sequence([normalizers.Lowercase(), punctuation])
    with explained("a text is no Unicode"):
        tokenizer = word_tokenizer([normalizer.normalize_str(plain(t)) for t in texts], 512)
    tokenizer.backend_tokenizer.normalizer = normalizer
    ids, found, width = tokenizer.get_vocab(), {}, 0
    with explained(f"{file} is not in GloVe's text format"), open(file, encoding="utf-8") as lines:
        for line in lines:
            width = width or line.count(" ")  # the first word has no space; some others do
            word, *numbers = line.rstrip().rsplit(" ", width)
            if word in ids:
                found[ids[word]] = torch.tensor([float(x) for x in numbers])
        vectors = torch.zeros(len(ids), width)
        vectors[list(found)] = torch.stack(list(found.values()))
    print(f"{file}: vectors of {len(found)} of {len(ids)} words, each of width {width}")
    config = PreTrainedConfig(hidden_size=width, vocab_size=len(ids))
    return Static(vectors, config), tokenizer


def load_tokenizer(folder: str, encoder: nn.Module) -> PreTrainedTokenizerBase:
    """The encoder's own tokeniser; it cuts off what the encoder has no positions for.

    Raises UserError if the folder holds none, or one with tokens that the encoder does not know.
    """
    with explained(f"{folder} holds no tokeniser of its encoder"):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        last, known = max(tokenizer.get_vocab().values()), encoder.get_input_embeddings()
        if last >= known.num_embeddings:
            raise ValueError(f"token {last} is none of the encoder's {known.num_embeddings}")
        positions = getattr(encoder.config, "max_position_embeddings", 512)
        if encoder.config.model_type != "bert":
            positions -= 2  # RoBERTa's begin at 2
        tokenizer.model_max_length = min(tokenizer.model_max_length, positions)
        if tokenizer.model_max_length < 3:
            raise ValueError(f"texts would be cut to {tokenizer.model_max_length} tokens")
        longest = torch.full((1, min(tokenizer.model_max_length, LONGEST)), last)
        with torch.no_grad():  # tried now: a wrong configuration must not end a run later
            encoder.eval()(input_ids=longest, attention_mask=torch.ones_like(longest))
    return tokenizer


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
    """Token ids of each text, at most min(tokenizer.model_max_length, LONGEST): for training and
    predicting alike. Says on stderr how many are that long. Raises UserError for a text that is no Unicode.
    """
    limit = min(tokenizer.model_max_length, LONGEST)
    with explained("a text cannot be tokenised"):
        kept = tokenizer([plain(t) for t in texts], truncation=True, max_length=limit)["input_ids"]
    if full := sum(len(ids) == limit for ids in kept):
        print(f"note: {full} texts have {limit} tokens or are cut to as many", file=sys.stderr)
    return kept
