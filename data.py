"""CMU-MOSI and CMU-MOSEI for MSFN: a small loader. `load` is the entrance.

    python data.py FILE [--hash] [--labels CSV]    # what is in this file, or in this folder?

A corpus has three splits; a split has N segments; a segment is one sentence of a video: audio
frames ("a"), visual frames ("v"), words ("l") and a sentiment y in [-3, 3]. T is its number of
frames, d the number of features of a frame. `plumbing/formats.py` knows the files.
"""

import plumbing  # isort: skip (first: then Ctrl-C during the other imports is no traceback)
import argparse
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from plumbing import UserError, fetch, formats
from plumbing.encoders import tokenize
from plumbing.packing import first_fit

FRAMES = {"a": "audio", "v": "vision"}  # the modalities that are frames: keys in the files
SPLITS = ("train", "valid", "test")


# --- A corpus ------------------------------------------------------------------------------------


class Split:
    """N segments of a dict in MMSA's layout; their frames stay in the file until asked for."""

    def __init__(self, part, generated=False):
        self.part = part  # what `formats.read` gives of a split
        self.ids, self.text = part["id"], part["raw_text"]  # N str each, as the file spells them
        self.video = part["video"]  # N str, equal within a video; None if the file has no ids
        self.y = part["regression_labels"]  # (N,) float32
        self.generated = generated  # then columns are constant on purpose

    def __len__(self):
        return len(self.y)

    def frames(self, m, i):
        """Segment i of modality m without its padding: (T, d), T >= 0, as in the file."""
        x, lengths = self.part[FRAMES[m]], self.part[f"{FRAMES[m]}_lengths"]
        return formats.without_padding(x[i], lengths[i])


@dataclass
class Corpus:
    """Three splits, as corpus["train"], and what to know about them."""

    name: str  # "mosi", "mosei" or "synthetic"
    description: str  # what it is, in one sentence
    splits: dict
    dims: dict  # {"a": d_a, "v": d_v}, the number of features of a frame
    path: str | None = None  # the file or folder, absolute; None if generated
    fingerprint: str | None = None  # changes with the content; None if generated

    def __getitem__(self, split):
        return self.splits[split]


def load(dataset, path=None, labels=None):
    """The corpus to train on. Prints what is odd but can be trained. Raises UserError.

    dataset: "mosi", "mosei" or "synthetic", which needs no file
    path: a file or folder of any family; None takes the first under data/, or else fetches one
    labels: a CSV with the text of a file that has none; None takes *label*.csv beside the file
    """
    if dataset == "synthetic":
        if path:
            raise UserError(f"--dataset synthetic is generated and takes no file, but got {path}")
        return synthetic()
    path = path or fetch.data_file(dataset, "data")
    parts = formats.read(path, labels)
    for name in SPLITS:
        if name not in parts:
            raise UserError(f"{path} has no split {name!r}, only {', '.join(parts)}")
    name, description = formats.describe(parts, path)
    if name not in ("", dataset):
        raise UserError(f"--dataset {dataset} was asked for, but this is: {description}")
    splits = {name: Split(part) for name, part in parts.items()}
    dims = {m: parts["train"][key][0].shape[1] for m, key in FRAMES.items()}
    path = str(Path(path).resolve())
    return Corpus(dataset, description, splits, dims, path, formats.fingerprint(parts))


# --- From the corpus to the model ----------------------------------------------------------------


@dataclass
class Standardizer:
    """(x - mean) / std per column, by frames of the train split alone.

    NaN and infinities are missing: the statistics ignore them, then they become 0, which is the
    mean. A constant column becomes 0 as well. No result is beyond 10^6 standard deviations.
    """

    mean: dict  # "a", "v" -> (d,) float64
    std: dict  # "a", "v" -> (d,) float64; 0 for a constant column

    @classmethod
    def fit(cls, split, seed=0, sample=2000):
        """Statistics of at most `sample` segments, drawn by the seed: memory and time are bounded.

        Prints how many columns of a modality carry nothing, where they are not all empty.
        """
        rows = np.sort(np.random.default_rng(seed).permutation(len(split))[:sample])
        mean, std = {}, {}
        for m, key in FRAMES.items():
            count = total = square = 0.0
            for x in (finite(split.frames(m, i)) for i in rows):
                count, total = count + np.isfinite(x).sum(0), total + np.nansum(x, 0)
            mean[m] = total / np.maximum(count, 1)
            for x in (finite(split.frames(m, i)) for i in rows):
                square = square + np.nansum((x - mean[m]) ** 2, 0)
            std[m] = np.sqrt(square / np.maximum(count, 1))
            std[m][std[m] <= 1e-9 * np.abs(mean[m])] = 0  # what rounding leaves of a constant
            dead = np.count_nonzero(std[m] == 0)
            if dead and count.any() and not split.generated:
                print(f"note: {dead} of {len(std[m])} columns of {key} are constant or empty")
        return cls(mean, std)

    def __call__(self, m, x):
        """x: (T, d) of modality m, as in the file -> (T, d) float32, finite."""
        scale = np.zeros_like(self.std[m])
        with np.errstate(over="ignore", invalid="ignore"):
            np.divide(1, self.std[m], out=scale, where=self.std[m] > 0)
            z = (finite(x) - self.mean[m]) * scale
        return np.nan_to_num(np.clip(z, -1e6, 1e6)).astype(np.float32)

    def to_dict(self):
        return {k: {m: x.tolist() for m, x in by.items()} for k, by in vars(self).items()}

    @classmethod
    def from_dict(cls, d):
        """What `to_dict` gave. Raises one of many exceptions for what it could not have given."""
        made = cls(**{k: {m: np.array(by[m]) for m in FRAMES} for k, by in d.items()})
        for m, key in FRAMES.items():
            both = np.stack([made.mean[m], made.std[m]])
            finite = both.ndim == 2 and both.dtype == np.float64 and np.isfinite(both).all()
            if not finite or both[1].min() < 0:
                raise ValueError(f"it has no mean and standard deviation of each column of {key}")
        return made


def finite(x):
    """x in float64; what is infinite, or would be in float32, becomes NaN."""
    x = np.asarray(x, np.float64)
    return np.where(np.abs(x) < 3e38, x, np.nan)


class Batch(NamedTuple):
    """B segments, padded on the right to the longest of them.

    inputs: "a", "v" -> (features (B, T, d) float32, lengths (B,) int64), T >= 1, padding 0.0
            "l" -> (token ids (B, T) int64, lengths (B,) int64), T >= 1, padding the tokeniser's pad id
    y: (B,) float32; video: (B,) int64, equal within a video, -1 if unknown; ids: B str
    """

    inputs: dict
    y: torch.Tensor
    video: torch.Tensor
    ids: list

    def to(self, device):
        """All but the ids to the device; to CUDA, from pinned memory, without a wait."""
        # Not so to MPS, where such a copy may read memory that is free by then (pytorch #189690).
        move = {"device": device, "non_blocking": device.type == "cuda"}
        inputs = {m: tuple(part.to(**move) for part in parts) for m, parts in self.inputs.items()}
        return Batch(inputs, self.y.to(**move), self.video.to(**move), self.ids)


class Segments(torch.utils.data.Dataset):
    """A split as the model takes it. Texts are tokenised once; frames are cleaned when asked for.

    modalities: a subset of "avl"; the others become empty sequences
    segments[i]: ({"a": (T, d) float32, "v": likewise, "l": (T,) int64}, y, video, id)
    """

    def __init__(self, split, tokenizer, standardizer, modalities="avl"):
        self.split, self.standardizer, self.modalities = split, standardizer, modalities
        self.pad_id = tokenizer.pad_token_id or 0
        self.tokens = [[]] * len(split)
        if "l" in modalities:
            self.tokens = tokenize(tokenizer, split.text)
        self.video = [-1] * len(split)
        if split.video:
            number = {video: k for k, video in enumerate(dict.fromkeys(split.video))}
            self.video = [number[video] for video in split.video]

    def __len__(self):
        return len(self.split)

    def __getitem__(self, i):
        x = {"l": torch.tensor(self.tokens[i], dtype=torch.int64)}
        for m in FRAMES:
            frames = self.split.frames(m, i)[: None if m in self.modalities else 0]
            x[m] = torch.from_numpy(self.standardizer(m, frames))
        return x, float(self.split.y[i]), self.video[i], self.split.ids[i]

    def collate(self, items):
        """B items -> `Batch`."""
        x, y, video, ids = zip(*items, strict=True)
        inputs = {}
        for m in (*FRAMES, "l"):
            padding = 0.0 if m in FRAMES else self.pad_id
            padded = torch.nn.utils.rnn.pad_sequence([s[m] for s in x], True, padding)
            if padded.shape[1] == 0:  # no segment has this modality
                padded = padded.new_full((len(x), 1, *padded.shape[2:]), padding)
            inputs[m] = padded, torch.tensor([len(s[m]) for s in x])
        return Batch(inputs, torch.tensor(y), torch.tensor(video), list(ids))


def batches(video, batch_size, whole_videos, seed=None):
    """First fit: lists of indices with every segment in one of them, shuffled by the seed.

    video: N int, equal within a video, negative if unknown; seed: None leaves them in order
    whole_videos: no video is divided, since Eq. 13 attends within it; a longer one is a batch
    """
    groups = defaultdict(list)
    for i, v in enumerate(video):
        groups[v if whole_videos and v >= 0 else -1 - i].append(i)
    groups = list(groups.values())
    if seed is not None:
        order = np.random.default_rng(seed).permutation(len(groups))
        groups = [groups[k] for k in order]
    plan = first_fit([len(group) for group in groups], batch_size)
    return [[i for k in batch for i in groups[k]] for batch in plan]


# --- A corpus that needs no file -----------------------------------------------------------------

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


def sentence(rng, sentiment):
    """Two to four clauses, each with a word of the grade that is nearest, give or take a little."""
    clauses = []
    for _ in range(rng.integers(2, 5)):
        heard = sentiment + rng.normal(0, 0.2)
        grade = min(GRADES, key=lambda known: abs(known - heard))
        fillers = rng.choice(FILLERS.split(), rng.integers(0, 2))
        words = ["the", rng.choice(NOUNS.split()), "was", rng.choice(GRADES[grade].split())]
        clauses += [*fillers, *words]
    return " ".join(clauses)


def signal(rng, direction, sentiment):
    """(T, d) frames that lean towards `direction` with the sentiment; a few are empty, a few -inf."""
    frames = 0 if rng.random() < 0.06 else rng.integers(3, 20)
    x = rng.normal(size=(frames, len(direction))) + sentiment * direction
    x[rng.random(x.shape) < 0.002] = -np.inf
    x[:, -1] = 7  # constant columns are found in files, too
    return x.astype(np.float32)


def synthetic(seed=0):
    """900 / 200 / 200 generated segments. Each modality shows a third of y, with noise: a sentiment that
    all share and a part that the others lack, so that none can be taken away without a loss."""
    rng = np.random.default_rng(seed)
    direction = {"audio": rng.normal(size=12) / 2, "vision": rng.normal(size=8) / 2}
    splits, number = {}, 0
    for name, n in zip(SPLITS, (900, 200, 200), strict=True):
        part = {key: [] for key in ("id", "video", "raw_text", "audio", "vision")}
        y = []
        while len(y) < n:
            number, mood = number + 1, rng.normal(0, 0.3)
            for clip in range(min(rng.integers(2, 6), n - len(y))):
                shared, *own = rng.normal((mood, 0, 0, 0), (0.5, 1, 1, 1))
                part["video"].append(f"synthetic{number:03}")
                part["id"].append(f"synthetic{number:03}$_${clip}")
                part["raw_text"].append(sentence(rng, shared + own[2]))
                y.append(np.clip(round((3 * shared + sum(own)) / 2, 1), -3, 3))
                part["audio"].append(signal(rng, direction["audio"], shared + own[0]))
                part["vision"].append(signal(rng, direction["vision"], shared + own[1]))
        part["regression_labels"] = np.array(y, np.float32)
        for key in direction:
            part[f"{key}_lengths"] = np.array([len(x) for x in part[key]])
        splits[name] = Split(part, generated=True)
    what = "SYNTHETIC data, 900 / 200 / 200 segments of generated sentences and signals"
    return Corpus("synthetic", what, splits, {m: len(direction[key]) for m, key in FRAMES.items()})


# --- What is in a file? --------------------------------------------------------------------------


def main():
    parser = argparse.ArgumentParser(description="Says what is in a file of CMU-MOSI or CMU-MOSEI.")
    parser.add_argument("file", help="a pickle of MMSA, MulT, MISA or MAG-BERT, or a folder")
    parser.add_argument("--labels", help="CSV with the text of a file that has none (MulT)")
    parser.add_argument("--hash", action="store_true", help="its SHA-256: 13.7 GB take a minute")
    arguments = parser.parse_args()
    parts = formats.read(arguments.file, arguments.labels)
    formats.survey(parts)
    if arguments.hash:
        print(fetch.compared(arguments.file))
    Standardizer.fit(Split(next(iter(parts.values()))))
    print(formats.describe(parts, arguments.file)[1])


if __name__ == "__main__":
    sys.exit(plumbing.run(main))
