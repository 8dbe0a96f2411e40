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
from pathlib import Path
from typing import Any

import numpy as np

from plumbing import UserError, captions, explained, pickles, printable

SPELLED = {"train": "train", "valid": "valid", "dev": "valid", "val": "valid", "test": "test"}
FRAMES = {"a": "audio", "v": "vision"}  # modalities that are frames: the key of each in the files
LABELS = ("regression_labels", "labels")  # MMSA's, MulT's; a file with both is MMSA's
CORPORA = {  # segments and videos in the published versions, at least and at most
    "mosi": ((2_195, 2_199), (93, 93)),
    "mosei": ((22_400, 23_500), (3_000, 4_000)),
}
TEXTS = ("raw_text", "text_bert")
TEXT = (str, bytes, memoryview)  # of a pickle; memoryview: long bytes
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
    for name, part in splits_of(path).items():
        where = f"{path}, split {name!r}"
        with explained(f"{where} does not have the form of any known family"):
            parts[name] = checked(from_misa(part) if isinstance(part, list) else part, where)
    reduce_labels(parts, path)
    silent = {name: part for name, part in parts.items() if "raw_text" not in part}
    if silent and (table := labels or captions.beside(path)):
        captions.add(silent, path, table)
    elif labels:
        print(f"note: the file has its own text, so {printable(str(labels))} is not read")
    else:
        for name, part in silent.items():
            part["token_ids"] = captions.token_ids_of(part, f"{path}, split {name!r}")
            part["raw_text"] = [""] * len(part["id"])
    for key in FRAMES.values():
        add_absent(parts, key, path)
    return parts


def splits_of(path: str | Path) -> dict[str, Any]:
    """{"train" | "valid" | "test": the content} of a file, or of the files of those names."""
    if os.path.isdir(path):
        files = {name: f"{path}/{name}.pkl" for name in SPELLED}
        content = {name: pickles.read(f) for name, f in files.items() if os.path.exists(f)}
        if not content:
            raise UserError(f"{path} is a folder without train.pkl, dev.pkl and test.pkl")
    else:
        content = pickles.read(path)
    keys = set(content) if isinstance(content, dict) else set()
    names = [name for name in SPELLED if name in keys]
    if isinstance(content, list) or (not names and keys & {*FRAMES.values(), *TEXTS}):
        return {"test": content}
    if not names:
        what = printable(str(sorted(keys) or type(content).__name__))
        raise UserError(f"{path} has no splits train, valid and test: {what}")
    valid = [name for name in names if SPELLED[name] == "valid"]
    if len(valid) > 1:
        raise UserError(f"{path} has {' and '.join(valid)}: which of them is the valid split?")
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


def checked(part: dict[str, Any], where: str) -> dict[str, Any]:
    """A split of MMSA's or MulT's family in the layout of `read`; labels are (N, 1) or (N, 7).

    Text, audio and vision may still be absent.
    """
    label = next((key for key in LABELS if key in part), None)
    lengths = {key: f"{key}_lengths" for key in FRAMES.values()}
    known = (*LABELS, *lengths, *lengths.values(), "id", *TEXTS)
    if isinstance(part.get("raw_text"), TEXT):  # one clip is a split of one segment
        part = part | {key: [part[key]] for key in known if key in part}
    sizes = {}
    for key in known:
        if isinstance(part.get(key), np.ndarray | list | tuple):
            sizes[key] = len(part[key])
        elif key in part:  # a string has a length, too
            raise UserError(f"{where}, key {key!r}: a {type(part[key]).__name__}, not N values")
    n = max(sizes.values(), default=0)
    if set(sizes.values()) != {n} or n == 0:
        raise UserError(f"{where}: every key needs the same N, at least 1, but they have {sizes}")
    result = {"video": None, "token_ids": None, "notes": []}
    if "id" in part:
        result["id"] = [id_of(value) for value in part["id"]]
        result["video"] = [captions.video_and_clip(id)[0] for id in result["id"]]
    else:
        result["id"] = [f"segment {i}" for i in range(n)]
        result["notes"].append("no ids, so Eq. 13 knows no videos: each segment is alone")
    if "raw_text" in part:
        result["raw_text"] = texts_of(part["raw_text"], f"{where}, key 'raw_text'")
        if empty := sum(not text.strip() for text in result["raw_text"]):
            result["notes"].append(f"{empty:,} of {n:,} texts are empty")
    y = numbers(part.get(label, [None] * n), f"{where}, key {label!r}", (1, 7))
    if len(wrong := np.flatnonzero(np.abs(y[:, 0]) > 3.001)):
        what = f"segment {wrong[0]} has {y[wrong[0], 0]}, outside [-3, 3]"
        raise UserError(f"{where}, key {label!r}: {what}")
    result["regression_labels"] = y
    for key, length in lengths.items():
        x = numbers(part.get(length, [None] * n), f"{where}, key {length!r}", (1,))[:, 0]
        result[length] = np.where((x >= 0) & (x < 1e9), x, np.nan)
        if key in part:
            result[key] = frames_of(part[key], f"{where}, key {key!r}")
    return part | result


def numbers(values: Any, where: str, sizes: tuple[int, ...]) -> np.ndarray:
    """(N, k) float64 of N numbers, or of N arrays of k numbers, k in `sizes`; None becomes NaN."""
    rows = []
    for i, value in enumerate(values):
        row = np.asarray(math.nan if value is None else value)
        if row.dtype.kind not in "biuf" or row.size not in sizes:
            what = f"segment {i} has the shape {row.shape} and the type {row.dtype}"
            raise UserError(f"{where}: {what}, not {' or '.join(map(str, sizes))} numbers")
        sizes = (row.size,)  # of every segment
        rows.append(row.ravel())
    return np.array(rows, np.float64)


def reduce_labels(parts: Parts, path: str | Path) -> None:
    """Labels (N, 1) or (N, 7) -> (N,): the sentiment, which comes before MOSEI's six emotions.

    Seven numbers can also be classes or other emotions: among sentiments some are negative or no
    integers, emotions are in [0, 3], and a row of probabilities sums to 1.
    """
    wide = [part["regression_labels"] for part in parts.values()]
    wide = np.concatenate([y for y in wide if y.shape[1] == 7] or [np.zeros((0, 7))])
    first, others = wide[:, 0], wide[:, 1:]
    sentiment = ((first < 0) | (first % 1 != 0)).any() and (np.abs(wide.sum(1) - 1) > 1e-3).any()
    if len(wide) and not (sentiment and ((others >= 0) & (others <= 3)).all()):
        what = f"{sorted(set(first.tolist()))[:5]}, then {others.min()} to {others.max()}"
        raise UserError(
            f"{path}: labels of seven numbers must be a sentiment and six emotions in [0, 3], "
            f"but these look like classes or emotions: first {what}"
        )
    for part in parts.values():
        part["regression_labels"] = part["regression_labels"][:, 0].astype(np.float32)


def frames_of(x: Any, where: str) -> np.ndarray | list[np.ndarray]:
    """An array (N, T, d), as it is, or a list of N arrays (T, d). A vector (d,) is one frame."""
    if isinstance(x, np.ndarray) and x.dtype.kind in "biuf" and x.ndim in (2, 3) and x.shape[-1]:
        return x if x.ndim == 3 else x[:, None]
    segments = []
    for i, value in enumerate(x):
        frames = np.asarray(None if isinstance(value, memoryview) else value)
        frames = frames[None] if frames.ndim == 1 else frames
        if frames.dtype.kind not in "biuf" or frames.ndim != 2 or frames.shape[1] == 0:
            what = f"segment {i} has the shape {frames.shape} and the type {frames.dtype}"
            raise UserError(f"{where}: {what}, not numbers (T, d)")
        segments.append(frames)
    return segments


def add_absent(parts: Parts, key: str, path: str | Path) -> None:
    """Check that all segments have the same columns; without any, the modality is empty."""
    widths = {x.shape[1] for part in parts.values() for x in part.get(key, ())}
    if len(widths) > 1:
        what = f"the number of columns of {key!r} differs between segments"
        raise UserError(f"{path}: {what}: {printable(str(sorted(widths)[:9]))}")
    for name, part in parts.items():
        if key not in part:
            keys = printable(", ".join(sorted(part.keys() - {"notes", "video", "token_ids"})))
            if widths:
                raise UserError(f"{path}, split {name!r} has no key {key!r}, only {keys}")
            part["notes"].append(f"no key {key!r}, so that modality is empty (keys: {keys})")
            part[key] = np.zeros((len(part["id"]), 1, 1), np.float32)
            part[f"{key}_lengths"] = np.zeros(len(part["id"]))


def texts_of(values: Any, where: str) -> list[str]:
    """N sentences, of N sentences or of N lists of words."""
    texts = []
    for i, value in enumerate(values):
        with explained(f"{where}: segment {i} is not text"):
            words = value if isinstance(value, list | tuple | np.ndarray) else [value]
            texts.append(" ".join([text_of(word) for word in words]))
    return texts


def text_of(value: Any) -> str:
    if isinstance(value, bytes | memoryview):
        return bytes(value).decode("utf-8")
    if not isinstance(value, str):
        raise TypeError(f"it holds a value of type {type(value).__name__}")
    return str(value)  # numpy's strings, too


def id_of(value: Any) -> str:
    """An id of text, bytes, a number, or a row of one of them or of (video, start, end)."""
    row = value.ravel().tolist() if isinstance(value, np.ndarray) else value
    row = row if isinstance(row, list | tuple) else [row]
    if len(row) == 3:
        return f"{text_of(row[0])}[{float(row[1]):.3f}:{float(row[2]):.3f}]"
    if len(row) != 1:
        raise TypeError("an id is neither text nor a row of video, start and end")
    return str(row[0]) if isinstance(row[0], int | float | np.number) else text_of(row[0])


def without_padding(x: np.ndarray, n: float) -> np.ndarray:
    """x: (T, d) of a file; n: its length, or NaN -> a view of the true frames, (t, d), t >= 0.

    The padding is on the side with more frames of zeros. A length beyond T is ignored. Frames of
    zeros within the length stay: MISA standardizes each segment, which makes a single frame zero.
    """
    live = np.flatnonzero((np.isfinite(x) & (x != 0)).any(1))
    left, right = (live[0], len(x) - 1 - live[-1]) if len(live) else (0, len(x))
    padding = len(x) - int(n) if n <= len(x) else max(left, right)
    return x[padding:] if right < min(left, padding) else x[: len(x) - padding]


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
    segments = sum(len(part["id"]) for part in parts.values())
    videos = {video for part in parts.values() for video in part["video"] or []}
    for name, (n, v) in CORPORA.items():
        if n[0] <= segments <= n[1] and (not videos or v[0] <= len(videos) <= v[1]):
            return name
    stem = printable(Path(path).resolve().stem, 40)
    return "another corpus" if stem.lower() in (*CORPORA, "synthetic") else stem


def describe(parts: Parts, path: str | Path) -> str:
    """One sentence: which corpus, how many segments and columns."""
    sizes = [len(part["id"]) for part in parts.values()]
    name = corpus_name(parts, path)
    name = name.upper() if name in CORPORA else "data that are neither MOSI nor MOSEI as a whole"
    what = f"{printable(str(path))}: {name}, {' / '.join(f'{n:,}' for n in sizes)} segments"
    what += f" ({' / '.join(parts)})"
    part = next(iter(parts.values()))
    for key in FRAMES.values():
        padded = zip(part[key], part[f"{key}_lengths"], strict=True)
        if any(len(without_padding(x, n)) for x, n in padded):
            what += f", {part[key][0].shape[1]} columns of {key}"
        else:
            what += f", no {key}"
    return what


def fingerprint(parts: Parts) -> str:
    """SHA-256 over ids, text, labels, lengths and shapes, and over each split's first frames."""
    digest = hashlib.sha256()
    for name, part in parts.items():
        text = part["raw_text"] if part["token_ids"] is None else part["token_ids"]
        digest.update(repr((name, part["id"], text)).encode())
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
            padded = zip(part[key], part[f"{key}_lengths"], strict=True)
            steps = [len(without_padding(x, n)) for x, n in padded]
            print(f"    {key}: {min(steps)} to {max(steps)} frames, {steps.count(0):,} empty")
