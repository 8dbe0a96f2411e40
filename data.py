"""CMU-MOSI and CMU-MOSEI for MSFN: a small loader. Start with `load`.

    python data.py FILE [--labels CSV]    # describe a file, or a folder of files

A corpus has three splits; a split has N segments; a segment is one sentence of a video: audio
frames ("a"), visual frames ("v"), words ("l") and a sentiment y in [-3, 3]. T is its number of
frames, d the number of features of a frame. `plumbing/formats.py` reads the files.
"""

import argparse
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

import plumbing
from plumbing import UserError, captions, encoders, fetch, formats, packing
from plumbing.formats import FRAMES

MODALITIES = ("a", "v", "l")  # audio, vision, language; FRAMES: the first two, by their file's keys
SPLITS = ("train", "valid", "test")


# ── A corpus ──────────────────────────────────────────────────────────────────────────────────────
class Split:
    """N segments of a split of `formats.read`; their frames stay in the file until asked for."""

    def __init__(self, part: dict[str, Any]):
        self.part, self.ids, self.text = part, part["id"], part["raw_text"]  # ids, text: N str each
        self.token_ids = part.get("token_ids")  # N lists if the file has no text, else None
        self.video = part["video"]  # N str, equal within a video; None if the file has no ids
        self.y = np.asarray(part["regression_labels"], np.float32)  # (N,), NaN without a label

    def __len__(self) -> int:
        return len(self.y)

    def frames(self, m: str, i: int) -> np.ndarray:
        """Frames of segment i in modality m without padding, as in the file: (T, d), T >= 0."""
        x, lengths = self.part[FRAMES[m]], self.part[f"{FRAMES[m]}_lengths"]
        return formats.without_padding(x[i], lengths[i])


@dataclass
class Corpus:
    """Splits, as corpus["train"], and their metadata."""

    name: str  # "mosi", "mosei", "synthetic", or the name of a file that is not the whole of one
    description: str  # one sentence
    splits: dict[str, Split]
    widths: dict[str, int]  # {"a": d_a, "v": d_v}, the number of features of a frame
    path: str | None = None  # the file or folder, absolute; None if generated
    fingerprint: str | None = None  # changes with the content; None if generated

    def __getitem__(self, split: str) -> Split:
        if split not in self.splits:
            raise UserError(f"{self.path} has no split {split!r}, only {', '.join(self.splits)}")
        return self.splits[split]


def load(dataset: str, path: str | Path | None = None, labels: str | Path | None = None) -> Corpus:
    """Load a corpus for training: three splits with labels. Prints what is odd. Raises UserError.

    dataset: "mosi", "mosei" or "synthetic", which needs no file
    path: a file or folder of any family; None takes the first under data/, or else fetches one
    labels: a CSV with the text of a file that has none; None takes *label*.csv beside the file
    """
    if dataset == "synthetic":
        if file := path or labels:
            raise UserError(f"--dataset synthetic is generated and takes no file, but got {file}")
        return synthetic()
    corpus = load_any(path or fetch.data_file(dataset, "data"), labels)
    if corpus.name != dataset and corpus.name in formats.CORPORA:
        raise UserError(f"--dataset {dataset} was asked for, but this is: {corpus.description}")
    for name in SPLITS:
        if len(i := np.flatnonzero(np.isnan(corpus[name].y))):
            raise UserError(f"{corpus.path}, split {name!r} has no label of segment {i[0]}")
    return corpus


def load_any(path: str | Path, labels: str | Path | None = None) -> Corpus:
    """The splits that a file has, for prediction; y is NaN without a label. Raises UserError."""
    parts = formats.read(path, labels)
    formats.print_notes(parts)
    splits = {name: Split(part) for name, part in parts.items()}
    widths = {m: next(iter(parts.values()))[key][0].shape[1] for m, key in FRAMES.items()}
    name, what = formats.corpus_name(parts, path), formats.describe(parts, path)
    return Corpus(name, what, splits, widths, str(Path(path).resolve()), formats.fingerprint(parts))


# ── From the corpus to the model ──────────────────────────────────────────────────────────────────
@dataclass
class Standardizer:
    """Not in the paper: (x - mean) / std per column, from at most 2,000 segments of train.

    NaN and infinities are missing: the statistics ignore them, then they become 0, which is the
    mean. A constant column becomes 0 as well. No result is beyond 10^6 standard deviations.
    """

    mean: dict[str, np.ndarray]  # "a", "v" -> (d,) float64
    std: dict[str, np.ndarray]  # "a", "v" -> (d,) float64; 0 for a constant column

    @classmethod
    def fit(cls, split: Split, seed: int = 0, sample: int = 2000) -> "Standardizer":
        """Fit to at most `sample` segments drawn by the seed. Prints a note on constant columns."""
        rows = np.sort(np.random.default_rng(seed).permutation(len(split))[:sample])
        mean, std = {}, {}
        for m, key in FRAMES.items():
            frames = [split.frames(m, i) for i in rows]
            count = sum(np.isfinite(nan_if_infinite(x)).sum(0) for x in frames)  # (d,)
            mean[m] = sum(np.nansum(nan_if_infinite(x), 0) for x in frames) / np.maximum(count, 1)
            square = sum(np.nansum((nan_if_infinite(x) - mean[m]) ** 2, 0) for x in frames)
            std[m] = np.sqrt(square / np.maximum(count, 1))
            std[m][std[m] <= 1e-9 * np.abs(mean[m])] = 0  # rounding errors of a constant column
            constant = np.count_nonzero(std[m] == 0)
            if constant and count.any():
                print(f"note: {constant} of {len(std[m])} columns of {key} are constant or empty")
        return cls(mean, std)

    def __call__(self, m: str, x: np.ndarray) -> np.ndarray:
        """Standardize modality m. x: (T, d) of a file, any d if T = 0 -> (T, d) float32, finite"""
        std = np.where(self.std[m] > 0, self.std[m], np.inf)  # x / ∞ = 0: a constant column
        with np.errstate(over="ignore"):
            z = (nan_if_infinite(x).reshape(len(x), len(std)) - self.mean[m]) / std
        return np.where(np.isnan(z), 0, np.clip(z, -1e6, 1e6)).astype(np.float32)

    def to_dict(self) -> dict[str, dict[str, list[float]]]:
        return {k: {m: x.tolist() for m, x in by.items()} for k, by in vars(self).items()}

    @classmethod
    def from_dict(cls, content: dict[str, dict[str, list[float]]]) -> "Standardizer":
        """The inverse of `to_dict`. Raises one of many exceptions if the content is damaged."""
        arrays = {k: {m: np.array(by[m], float) for m in FRAMES} for k, by in content.items()}
        result = cls(**arrays)
        for m in FRAMES:
            both = np.stack([result.mean[m], result.std[m]])  # (2, d)
            if both.ndim != 2 or not np.isfinite(both).all() or both[1].min() < 0:
                raise ValueError(f"it has no mean and standard deviation per column of {FRAMES[m]}")
        return result


def nan_if_infinite(x: np.ndarray) -> np.ndarray:
    """x in float64, with NaN for every value that is infinite, also if only in float32."""
    x = np.asarray(x, np.float64)
    return np.where(np.abs(x) < 3e38, x, np.nan)


class Batch(NamedTuple):
    """B segments, padded on the right to the longest of them.

    inputs["a"], inputs["v"]: (features (B, T, d) float32, lengths (B,) int64), T >= 1, padding 0.0
    inputs["l"]: (token ids (B, T) int64, lengths (B,) int64), T >= 1, padding [PAD]
    """

    inputs: dict[str, tuple[Tensor, Tensor]]
    y: Tensor  # (B,) float32
    video: Tensor  # (B,) int64, equal within a video, -1 if unknown
    ids: list[str]

    def to(self, device: torch.device) -> "Batch":
        """Values, y and video move; lengths stay on the CPU. Copies block except to CUDA."""
        # Copies to MPS may read memory that was freed in the meantime (pytorch #189690).
        move = {"device": device, "non_blocking": device.type == "cuda"}
        inputs = {m: (values.to(**move), lengths) for m, (values, lengths) in self.inputs.items()}
        return Batch(inputs, self.y.to(**move), self.video.to(**move), self.ids)


@dataclass(eq=False)
class Segments(torch.utils.data.Dataset):
    """A split as the model takes it. Texts are tokenized once, frames standardized on each access.

    segments[i]: ({"a": (T, d) float32, "v": likewise, "l": (T,) int64}, y, video, id)
    """

    split: Split
    tokenizer: PreTrainedTokenizerBase
    standardizer: Standardizer
    modalities: str = "avl"  # a subset of "avl"; the others become empty sequences

    def __post_init__(self):
        self.tokens = [[]] * len(self)
        if "l" in self.modalities:
            token_ids = captions.checked_ids(self.split.token_ids, self.tokenizer)
            self.tokens = token_ids or encoders.tokenize(self.tokenizer, self.split.text)
        names = self.split.video or []
        number = {name: k for k, name in enumerate(dict.fromkeys(names))}
        self.video = [number[name] for name in names] or [-1] * len(self)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, i: int) -> tuple[dict[str, Tensor], float, int, str]:
        x = {"l": torch.tensor(self.tokens[i], dtype=torch.int64)}
        for m in FRAMES:
            frames = self.split.frames(m, i)[: None if m in self.modalities else 0]
            x[m] = torch.from_numpy(self.standardizer(m, frames))
        return x, float(self.split.y[i]), self.video[i], self.split.ids[i]

    def collate(self, items: list[tuple]) -> Batch:
        """Pad B items on the right."""
        x, y, video, ids = zip(*items, strict=True)
        inputs = {}
        for m in MODALITIES:
            padding = 0.0 if m in FRAMES else self.tokenizer.pad_token_id or 0
            padded = torch.nn.utils.rnn.pad_sequence([s[m] for s in x], True, padding)
            if padded.shape[1] == 0:  # no segment has this modality
                padded = padded.new_full((len(x), 1, *padded.shape[2:]), padding)
            inputs[m] = padded, torch.tensor([len(s[m]) for s in x])
        return Batch(inputs, torch.tensor(y), torch.tensor(video), list(ids))


def batches(video: list[int], size: int, whole_videos: bool, seed: Any = None) -> list[list[int]]:
    """Divide N segments into batches of at most `size` by first fit -> their indices.

    video: N int, equal within a video, negative if unknown
    whole_videos: keep each video in one batch, for Eq. 13; a longer one is a batch alone
    seed: shuffles the videos, or the segments, before the fit; None does not
    """
    groups = defaultdict(list)
    for i, v in enumerate(video):
        groups[v if whole_videos and v >= 0 else -1 - i].append(i)  # -1 - i: a key of its own
    groups = list(groups.values())
    if seed is not None:
        groups = [groups[k] for k in np.random.default_rng(seed).permutation(len(groups))]
    plan = packing.first_fit([len(group) for group in groups], size)
    return [[i for k in batch for i in groups[k]] for batch in plan]


# ── A corpus that needs no file ───────────────────────────────────────────────────────────────────
GRADES = {  # words, by the sentiment that they carry
    -3: "awful terrible horrible",
    -2: "bad boring poor",
    -1: "weak dull bland",
    1: "decent pleasant nice",
    2: "good fun charming",
    3: "brilliant superb wonderful",
}
NOUNS = "movie plot acting music"
FILLERS = "um uh so well like basically actually honestly"
NOISE = {"a": 0.5, "v": 0.5, "l": 0.4}  # smaller in words, which are coarse anyway


def sentence(rng: np.random.Generator, sentiment: float) -> str:
    """Two to four clauses, each with a word whose grade is nearest to the sentiment plus noise."""
    words = []
    for _ in range(rng.integers(2, 5)):
        noisy = sentiment + rng.normal(0, 0.2)
        nearest = min(GRADES, key=lambda grade: abs(grade - noisy))
        words += [*rng.choice(FILLERS.split(), rng.integers(0, 2))]
        words += ["the", rng.choice(NOUNS.split()), "was", rng.choice(GRADES[nearest].split())]
    return " ".join(words)


def signal(rng: np.random.Generator, direction: np.ndarray, sentiment: float) -> np.ndarray:
    """Frames (T, d): noise plus sentiment * direction; 6 % of the signals have no frame."""
    frames = 0 if rng.random() < 0.06 else rng.integers(3, 20)
    x = rng.normal(size=(frames, len(direction))) + sentiment * direction
    x[rng.random(x.shape) < 0.002] = -np.inf  # as in COVAREP
    return x.astype(np.float32)


def synthetic(seed: int = 0, own: float = 0.0, noise: dict[str, float] = NOISE) -> Corpus:
    """Generate 900 / 200 / 200 segments: modality m shows s + own · o_m + noise_m · e_m.

    All modalities share s, drawn around the mood of the video; o_m and e_m are N(0, 1). The label
    is y = 3/2 s + own/2 · (o_a + o_v + o_l), clipped to ±3 and rounded to 0.1. So `own` sets the
    part of the label that one modality alone shows; at 0 all modalities show the same.
    """
    rng = np.random.default_rng(seed)
    direction = {"a": rng.normal(size=12) / 2, "v": rng.normal(size=8) / 2}
    splits, number = {}, 0
    for name, n in zip(SPLITS, (900, 200, 200), strict=True):
        segments = []
        while len(segments) < n:
            number, mood = number + 1, rng.normal(0, 0.6)
            video = f"synthetic{number:03}"
            for clip in range(min(rng.integers(2, 6), n - len(segments))):
                s = rng.normal(mood, 0.8)
                o = {m: own * rng.normal() for m in MODALITIES}
                shown = {m: s + o[m] + noise[m] * rng.normal() for m in MODALITIES}
                segment = {"id": f"{video}$_${clip}", "video": video}
                segment["raw_text"] = sentence(rng, shown["l"])
                for m, key in FRAMES.items():
                    segment[key] = signal(rng, direction[m], shown[m])
                    segment[f"{key}_lengths"] = len(segment[key])
                y = np.clip((3 * s + sum(o.values())) / 2, -3, 3)
                segments.append({**segment, "regression_labels": y.round(1)})
        part = {key: [segment[key] for segment in segments] for key in segments[0]}
        splits[name] = Split(part)
    what = "SYNTHETIC data, 900 / 200 / 200 segments of generated sentences and signals"
    return Corpus("synthetic", what, splits, {m: len(direction[m]) for m in FRAMES})


def main() -> None:
    parser = argparse.ArgumentParser(description="Describe a file of CMU-MOSI or CMU-MOSEI.")
    parser.add_argument("file", help="a pickle of MMSA, MulT, MISA or MAG-BERT, or a folder")
    parser.add_argument("--labels", help="CSV with the text of a file that has none (MulT)")
    arguments = parser.parse_args()
    parts = formats.read(arguments.file, arguments.labels)
    formats.survey(parts, arguments.file)
    Standardizer.fit(Split(next(iter(parts.values()))))


if __name__ == "__main__":
    sys.exit(plumbing.run(main))
