"""The three families of files of processed MOSI and MOSEI, in one layout: MMSA's.

MMSA (also Self-MM, ALMT, ConFEDE, DMD, EMT, LNLN): a dict of splits; a split is a dict of
    raw_text           N sentences
    audio, vision      (N, T, d), padded with zeros
    audio_lengths, vision_lengths   (N,) frames that are no padding; absent in aligned files
    regression_labels  (N,) sentiment in [-3, 3]
    id                 N ids, video$_$clip
MulT (also MMIM): the same with `labels` (N, 1, 1) and no sentence, only GloVe vectors. The text comes
    from a CSV of video_id, clip_id, text, label and, for ids that hold times, start.
MISA (also MAG-BERT): a split is a list of ((words, vision (T, 47), audio (T, 74)[, actual words]),
    label (1, 1) or (1, 7) with sentiment first, id); one file, or a folder of train, dev and test.

Traps seen in them: the padding is on the left or on the right, and is not always told; lengths of 0,
beyond T, negative, NaN; -inf and NaN among COVAREP's features; keys and ids as bytes; ids as rows of
video, start and end; float64; Fortran order; `dev` for `valid`; text IN CAPITALS; clips that count
from 0 or from 1; segments without a frame or without a word.
"""

import csv
import hashlib
import itertools
import math
import os
import re
from collections import Counter
from pathlib import Path

import numpy as np

from plumbing import UserError, explained, pickles, printable, regular

SPELLED = {"train": "train", "valid": "valid", "dev": "valid", "val": "valid", "test": "test"}
FRAMES = {"a": "audio", "v": "vision"}  # modalities that are frames: the key of each in the files
WIDTHS = {  # MOSI's 5 and 20 are selections of them (CMU-MultimodalSDK, issue 172): columns
    5: "5 of COVAREP's 74",  # 1, 3, 6, 25, 60
    20: "20 of FACET's 47",  # 0, 2, 5, 10-12, 14, 17, 20-22, 24, 25, 29-32, 36, 37, 40
    35: "FACET 4.2's 35",
    47: "FACET 4.1's 47",
    74: "COVAREP's 74",
}


def read(path, labels=None):
    """A file or folder of any family -> {"train" | "valid" | "test": a dict in MMSA's layout}.

    Splits that the file lacks are lacking. Always there: raw_text, N str; regression_labels,
    (N,) float32 in [-3, 3]; audio and vision, an array (N, T, d) or a list of N arrays (T, d), as
    they are in the file; their lengths, (N,) float64, NaN where the file does not say; id, N str;
    video, N str, or None if the file has no ids. What else a split holds stays as it is.

    labels: the CSV of a file without text; None takes *label*.csv beside the file
    Raises UserError: one sentence with file, split, key and what is wrong.
    """
    parts = {}
    for name, part in splits_of(path).items():
        where = f"{path}, split {name!r}"
        with explained(f"{where} is not as any family has it"):
            parts[name] = checked(from_misa(part) if isinstance(part, list) else part, where)
    silent = [name for name, part in parts.items() if "raw_text" not in part]
    if labels and not silent:
        print(f"note: the file has its own text, so {printable(str(labels))} is not read")
    if silent:
        add_text({name: parts[name] for name in silent}, path, labels)
    print_oddities(parts)
    widths = {
        (key, x.shape[1]) for part in parts.values() for key in FRAMES.values() for x in part[key]
    }
    if len(widths) != len(FRAMES):
        shown = printable(str(sorted(widths)[:9]))
        raise UserError(f"{path}: segments differ in their number of columns: {shown}")
    return parts


def splits_of(path):
    """{"train" | "valid" | "test": what the file, or the folder's file of that name, holds}."""
    if os.path.isdir(path):
        names = [name for name in SPELLED if os.path.exists(f"{path}/{name}.pkl")]
        if not names:
            raise UserError(f"{path} is a folder without train.pkl, dev.pkl and test.pkl")
    else:
        content = pickles.read(path)
        names = [name for name in SPELLED if isinstance(content, dict) and name in content]
        if not names:
            found = list(content)[:9] if isinstance(content, dict) else type(content).__name__
            raise UserError(f"{path} has no splits train, valid and test: {printable(str(found))}")
    twice = [name for name in names if SPELLED[name] == "valid"]
    if len(twice) > 1:
        raise UserError(f"{path} has {' and '.join(twice)}: which of them is the valid split?")
    if os.path.isdir(path):
        return {SPELLED[name]: pickles.read(f"{path}/{name}.pkl") for name in names}
    return {SPELLED[name]: content[name] for name in names}


def from_misa(samples):
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


def checked(part, where):
    """A split of MMSA's or MulT's family as `read` gives it, but for the text that MulT's lacks."""
    label = "labels" if "labels" in part else "regression_labels"  # MulT's, MMSA's
    if {"labels", "regression_labels"} <= set(part):
        raise UserError(
            f"{where} has labels and regression_labels: which of them is the sentiment?"
        )
    for key in (*FRAMES.values(), label):
        if key not in part:
            raise UserError(f"{where} has no key {key!r}, only {printable(', '.join(part))}")
    optional = ("id", "raw_text", "audio_lengths", "vision_lengths")
    keys = [key for key in (*FRAMES.values(), label, *optional) if key in part]
    for key in keys:
        if not isinstance(part[key], np.ndarray | list | tuple):  # a string has a length, too
            raise UserError(f"{where}, key {key!r}: a {type(part[key]).__name__}, not N values")
    sizes = {key: len(part[key]) for key in keys}
    n = sizes[label]
    if set(sizes.values()) != {n} or n == 0:
        raise UserError(f"{where}: every key needs the same N, at least 1, but they have {sizes}")
    made = {"id": [f"segment {i}" for i in range(n)], "video": None}
    if "id" in part:
        made["id"] = [id_of(value) for value in part["id"]]
        made["video"] = [video_and_clip(id)[0] for id in made["id"]]
    if "raw_text" in part:
        made["raw_text"] = texts_of(part["raw_text"], f"{where}, key 'raw_text'")
    y = numbers(part[label], f"{where}, key {label!r}")
    wrong = np.flatnonzero(~(np.abs(y) <= 3.001))  # NaN, too
    if len(wrong):
        raise UserError(
            f"{where}, key {label!r}: segment {wrong[0]} has {y[wrong[0]]}, outside [-3, 3]"
        )
    made["regression_labels"] = y.astype(np.float32)
    for key in FRAMES.values():
        check_frames(part[key], f"{where}, key {key!r}")
        lengths = numbers(
            part.get(f"{key}_lengths", [math.nan] * n), f"{where}, key '{key}_lengths'"
        )
        made[f"{key}_lengths"] = np.where((lengths >= 0) & (lengths < 1e9), lengths, np.nan)
    return part | made


def print_oddities(parts):
    """What is odd but can be trained."""
    for name, part in parts.items():
        if empty := sum(not text.strip() for text in part["raw_text"]):
            print(f"note: {name}: {empty:,} of {len(part['raw_text']):,} texts are empty")
        if part["video"] is None:
            print(f"note: {name}: no ids, so Eq. 13 knows no videos: each segment is alone")
    for a, b in itertools.combinations(parts, 2):
        if both := set(parts[a]["video"] or []) & set(parts[b]["video"] or []):
            such = f"such as {printable(min(both))}"
            print(f"note: LEAK: {len(both)} videos are in {a} and in {b} as well, {such}")


def numbers(values, where):
    """(N,) float64 of N numbers, or of N arrays: MOSEI's labels are sentiment and six emotions."""
    found = []
    for i, value in enumerate(values):
        if isinstance(value, np.ndarray) and value.size in (1, 7):
            value = value.flat[0]
        if not isinstance(value, int | float | np.number):
            raise UserError(f"{where}: segment {i} has no number, but a {type(value).__name__}")
        found.append(float(value))
    return np.array(found)


def check_frames(x, where):
    """UserError unless x is an array (N, T, d), or a list of N arrays (T, d), of numbers."""
    for i, frames in enumerate(x):
        if not isinstance(frames, np.ndarray) or frames.ndim != 2 or frames.shape[1] == 0:
            raise UserError(f"{where}: segment {i} is no array (T, d)")
        if frames.dtype.kind not in "biuf":
            raise UserError(f"{where}: segment {i} is not of numbers")


def texts_of(values, where):
    """N sentences of N sentences, or of N lists of words."""
    texts = []
    for i, value in enumerate(values):
        with explained(f"{where}: segment {i} is no text"):
            if isinstance(value, list | tuple | np.ndarray):
                value = " ".join([text_of(word) for word in value])
            texts.append(text_of(value))
    return texts


def text_of(value):
    if isinstance(value, bytes | memoryview):
        return bytes(value).decode("utf-8")
    if not isinstance(value, str):
        raise TypeError(f"it holds a value of type {type(value).__name__}")
    return str(value)  # numpy's strings, too


def id_of(value):
    """An id as text. MulT's can be rows of video, start and end."""
    row = value.tolist() if isinstance(value, np.ndarray) else value
    row = row if isinstance(row, list | tuple) else [row]
    if len(row) == 3:
        return f"{text_of(row[0])}[{float(row[1]):.3f}:{float(row[2]):.3f}]"
    if len(row) != 1:
        raise TypeError("an id is neither text nor a row of video, start and end")
    return str(row[0]) if isinstance(row[0], int | float | np.number) else text_of(row[0])


def video_and_clip(id):
    """The video in an id, and the rest: v$_$3 (MMSA), v[3] (MISA), v_3, v[start:end] (MulT), v."""
    found = re.fullmatch(r"(.+)\$_\$(\d+)|(.+)\[([\d.]+)[:\]].*|(?!.{11}$)(.+)_(\d+)", id)
    return tuple(filter(None, found.groups())) if found else (id, "0")


def add_text(parts, path, labels):
    """Puts raw_text into splits that have none, from the CSV `labels` or from one beside `path`."""
    table = labels or next(iter(sorted(Path(path).parent.glob("*label*.csv"))), None)
    if table is None:
        needed = "name a CSV of video_id, clip_id, text and label"
        raise UserError(f"{path}, split {next(iter(parts))!r} has no text: {needed}")
    rows = rows_of(table)
    for name, part in parts.items():
        with explained(f"{path}, split {name!r} and {table}"):
            part["raw_text"] = captions(rows, part)
    print(f"note: the text of {', '.join(parts)} comes from {printable(str(table))}")


def rows_of(table):
    """{(video, clip) and (video, start): (text, label)} of a CSV; clip and start as text."""
    rows = {}
    with (
        explained(f"{table} is no CSV of video_id, clip_id, text, label"),
        open(regular(table), newline="", encoding="utf-8-sig") as file,  # -sig: Excel's mark
    ):
        for row in csv.DictReader(file):
            found = text_of(row["text"]), float(row["label"])
            key = row["video_id"], str(int(row["clip_id"]))
            if rows.setdefault(key, found) != found:
                raise ValueError(f"clip {key[1]} of {key[0]} is there twice")
            if row.get("start"):
                rows[row["video_id"], f"{float(row['start']):.1f}"] = found
    return rows


def captions(rows, part):
    """The text of each segment of a split.

    Clips count from 0 in some files and from 1 in others, so the labels have to agree as well.
    """
    absent = "", math.inf
    for first in (0, 1):
        found = [rows.get(csv_key(id, first), absent) for id in part["id"]]
        labels = np.array([label for _, label in found])
        agree = np.mean(np.abs(labels - part["regression_labels"]) < 0.1)
        if np.isfinite(labels).all() and agree > 0.95:
            return [text for text, _ in found]
    raise ValueError(f"their ids or labels differ, as at {printable(part['id'][0])}")


def csv_key(id, first):
    video, clip = video_and_clip(id)
    return video, f"{float(clip):.1f}" if "." in clip else str(int(clip) + first)


def without_padding(x, n):
    """x: (T, d) of a file; n: its length, or NaN -> a view of the true frames, (t, d), t >= 0.

    The padding is on the side with more frames of zeros. A length beyond T says nothing.
    """
    live = np.flatnonzero((np.isfinite(x) & (x != 0)).any(1))
    if len(live) == 0:
        return x[:0]
    left, right = live[0], len(x) - 1 - live[-1]
    padding = len(x) - int(n) if n <= len(x) else max(left, right)
    return x[padding:] if right < min(left, padding) else x[: len(x) - padding]


def describe(parts, path):
    """("mosi", "mosei", or "" if the number of segments does not tell it; one sentence)."""
    sizes = [len(part["id"]) for part in parts.values()]
    name = ""
    if 2150 <= sum(sizes) <= 2199:
        name = "mosi"
    elif 20_000 <= sum(sizes) <= 23_500:
        name = "mosei"
    steps = {tuple(len(part[key][0]) for key in FRAMES.values()) for part in parts.values()}
    kind = "aligned" if all(audio == vision for audio, vision in steps) else "unaligned"
    kind = "utterance-level" if steps == {(1, 1)} else kind
    counts = " / ".join(f"{n:,}" for n in sizes)
    what = f"{printable(str(path))}: {kind} {name.upper() or 'data'}, {counts} segments"
    what += f" ({' / '.join(parts)})"
    part = next(iter(parts.values()))
    for key in FRAMES.values():
        step = max(sizes[0] // 50, 1)
        some = zip(part[key][::step], part[f"{key}_lengths"][::step], strict=True)
        if any(len(without_padding(x, n)) for x, n in some):
            d = part[key][0].shape[1]
            what += f", {WIDTHS.get(d, d)} columns of {key}"
        else:
            what += f", no {key}"
    return name, what


def fingerprint(parts):
    """SHA-256 over ids, text, labels, lengths and shapes, and over each split's first frames."""
    digest = hashlib.sha256()
    for name, part in parts.items():
        digest.update(repr((name, part["id"], part["raw_text"])).encode())
        digest.update(part["regression_labels"].tobytes())
        for key in FRAMES.values():
            digest.update(repr([x.shape for x in part[key]]).encode())
            digest.update(part[f"{key}_lengths"].tobytes() + part[key][0].tobytes())
    return digest.hexdigest()


def survey(parts):
    """Prints what is under each key, how the labels are spread, and what is missing in the frames."""
    for name, part in parts.items():
        print(f"{name}: {len(part['id']):,} segments, {len(set(part['video'] or []))} videos")
        for key, x in part.items():
            size = getattr(x, "shape", len(x) if hasattr(x, "__len__") else "")
            print(f"    {printable(key):22} {size} {getattr(x, 'dtype', type(x).__name__)}")
        classes = sorted(Counter(np.rint(part["regression_labels"]).astype(int).tolist()).items())
        print("    labels, rounded:", ", ".join(f"{y:+d}: {n:,}" for y, n in classes))
        for key in FRAMES.values():
            padded = zip(part[key], part[f"{key}_lengths"], strict=True)
            frames = [without_padding(x, n) for x, n in padded]
            steps = sorted(len(x) for x in frames)
            spread = f"{steps[0]} to {steps[-1]} frames, median {steps[len(steps) // 2]}"
            print(f"    {key}: {spread}, {steps.count(0):,} segments empty", end=";")
            for what, test in (("NaN", np.isnan), ("-inf", np.isneginf), ("+inf", np.isposinf)):
                print(f" {sum(np.count_nonzero(test(x)) for x in frames):,} {what}", end="")
            print()
