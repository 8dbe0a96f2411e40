"""The three families of files of processed MOSI and MOSEI, in one layout: MMSA's.

MMSA (also Self-MM, ALMT, ConFEDE, DMD, EMT, LNLN): a dict of splits; a split is a dict of
    raw_text           N sentences
    text_bert          (N, 3, L): token ids, attention mask, token types
    audio, vision      (N, T, d), padded with zeros
    audio_lengths, vision_lengths   (N,) frames without padding; absent in aligned files
    regression_labels  (N,) sentiment in [-3, 3]
    id                 N ids, video$_$clip
MulT (also MMIM): the same with `labels` (N, 1, 1) and only GloVe vectors for the text. The text
    comes from a CSV of video_id, clip_id, text, label and, for ids that hold times, start.
MISA (also MAG-BERT): a split is a list of ((words, vision (T, 47), audio (T, 74)[, actual words]),
    label (1, 1) or (1, 7) with sentiment first, id); one file, or a folder of train, dev and test.
One clip, as feature extractors write it: a dict of raw_text, audio (T, d), vision (T, d).

Traps in real files: padding on the left or on the right, often without lengths; lengths of 0,
beyond T, negative, NaN; -inf and NaN among COVAREP's features; keys and ids as bytes; ids as rows
of video, start and end; float64; Fortran order; `dev` for `valid`; text IN CAPITALS; clips that
count from 0 or from 1; segments without a frame or without a word; utterances as vectors (N, d).
"""

import hashlib
import itertools
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from plumbing import UserError, captions, explained, pickles, printable

SPELLED = {"train": "train", "valid": "valid", "dev": "valid", "val": "valid", "test": "test"}
FRAMES = {"a": "audio", "v": "vision"}  # modalities that are frames: the key of each in the files
LENGTHS = ("audio_lengths", "vision_lengths")
KEYS = ("raw_text", "text_bert", "id", "regression_labels", *FRAMES.values(), *LENGTHS)
CORPORA = {  # numbers of segments and of videos in the published versions
    "mosi": (range(2_195, 2_200), range(93, 94)),
    "mosei": (range(22_400, 23_501), range(3_000, 4_001)),
}
Parts = dict[str, dict[str, Any]]


def read(path: str | Path, labels: str | Path | None = None) -> Parts:
    """A file or folder of any family -> {"train" | "valid" | "test": a dict in MMSA's layout}.

    Only the splits that the file has. In each:
        id                 N str
        video              N str, or None if the file has no ids
        raw_text           N str, empty if the file has only token ids
        token_ids          N lists of ids if the file has no text, else None
        regression_labels  (N,) float32 in [-3, 3], NaN where there is no label
        audio, vision      an array (N, T, d) or a list of N arrays (T, d), as they are in the file
        audio_lengths, vision_lengths   (N,) float64, NaN if unknown, 0 for an absent modality
        notes              what is odd, in sentences
    Other keys stay as they are.

    labels: the CSV of a file without text; None takes *label*.csv beside the file
    Raises UserError: one sentence with file, split, key and what is wrong.
    """
    parts = {}
    for name, content in splits_of(path).items():
        where = f"{path}, split {name!r}"
        with explained(f"{where} does not have the form of any known family"):
            parts[name] = checked(content, where)
    reduce_labels(parts, path)
    silent = {name: part for name, part in parts.items() if "raw_text" not in part}
    if silent and (table := labels or captions.beside(path)):
        captions.add(silent, path, table)
    elif silent:
        for name, part in silent.items():
            use_token_ids(part, f"{path}, split {name!r}")
    elif labels:
        print(f"note: the file has its own text, so {printable(str(labels))} is not read")
    for key in FRAMES.values():
        widths = {x.shape[1] for part in parts.values() for x in part[key]}
        if len(widths) > 1:
            what = f"the number of columns of {key!r} differs (it is 1 in a split without {key!r})"
            raise UserError(f"{path}: {what}: {sorted(widths)[:9]}")
    return parts


def splits_of(path: str | Path) -> dict[str, Any]:
    """{"train" | "valid" | "test": the content} of a file, or of the files of those names."""
    if os.path.isdir(path):
        files = [f for f in Path(path).iterdir() if f.suffix.lower() in (".pkl", ".pickle")]
        content = {f.stem: pickles.read(f) for f in files if f.stem in SPELLED}
    else:
        content = pickles.read(path)
    keys = set(content) if isinstance(content, dict) else set()
    names = [name for name in SPELLED if name in keys]
    if isinstance(content, list) or (not names and keys & set(KEYS)):
        return {"test": content}
    if not names:
        raise UserError(f"{path} has no splits train, valid and test, but the keys {sorted(keys)}")
    valid = [name for name in names if SPELLED[name] == "valid"]
    if len(valid) > 1:
        raise UserError(f"{path} has {' and '.join(valid)}: keep the one that is the valid split")
    return {SPELLED[name]: content[name] for name in names}


def from_misa(samples: list) -> dict[str, Any]:
    """MISA's and MAG-BERT's ((words, vision, audio[, actual words]), label, id), in MMSA's keys."""
    inputs = [sample[0] for sample in samples]
    return {
        "id": [sample[2] for sample in samples],
        "raw_text": [x[3] if len(x) > 3 else x[0] for x in inputs],
        "vision": [x[1] for x in inputs],
        "audio": [x[2] for x in inputs],
        "vision_lengths": [len(x[1]) for x in inputs],
        "audio_lengths": [len(x[2]) for x in inputs],
        "regression_labels": [sample[1] for sample in samples],
    }


def checked(content: dict[str, Any] | list, where: str) -> dict[str, Any]:
    """A split of any family in the layout of `read`; the text may still be absent."""
    part = from_misa(content) if isinstance(content, list) else content
    if "labels" in part:
        part = {"regression_labels": part["labels"], **part}  # a file with both is MMSA's
    known = [key for key in KEYS if key in part]
    if isinstance(part.get("raw_text"), str | bytes | memoryview):  # one clip
        part = {key: [part[key]] for key in known}
    sizes = {key: len(part[key]) for key in known}
    n = max(sizes.values(), default=0)
    if n == 0 or set(sizes.values()) != {n}:
        raise UserError(f"{where}: every key needs the same N, at least 1, but they have {sizes}")
    unknown = [None] * n
    part = {"regression_labels": unknown, **dict.fromkeys(LENGTHS, unknown), **part}
    result = {"video": None, "token_ids": None, "notes": []}
    if "id" in part:
        result["id"] = each(part, "id", id_of, where)
        result["video"] = [captions.video_and_clip(id)[0] for id in result["id"]]
    else:
        result["id"] = [f"segment {i}" for i in range(n)]
        result["notes"].append("no ids, so Eq. 13 knows no videos: each segment is alone")
    if "raw_text" in part:
        result["raw_text"] = each(part, "raw_text", text_of, where)
        if empty := sum(not text.strip() for text in result["raw_text"]):
            result["notes"].append(f"{empty:,} of {n:,} texts are empty")
    labels = each(part, "regression_labels", label_of, where)
    result["regression_labels"] = np.stack(labels)  # (N, 1) or (N, 7)
    for key in FRAMES.values():
        result[f"{key}_lengths"] = np.array(each(part, f"{key}_lengths", number_of, where))
        x = part.get(key)
        if x is None:
            result["notes"].append(f"no key {key!r}, so that modality is empty")
            result[key], result[f"{key}_lengths"] = np.zeros((n, 1, 1), np.float32), np.zeros(n)
        elif isinstance(x, np.ndarray) and x.ndim == 3 and x.dtype.kind in "biuf" and x.shape[2]:
            result[key] = x
        else:
            result[key] = each(part, key, frames_of, where)
    return part | result


def reduce_labels(parts: Parts, path: str | Path) -> None:
    """Labels (N, 1) or (N, 7) -> (N,): the sentiment, which comes before MOSEI's six emotions.

    Seven numbers can also be classes or probabilities. Among sentiments some are negative or not
    whole, and not every row sums to 1.
    """
    rows = [row for part in parts.values() for row in part["regression_labels"] if len(row) == 7]
    if rows:
        first = np.array(rows)[:, 0]
        if not ((first < 0) | (first % 1 != 0)).any() or np.allclose(np.sum(rows, 1), 1):
            raise UserError(
                f"{path}: labels of seven numbers must be a sentiment and six emotions, but these "
                f"look like classes or emotions, such as {rows[0].tolist()}"
            )
    for part in parts.values():
        part["regression_labels"] = part["regression_labels"][:, 0].astype(np.float32)


def use_token_ids(part: dict[str, Any], where: str) -> None:
    """Take the token ids of text_bert for a split without text. Raises UserError."""
    if "text_bert" not in part:
        columns = ", ".join(captions.COLUMNS)
        raise UserError(f"{where} has no text: name a CSV of {columns} with --labels")
    part["token_ids"] = each(part, "text_bert", token_ids_of, where)
    part["raw_text"] = [""] * len(part["id"])
    part["notes"].append("no text, so the token ids of text_bert are used")


def each(part: dict[str, Any], key: str, convert: Callable[[Any], Any], where: str) -> list:
    """The N values of a key, each converted. Raises UserError, which names the segment."""
    results = []
    for i, value in enumerate(part[key]):
        with explained(f"{where}, key {key!r}, segment {i}"):
            results.append(convert(value))
    return results


def text_of(value: Any) -> str:
    """A sentence, or its words."""
    if isinstance(value, list | tuple | np.ndarray):
        return " ".join([text_of(word) for word in value])
    if isinstance(value, bytes | memoryview):
        return bytes(value).decode("utf-8")
    if not isinstance(value, str):
        raise TypeError(f"not text, but a value of type {type(value).__name__}")
    return str(value)  # numpy's strings, too


def token_ids_of(value: Any) -> list[int]:
    """The token ids in (3, L): ids, attention mask, token types."""
    x = np.asarray(value, float)
    if x.ndim != 2 or len(x) != 3 or (x != x.round().clip(0, 1 << 31)).any():
        raise ValueError(f"not ids, mask and types in whole numbers, but the shape {x.shape}")
    return x[0][x[1] > 0].astype(int).tolist()


def id_of(value: Any) -> str:
    """An id of text, bytes, a number, or a row of one of them or of (video, start, end)."""
    row = np.ravel(value).tolist() if isinstance(value, np.ndarray | list | tuple) else [value]
    if len(row) == 3:
        return f"{text_of(row[0])}[{float(row[1]):.3f}:{float(row[2]):.3f}]"
    if len(row) != 1:
        raise TypeError("neither text nor a row of video, start and end")
    return str(row[0]) if isinstance(row[0], int | float | np.number) else text_of(row[0])


def number_of(value: Any) -> float:
    """A number, also as an array of one; NaN for None."""
    return math.nan if value is None else np.asarray(value, float).item()


def label_of(value: Any) -> np.ndarray:
    """(1,): a sentiment; or (7,): a sentiment, then MOSEI's six emotions."""
    y = np.array(math.nan if value is None else value, float).ravel()
    if y.size not in (1, 7):
        raise ValueError(f"{y.size} numbers, not a sentiment, nor a sentiment and six emotions")
    if abs(y[0]) > 3.001 or (y[1:] < 0).any() or (y[1:] > 3).any():
        raise ValueError(f"{y.tolist()}: a sentiment is in [-3, 3], emotions are in [0, 3]")
    return y


def frames_of(value: Any) -> np.ndarray:
    """(T, d); a vector (d,) is one frame."""
    x = np.asarray(value)
    x = x[None] if x.ndim == 1 else x
    if x.dtype.kind not in "biuf" or x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(f"not numbers (T, d), but the shape {x.shape} and the type {x.dtype}")
    return x


def without_padding(x: np.ndarray, n: float) -> np.ndarray:
    """x: (T, d) of a file; n: its length, or NaN -> a view of the true frames, (t, d), t >= 0.

    The padding is on the side with more frames of zeros. An impossible length is ignored. Frames of
    zeros within the length stay: MISA standardizes each segment, which makes a single frame zero.
    """
    live = np.flatnonzero((np.isfinite(x) & (x != 0)).any(1))
    left, right = (live[0], len(x) - 1 - live[-1]) if len(live) else (0, len(x))
    padding = len(x) - int(n) if 0 <= n <= len(x) else max(left, right)
    return x[padding:] if right < min(left, padding) else x[: len(x) - padding]


def true_lengths(part: dict[str, Any], key: str) -> Iterator[int]:
    """The number of frames of each segment, without padding."""
    for x, n in zip(part[key], part[f"{key}_lengths"], strict=True):
        yield len(without_padding(x, n))


# ── What is in a file? ────────────────────────────────────────────────────────────────────────────


def print_notes(parts: Parts) -> None:
    """What is odd but can be trained."""
    for note in dict.fromkeys(note for part in parts.values() for note in part["notes"]):
        names = [name for name, part in parts.items() if note in part["notes"]]
        print(f"note: {', '.join(names)}: {note}")
    for a, b in itertools.combinations(parts, 2):
        if both := set(parts[a]["video"] or []) & set(parts[b]["video"] or []):
            such = f"such as {printable(min(both))}"
            print(f"note: LEAK: {len(both)} videos are in {a} and in {b} as well, {such}")


def corpus_name(parts: Parts, path: str | Path) -> str:
    """ "mosi" or "mosei" if the file has as many segments and videos; else the file's own name."""
    n = sum(len(part["id"]) for part in parts.values())
    videos = {video for part in parts.values() for video in part["video"] or []}
    for name, (segments_published, videos_published) in CORPORA.items():
        if n in segments_published and len(videos) in videos_published:
            return name
    stem = printable(Path(path).resolve().stem, 40)
    return "another corpus" if stem.lower() in (*CORPORA, "synthetic") else stem


def describe(parts: Parts, path: str | Path) -> str:
    """One sentence: which corpus, how many segments and columns."""
    name = corpus_name(parts, path)
    name = name.upper() if name in CORPORA else "data that are neither MOSI nor MOSEI as a whole"
    sizes = " / ".join(f"{len(part['id']):,}" for part in parts.values())
    what = f"{printable(str(path))}: {name}, {sizes} segments ({' / '.join(parts)})"
    part = next(iter(parts.values()))
    for key in FRAMES.values():
        is_empty = not any(true_lengths(part, key))
        what += f", no {key}" if is_empty else f", {part[key][0].shape[1]} columns of {key}"
    return what


def fingerprint(parts: Parts) -> str:
    """SHA-256 over ids, text, labels, lengths and shapes, and over each split's first frames."""
    digest = hashlib.sha256()
    for name, part in parts.items():
        digest.update(repr((name, part["id"], part["token_ids"] or part["raw_text"])).encode())
        digest.update(part["regression_labels"].tobytes())
        for key in FRAMES.values():
            digest.update(repr([x.shape for x in part[key]]).encode())
            digest.update(part[f"{key}_lengths"].tobytes() + part[key][0].tobytes())
    return digest.hexdigest()


def survey(parts: Parts, path: str | Path) -> None:
    """Print a summary, what is odd, and for each split its keys, labels and lengths."""
    print(describe(parts, path))
    print_notes(parts)
    for name, part in parts.items():
        print(f"{name}: {len(part['id']):,} segments, {len(set(part['video'] or []))} videos")
        for key, x in part.items():
            size = getattr(x, "shape", len(x) if hasattr(x, "__len__") else "")
            print(f"    {printable(key):22} {size} {getattr(x, 'dtype', type(x).__name__)}")
        labels = part["regression_labels"]
        labels = labels[np.isfinite(labels)]
        print(f"    {len(labels):,} labels, {min(labels, default=0)} to {max(labels, default=0)}")
        for key in FRAMES.values():
            frames = list(true_lengths(part, key))
            print(f"    {key}: {min(frames)} to {max(frames)} frames, {frames.count(0):,} empty")
