"""Word vectors in place of a text encoder: GloVe's, or an encoder's input embeddings."""

from pathlib import Path
from types import SimpleNamespace

import torch
from tokenizers import Regex, normalizers
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from plumbing import encoders, explained, regular
from plumbing.packing import Packed
from plumbing.runs import read_json


class Static(nn.Module):
    """One context-free vector per token. Not trained; called as a transformers encoder is.

    vectors: (V, D) float; config: its hidden_size is D
    input_ids, attention_mask: (B, T) int64 -> last_hidden_state: (B, T, D), 0 where masked
    """

    def __init__(self, vectors: Tensor, config: PreTrainedConfig):
        super().__init__()
        self.config = config
        self.register_buffer("vectors", vectors.detach().clone())

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        states = self.vectors[input_ids] * attention_mask[:, :, None]
        return SimpleNamespace(last_hidden_state=states)


def static(encoder: nn.Module) -> Static:
    """The input embeddings of an encoder, frozen."""
    if isinstance(encoder, Static):
        return encoder
    plain = encoder.encoder if isinstance(encoder, Packed) else encoder
    return Static(plain.get_input_embeddings().weight, encoder.config)


def word_vectors(file: str, texts: list[str]) -> tuple[Static, PreTrainedTokenizerBase]:
    """Read the vectors of the words in `texts`; a word that the file lacks has the vector 0.

    file: GloVe's text format, a word and its numbers per line. Words of the texts are looked up in
    lower case and without punctuation. Raises UserError.
    """
    punctuation = normalizers.Replace(Regex(r"[^\w\s'-]"), " ")
    normalizer = normalizers.Sequence([normalizers.Lowercase(), punctuation])
    with explained("a text is not valid Unicode"):
        words = [normalizer.normalize_str(encoders.plain(text)) for text in texts]
    tokenizer = encoders.word_tokenizer(words, encoders.LONGEST)
    tokenizer.backend_tokenizer.normalizer = normalizer
    ids, vectors = tokenizer.get_vocab(), {}
    with explained(f"{file} does not hold word vectors as text"):
        with open(regular(file), encoding="utf-8") as lines:
            width = len(lines.readline().split()) - 1  # the first word has no space, others may
            if width == 1:  # fastText's .vec: a line of two counts comes first
                width = len(lines.readline().split()) - 1
            lines.seek(0)
            for number, line in enumerate(lines, 1):
                word, *values = line.rstrip().rsplit(" ", width)
                if word in ids:
                    vectors[ids[word]] = torch.tensor([float(value) for value in values])
                    if len(values) != width or not vectors[ids[word]].isfinite().all():
                        raise ValueError(f"line {number} is not a word and {width} numbers")
        if not vectors:
            raise ValueError("it has none of the words in the texts")
    table = torch.zeros(len(ids), width)
    table[list(vectors)] = torch.stack(list(vectors.values()))
    count = len(ids) - len(tokenizer.all_special_ids)
    print(f"{file}: vectors of {len(vectors)} of {count} words, each of width {width}")
    return Static(table, PreTrainedConfig(hidden_size=width, vocab_size=len(ids))), tokenizer


def rebuild(folder: str) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """What a run saved: word vectors, 0 until the run's weights are loaded, or else an encoder.

    Raises UserError if the folder holds neither.
    """
    settings = read_json(Path(folder, "config.json"))
    if settings.get("model_type"):
        return encoders.rebuild(folder)
    with explained(f"{folder} holds neither word vectors nor an encoder"):
        vectors = torch.zeros(settings["vocab_size"], settings["hidden_size"])
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        return Static(vectors, PreTrainedConfig(**settings)), tokenizer
