"""CMU-MOSI and CMU-MOSEI for MSFN: fetched, mapped, never executed, explained.

    python data.py FILE [--hash] [--labels CSV]    # what is in this file, or in this folder?

`load` is the entrance. A corpus has three splits; a split has N segments; a segment is one sentence
of a video: audio frames ("a"), visual frames ("v"), words ("l") and a sentiment y in [-3, 3].
T is its number of frames, d the number of features of a frame.
"""

import argparse
import csv
import hashlib
import itertools
import mmap
import os
import pickle
import re
import shutil
import struct
import sys
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch

MODALITIES = ("a", "v", "l")
FRAMES = {"a": "audio", "v": "vision"}  # the modalities that are frames: keys in the files
SPLITS = ("train", "valid", "test")
SPELLED = {"train": "train", "valid": "valid", "dev": "valid", "val": "valid", "test": "test"}
DATA = Path("data")  # where files are looked for, and fetched to

# MMSA's MOSI keeps these columns of COVAREP's 74 and FACET 4.1's 47 (CMU-MultimodalSDK, issue 172).
COVAREP_5 = (1, 3, 6, 25, 60)
FACET_20 = (0, 2, 5, 10, 11, 12, 14, 17, 20, 21, 22, 24, 25, 29, 30, 31, 32, 36, 37, 40)
WIDTHS = {len(COVAREP_5): "5 of COVAREP's 74", len(FACET_20): "20 of FACET's 47"}
WIDTHS |= {74: "COVAREP's 74", 47: "FACET 4.1's 47", 35: "FACET 4.2's 35"}

HUB = "Bluexxx/SemMSA-data"  # on huggingface.co/datasets; MOSEI's file is there in 13 parts
ELSEWHERE = """MMSA's Google Drive folder 1A2S4pqCHryGmiqnNSPLv7rEg63WvjCSk, MISA's \
1IBwWNH0XjPnZWaAlP1U2tIJH6Rb3noMI, MulT's Dropbox sh/hyzpgx1hp9nj37s"""
SHA256 = {  # as MMSA's README gives them
    "d3994fd25681f9c7ad6e9c6596a6fe9b4beb85ff7d478ba978b124139002e5f9": "mosi_aligned_50.pkl",
    "78e0f8b5ef8ff71558e7307848fc1fa929ecb078203f565ab22b9daab2e02524": "mosi_unaligned_50.pkl",
    "45eccfb748a87c80ecab9bfac29582e7b1466bf6605ff29d3b338a75120bf791": "mosei_aligned_50.pkl",
    "ad8b23d50557045e7d47959ce6c5b955d8d983f2979c7d9b7b9226f6dd6fec1f": "mosei_unaligned_50.pkl",
}


class DataError(ValueError):
    """One sentence that says what is wrong with the data: file, split, key and the value found."""


# --- Fetch ---------------------------------------------------------------------------------------


def find(dataset):
    """All files and folders under data/ whose path there starts with "mosi" or "mosei", sorted."""
    files = [p for p in DATA.rglob("*.pkl") if f"{p.relative_to(DATA)}".lower().startswith(dataset)]
    return sorted({p.parent if p.stem in SPELLED else p for p in files})


def fetch(dataset):
    """MMSA's unaligned features from the hub -> their path under data/, the SHA-256 checked.

    Raises DataError, soon, if they cannot be had; a file with another hash is set aside. Of many
    processes one fetches, and the others wait for it.
    """
    from huggingface_hub.utils import WeakFileLock

    try:
        DATA.mkdir(exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{DATA}/ cannot be made ({error.strerror}): name a file with --data"
        ) from None
    with WeakFileLock(DATA / ".lock"):
        target = DATA / f"{dataset}_unaligned_50.pkl"
        return target if target.exists() else _fetch(target)


def _fetch(target):
    name, partial = target.name, target.with_name(f"{target.name}.partial")
    print(f"{target} is not there: fetching it from huggingface.co/datasets/{HUB}")
    try:
        _download(name, partial)
    except Exception as error:  # the hub's client raises a dozen unrelated classes
        raise DataError(
            f"{name} could not be fetched from huggingface.co/datasets/{HUB} ({reason(error)}). "
            f"Other sources: {ELSEWHERE}. Put the file at {target} or name it with --data; "
            "`--dataset synthetic` runs without any file."
        ) from error
    found, published = sha256(partial), next(key for key in SHA256 if SHA256[key] == name)
    if found != published:
        aside = partial.replace(DATA / f"{name}.wrong")
        raise DataError(f"{aside}, set aside, has SHA-256 {found}, but MMSA published {published}")
    print(f"SHA-256 {found}: the one that MMSA published")
    return partial.replace(target)


def _download(name, partial):
    """Appends the parts of a file to `partial` as they arrive; a second call goes on from there."""
    from huggingface_hub import HfApi

    hub, cache, end = HfApi(), DATA / ".hub", 0
    files = hub.dataset_info(HUB, files_metadata=True, timeout=10).siblings  # fails without retries
    parts = [f for f in files if Path(f.rfilename).name.startswith(name)]
    if not parts:
        raise FileNotFoundError(f"{name} is no longer there")
    with open(partial, "ab") as whole:
        size = whole.tell()
        for part in sorted(parts, key=lambda f: (len(f.rfilename), f.rfilename)):  # 2 before 10
            end += part.size
            if size < end:
                whole.truncate(end - part.size)  # a part that was copied half is copied anew
                path = hub.hf_hub_download(
                    HUB, part.rfilename, repo_type="dataset", local_dir=cache
                )
                with open(path, "rb") as piece:
                    shutil.copyfileobj(piece, whole, 1 << 24)
                Path(path).unlink()
    shutil.rmtree(cache, ignore_errors=True)


def sha256(path):
    """A file's SHA-256, in hexadecimal; 13.7 GB take about a minute."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def reason(error):
    """The first line of an exception, for a message of one sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# --- Read pickles, and never run them ------------------------------------------------------------

COPY_LIMIT = 1 << 30  # bytes that one opcode may copy: a damaged length must not fill the memory
MAP_FROM = 256  # bytes; longer byte strings are views into the file, shorter ones are copied
CONSTRUCTORS = re.compile(  # all that a pickle may name; the last two are bytes in protocols 0-2
    r"numpy\.(ndarray|dtype)|numpy\._?core\.multiarray\.(_reconstruct|scalar)"
    r"|numpy\._?core\.numeric\._frombuffer|_codecs\.encode|(__builtin__|builtins)\.bytes"
)
NOT_PICKLES = {
    b"<": "is a web page, not a pickle: the download went wrong",
    b"version https://git-lfs": "is a Git LFS pointer, not the data: run `git lfs pull`",
    b"PK\x03\x04": "is a zip archive, not a pickle: unpack it first",
    b"\x1f\x8b": "is compressed by gzip: unpack it first",
    b"\x89HDF": "is an HDF5 file (the CMU SDK's .csd?), not a pickle of processed features",
}


@dataclass(eq=False)
class Call:
    """A call that a pickle asks for, written down and not made: function(*args), then its state."""

    function: str
    args: tuple | None = None
    state: tuple | None = None


class Cursor:
    """Where an unpickler is in a memory map; every length is checked before it is believed."""

    def __init__(self, source):
        self.map, self.view, self.at = source, memoryview(source), 0

    def slice(self, n):
        """The next n bytes, not copied."""
        if self.at + n > len(self.view):
            raise DataError(f"is cut short or damaged: byte {self.at + n:,} is missing")
        self.at += n
        return self.view[self.at - n : self.at]

    def read(self, n):
        """The next n bytes, copied: called for every small item, so not by way of `slice`."""
        if not 0 <= n <= COPY_LIMIT:
            raise DataError(f"is damaged: it asks for {n:,} bytes at once at byte {self.at:,}")
        found = self.map[self.at : self.at + n]
        if len(found) < n:
            raise DataError(f"is cut short or damaged: byte {self.at + n:,} is missing")
        self.at += n
        return found

    def readline(self):
        end = self.map.find(b"\n", self.at, self.at + COPY_LIMIT) + 1
        return self.read(end - self.at if end else COPY_LIMIT + 1)


class InertUnpickler(pickle._Unpickler):
    """Parses a pickle into plain containers and `Call`s: nothing is imported, nothing is called.

    The pure-Python unpickler, because there each opcode can be replaced: those that import, call or
    make objects write down a `Call` or refuse, and long byte strings become views into the file.
    """

    def __init__(self, cursor):
        super().__init__(cursor, encoding="latin1")  # keeps the bytes of Python 2's strings
        self.cursor = cursor

    def find_class(self, module, name):
        if not CONSTRUCTORS.fullmatch(f"{module}.{name}"):
            raise DataError(f"asks for {module}.{name}, which no data need: nothing was run")
        return Call(name)

    def refuse(self, *_):
        raise DataError("asks for an object to be made, which no data need: nothing was run")

    def load_reduce(self):
        args = self.stack.pop()
        self.stack[-1] = Call(self.stack[-1].function, args)

    def load_build(self):
        state = self.stack.pop()
        self.stack[-1].state = state if isinstance(self.stack[-1], Call) else self.refuse()

    def store(self, items):
        if not all(isinstance(key, str | bytes | int | Call) for key in items[::2]):
            raise DataError("has a key that is not text")  # the hash of a deep tuple kills Python
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def load_bytes(self, layout):
        (n,) = struct.unpack(layout, self.read(struct.calcsize(layout)))
        self.append(self.cursor.slice(n) if n >= MAP_FROM else self.read(n))

    _instantiate = refuse
    dispatch: ClassVar = {
        **pickle._Unpickler.dispatch,
        **dict.fromkeys(b"PQ\x82\x83\x84\x81\x92\x8f\x90\x91", refuse),  # PERSID EXT NEWOBJ SET
        pickle.REDUCE[0]: load_reduce,
        pickle.BUILD[0]: load_build,
        pickle.DICT[0]: lambda self: (items := self.pop_mark(), self.append({}), self.store(items)),
        pickle.SETITEM[0]: lambda self: self.store([self.stack.pop(-2), self.stack.pop()]),
        pickle.SETITEMS[0]: lambda self: self.store(self.pop_mark()),
        pickle.FRAME[0]: lambda self: self.read(8),  # frames only group reads
        pickle.BINBYTES[0]: lambda self: self.load_bytes("<I"),
        pickle.BINBYTES8[0]: lambda self: self.load_bytes("<Q"),
        pickle.BYTEARRAY8[0]: lambda self: self.load_bytes("<Q"),
    }


def unpickle(path):
    """A file's content as dicts, lists, tuples, strings, numbers and arrays; nothing in it is run.

    Arrays of protocols 3-5 are read-only views into the file. Raises DataError and nothing else.
    """
    try:
        with open(path, "rb") as file:
            cursor = Cursor(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path} is empty: 0 bytes") from error
    for magic, what in NOT_PICKLES.items():
        if cursor.map[:200].lstrip().startswith(magic):
            raise DataError(f"{path} {what}")
    try:
        return rebuild(InertUnpickler(cursor).load(), {})
    except DataError as error:
        raise DataError(f"{path} {error}") from error
    except Exception as error:  # damaged bytes make a parser fail in every way there is
        kind = type(error).__name__
        raise DataError(f"{path} is damaged or no pickle: {kind} at byte {cursor.at:,}") from error


def rebuild(node, done):
    """The parsed pickle, each `Call` replaced by the array, scalar or bytes that it stands for.

    done: id of a node -> what it became, so that what was shared stays shared.
    """
    if not isinstance(node, dict | list | tuple | Call):
        return node
    if id(node) not in done:
        done[id(node)] = None  # under way
        if isinstance(node, Call):
            done[id(node)] = _evaluate(node, done)
        elif isinstance(node, dict):
            pairs = [(_string(rebuild(k, done)), rebuild(v, done)) for k, v in node.items()]
            done[id(node)] = dict(pairs)
        else:
            done[id(node)] = type(node)(rebuild(item, done) for item in node)
    if done[id(node)] is None:
        raise DataError("holds a value that contains itself")
    return done[id(node)]


def _evaluate(call, done):
    if call.function == "_reconstruct":
        _, shape, dtype, fortran, raw = rebuild(call.state, done)
        return _array(raw, dtype, shape, "F" if fortran else "C")
    args = rebuild(call.args, done)
    match call.function:
        case "_frombuffer":
            return _array(*args)
        case "scalar":
            return _array(args[1], args[0], (), "C")[()]
        case "encode":
            return args[0].encode("latin1")
        case "bytes" if not args:
            return b""
        case "dtype" if re.fullmatch(r"[biufUSO]\d{1,9}", args[0]):  # no fields: they hide pointers
            return np.dtype((call.state[1] if call.state else "|") + args[0])
    raise DataError(f"holds numpy's {call.function} {args}, which is neither numbers nor text")


def _array(raw, dtype, shape, order):
    """An array over `raw`, not copied; an array of objects takes its items from a list alone."""
    if not isinstance(dtype, np.dtype) or len(shape) > 4:
        raise DataError(f"is damaged: an array has the shape {shape} and the type {dtype}")
    raw = raw.encode("latin1") if isinstance(raw, str) else raw
    n = int(np.prod(shape, dtype=object))
    if n * (1 if dtype == object else dtype.itemsize) != len(raw):
        raise DataError(f"is damaged: {len(raw):,} bytes do not make {n:,} of {dtype}")
    if dtype != object:
        return np.ndarray(shape, dtype, raw, order=order)
    items = np.empty(n, object)
    for i, item in enumerate(raw):
        items[i] = item
    return items.reshape(shape)  # listed in C order, whatever the array's


# --- Three families of files, one form -----------------------------------------------------------


@dataclass
class Split:
    """N segments; the frames stay in the file until `frames` is asked for those of one segment."""

    name: str
    source: tuple  # the arguments of `read`
    ids: list  # N str, as the file spells them
    video: list | None  # N str; None if the file has no ids
    y: np.ndarray  # (N,) float32
    text: list | None  # N str; None if the file has `text_bert` instead
    tokens: list | None  # N lists of bert-base-uncased's ids, where there is no text
    sequences: dict  # "a", "v" -> (N, T, d), or N arrays (T, d)
    lengths: dict  # "a", "v" -> (N,) true lengths as floats; NaN where the file does not say

    def __len__(self):
        return len(self.y)

    def __reduce__(self):  # a worker process maps the file again: it is not sent a copy
        return _reopen, (self.source, self.name)

    def frames(self, m, i):
        """Segment i of modality m without its padding, on whichever side that is: (T, d), T >= 0."""
        x, n = np.asarray(self.sequences[m][i]), self.lengths[m][i]
        live = np.flatnonzero((np.isfinite(x) & (x != 0)).any(1))
        if len(live) == 0:
            return x[:0]
        left, right = live[0], len(x) - 1 - live[-1]  # frames of zeros on either side
        padding = max(left, right) if np.isnan(n) else max(len(x) - int(n), 0)
        return x[padding:] if right < min(left, padding) else x[: len(x) - padding]


def _reopen(source, name):
    return read(*source)[name]


@dataclass
class Corpus:
    """Three splits, as corpus["train"], and what to know about them."""

    name: str  # "mosi", "mosei" or "synthetic"; "" if the file does not tell
    description: str  # what it is, in one sentence
    splits: dict
    dims: dict  # {"a": d_a, "v": d_v}, the number of features of a frame
    notes: list = field(default_factory=list)  # sentences on what is odd but can be trained

    def __getitem__(self, split):
        return self.splits[split]


def load(dataset, path=None, labels=None):
    """The corpus to train on. Raises DataError.

    dataset: "mosi", "mosei" or "synthetic", which needs no file
    path: a file or folder of any family; None takes the first under data/, or else fetches one
    labels: a CSV with the text of a file that has none; None takes *label*.csv beside the file
    """
    if dataset == "synthetic" and path:
        raise DataError(f"--dataset synthetic is generated and takes no file, but got {path}")
    path = "synthetic" if dataset == "synthetic" else path or next(iter(find(dataset)), None)
    path = path or fetch(dataset)
    corpus = read(path, labels)
    for name in SPLITS:
        if name not in corpus.splits:
            raise DataError(f"{path} has no split {name!r}, only {', '.join(corpus.splits)}")
    if corpus.name not in ("", dataset):
        raise DataError(f"--dataset {dataset} was asked for, but this is: {corpus.description}")
    corpus.name = dataset
    return corpus


def read(path, labels=None):
    """A file or folder of any family, with whatever splits it has, as a `Corpus`."""
    if path == "synthetic":
        return synthetic()
    tree, splits = tree_of(path), {}
    for name, part in tree.items():
        where = f"{path}, split {name!r}"
        try:
            splits[name] = _split(name, part, where, (str(path), labels))
        except DataError:
            raise
        except Exception as error:  # a damaged value can have any type at all
            raise DataError(f"{where} is not as any family has it: {reason(error)}") from error
    widths = {(m, x.shape[1]) for s in splits.values() for m in FRAMES for x in s.sequences[m]}
    if len(widths) != len(FRAMES):
        raise DataError(f"{path}: segments differ in their number of columns: {sorted(widths)}")
    dims = dict(sorted(widths))
    return Corpus(*_describe(path, tree, splits, dims), splits, dims, list(_oddities(splits)))


def tree_of(path):
    """{"train" | "valid" | "test": what the file, or the folder's file of that name, holds}."""
    files = {name: f"{path}/{name}.pkl" for name in SPELLED if os.path.exists(f"{path}/{name}.pkl")}
    tree = {name: unpickle(file) for name, file in files.items()} or unpickle(path)
    keys = list(tree) if isinstance(tree, dict) else [type(tree).__name__]
    if not set(keys) & set(SPELLED):
        raise DataError(f"{path} has no splits train, valid and test, but {keys!s:.200}")
    return {SPELLED[key]: tree[key] for key in keys if key in SPELLED}


def _split(name, part, where, source):
    """One split of any family, checked, as a `Split`."""
    part = _misa(part) if isinstance(part, list) else part
    label = "labels" if "labels" in part else "regression_labels"  # MulT's, MMSA's
    for key in (*FRAMES.values(), label):
        if key not in part:
            raise DataError(f"{where} has no key {key!r}, only {', '.join(part)}")
    optional = ("id", "raw_text", "text_bert", "audio_lengths", "vision_lengths")
    sizes = {k: len(part[k]) for k in (*FRAMES.values(), label, *optional) if k in part}
    n = sizes[label]
    if set(sizes.values()) != {n} or n == 0:
        raise DataError(f"{where}: every key needs the same N, at least 1, but they have {sizes}")
    ids = [_id(i) for i in part["id"]] if "id" in part else [f"{name} {i}" for i in range(n)]
    y = np.array(list(part[label]), np.float32).reshape(n, -1)[:, 0]
    for i in np.flatnonzero(~(np.abs(y) <= 3.001)):  # NaN, too
        raise DataError(f"{where}, key {label!r}: {ids[i]} has {y[i]}, outside [-3, 3]")
    sequences = {m: _sequences(part[key], f"{where}, key {key!r}") for m, key in FRAMES.items()}
    unknown = np.full(n, np.nan)
    lengths = {m: _lengths(part.get(f"{key}_lengths", unknown)) for m, key in FRAMES.items()}
    video = [video_and_clip(i)[0] for i in ids] if "id" in part else None
    text, tokens = _words(part, ids, y, where, *source)
    return Split(name, source, ids, video, y, text, tokens, sequences, lengths)


def _misa(samples):
    """MISA's and MAG-BERT's ((words, visual, acoustic[, actual words]), label, id), in MMSA's keys."""
    inputs, labels, ids = zip(*samples, strict=True) if samples else ((), (), ())
    return {
        "id": ids,
        "raw_text": [" ".join(x[3] if len(x) > 3 else x[0]) for x in inputs],
        "vision": [x[1] for x in inputs],
        "audio": [x[2] for x in inputs],
        "vision_lengths": [len(x[1]) for x in inputs],
        "audio_lengths": [len(x[2]) for x in inputs],
        "regression_labels": [np.ravel(label)[0] for label in labels],  # sentiment comes first
    }


def _sequences(x, where):
    """x as it came: an array (N, T, d) or a list of N arrays (T, d), of numbers."""
    for i, frames in enumerate(x[:1] if isinstance(x, np.ndarray) else x):
        if np.ndim(frames) != 2 or frames.dtype.kind not in "biuf" or not frames.shape[1]:
            raise DataError(f"{where}: segment {i} is {np.shape(frames)}, not numbers (T, d)")
    return x


def _lengths(values):
    """(N,) float. A length that is missing or negative is NaN: `frames` finds it itself."""
    lengths = np.array(list(values), float).reshape(len(values))
    return np.where((lengths >= 0) & (lengths < 1e9), lengths, np.nan)


def _words(part, ids, y, where, path, labels):
    """(N texts, None), or (None, N lists of token ids) where there is no text in any other form."""
    table = labels or next(iter(sorted(Path(path).parent.glob("*label*.csv"))), None)
    if "raw_text" in part:
        text = [_string(words) for words in part["raw_text"]]
    elif table:
        text = _captions(table, ids, y, where)
    elif "text_bert" in part:
        rows = np.array(part["text_bert"]).astype(int)  # (N, 3, 50): ids, mask, types
        if rows.min() < 0 or rows[:, 0].max() >= 30522:
            raise DataError(f"{where}, key 'text_bert': not the ids of bert-base-uncased")
        return None, [row[0][row[1] > 0].tolist() for row in rows]
    else:
        raise DataError(f"{where} has no text: name a CSV of video_id, clip_id, text and label")
    return [t.lower() if t.isupper() else t for t in text], None  # capitals shatter cased tokens


def _captions(table, ids, y, where):
    """The text of each id, from a CSV of video_id, clip_id, text, label and, for MulT, start.

    Clips count from 0 in some files and from 1 in others, so the labels have to agree as well.
    """
    known = {}
    try:
        with open(table, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                start = f"{float(row.get('start') or 'nan'):.1f}"
                for clip in (str(int(row["clip_id"])), start):
                    known[row["video_id"], clip] = row["text"], float(row["label"])
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{table} is no CSV of video_id, clip_id, text, label: {error!r}") from None
    for first in (0, 1):
        rows = [known.get(_csv_key(id, first), ("", np.inf)) for id in ids]
        agree = np.mean([abs(label - sentiment) < 0.1 for (_, label), sentiment in zip(rows, y)])
        if agree > 0.95 and all(label < np.inf for _, label in rows):
            return [text for text, _ in rows]
    raise DataError(f"{where}: {table} has other ids or labels than its segments, as {ids[0]}")


def _csv_key(id, first):
    video, clip = video_and_clip(id)
    return video, f"{float(clip):.1f}" if "." in clip else str(int(clip) + first)


def video_and_clip(id):
    """The video in an id, and the rest: v$_$3 (MMSA), v[3] (MISA), v_3, v[start:end] (MulT), v."""
    found = re.fullmatch(r"(.+)\$_\$(\d+)|(.+)\[([\d.]+)[:\]].*|(?!.{11}$)(.+)_(\d+)", id)
    return tuple(filter(None, found.groups())) if found else (id, "0")


def _id(value):
    """An id as text. MulT's are rows of video, start and end."""
    parts = [_string(part) for part in np.ravel(np.array(value)).tolist()]
    times = "[{:.3f}:{:.3f}]".format(*map(float, parts[1:])) if len(parts) == 3 else ""
    return parts[0] + times


def _string(value):
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _describe(path, tree, splits, dims):
    """(the data set's name, or "" if the number of segments does not tell it; one sentence)."""
    part, total = next(iter(tree.values())), sum(map(len, splits.values()))
    name = "mosi" if 2150 <= total <= 2199 else "mosei" if 20_000 <= total <= 23_500 else ""
    family = "MISA's" if isinstance(part, list) else "MulT's" if "labels" in part else "MMSA's"
    steps = [tuple(len(x[0]) for x in split.sequences.values()) for split in splits.values()]
    kind = "aligned" if all(audio == vision for audio, vision in steps) else "unaligned"
    kind = "utterance-level" if set(steps) == {(1, 1)} else kind
    sizes = " / ".join(f"{len(split):,}" for split in splits.values())
    columns = ", ".join(f"{WIDTHS.get(d, d)} columns of {FRAMES[m]}" for m, d in dims.items())
    what = f"{path}: {family} {kind} {name.upper() or 'data'}"
    return name, f"{what}, {sizes} segments ({' / '.join(splits)}), {columns}"


def _oddities(splits):
    """Sentences on what is odd but can be trained."""
    for name, split in splits.items():
        if empty := sum(not text.strip() for text in split.text or []):
            yield f"{name}: {empty:,} of {len(split):,} texts are empty"
        if split.text is None:
            yield f"{name}: no text; the token ids of text_bert are used instead, cut at 50"
        if split.video is None:
            yield f"{name}: no ids, so Eq. 13 knows no videos: each segment is alone"
    for a, b in itertools.combinations(splits, 2):
        if both := set(splits[a].video or []) & set(splits[b].video or []):
            yield f"LEAK: {len(both)} videos are in {a} and in {b} as well, such as {min(both)}"


# --- From the file to the model ------------------------------------------------------------------


@dataclass
class Standardizer:
    """(x - mean) / std per column, by frames of the train split alone.

    NaN and infinities are missing: the statistics ignore them, then they become 0, which is the
    mean. A constant column becomes 0 as well.
    """

    mean: dict  # "a", "v" -> (d,) float64
    std: dict  # "a", "v" -> (d,) float64; 0 for a constant column

    @classmethod
    def fit(cls, split, seed=0, sample=2000):
        """Statistics of at most `sample` segments, drawn by the seed: memory and time are bounded."""
        rows = np.sort(np.random.default_rng(seed).permutation(len(split))[:sample])
        mean, std = {}, {}
        for m in FRAMES:
            count = total = square = 0.0
            for x in (_finite(split.frames(m, i)) for i in rows):
                count, total = count + np.isfinite(x).sum(0), total + np.nansum(x, 0)
            mean[m] = total / np.maximum(count, 1)
            for x in (_finite(split.frames(m, i)) for i in rows):
                square = square + np.nansum((x - mean[m]) ** 2, 0)
            std[m] = np.sqrt(square / np.maximum(count, 1))
            std[m][std[m] <= 1e-9 * np.abs(mean[m])] = 0  # what rounding leaves of a constant
        return cls(mean, std)

    def __call__(self, m, x):
        """x: (T, d) of modality m, as in the file -> (T, d) float32, finite."""
        scale = np.divide(1, self.std[m], out=np.zeros_like(self.std[m]), where=self.std[m] > 0)
        return np.nan_to_num((_finite(x) - self.mean[m]) * scale).astype(np.float32)

    @property
    def notes(self):
        """Sentences on columns that carry nothing."""
        dead = {FRAMES[m]: f"{(std == 0).sum()} of {len(std)}" for m, std in self.std.items()}
        return [f"{n} columns of {m} are constant or empty" for m, n in dead.items() if n[0] != "0"]

    def to_dict(self):
        return {k: {m: x.tolist() for m, x in by.items()} for k, by in vars(self).items()}

    @classmethod
    def from_dict(cls, d):
        return cls(**{k: {m: np.array(x) for m, x in by.items()} for k, by in d.items()})


def _finite(x):
    """x in float64; what is infinite, or would be in float32, becomes NaN."""
    x = np.asarray(x, np.float64)
    return np.where(np.abs(x) < 3e38, x, np.nan)


def encoder_folder(name_or_folder):
    """Where an encoder is on this disk: a folder as it is, a hub name once it is in the hub's cache.

    DataError, soon, if it is neither a folder nor to be had from the hub.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    if Path(name_or_folder).is_dir():
        return str(name_or_folder)
    wanted = {"allow_patterns": ["*.json", "*.txt", "*.model", "model*.safetensors"]}
    try:
        with suppress(LocalEntryNotFoundError):
            cached = snapshot_download(name_or_folder, local_files_only=True, **wanted)
            if any(Path(cached).glob("*.safetensors")):
                return cached
        HfApi().model_info(name_or_folder, timeout=10)  # the download would retry for a minute
        return snapshot_download(name_or_folder, **wanted)
    except Exception as error:  # the hub's client raises a dozen unrelated classes
        raise DataError(
            f"{name_or_folder} is no folder, and could not be fetched from the hub "
            f"({reason(error)}); --bert takes the folder of any BERT-like encoder"
        ) from error


def load_tokenizer(folder):
    """The encoder's own tokeniser. DataError if the folder holds none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # of a dozen unrelated classes
        raise DataError(f"{folder} holds no tokeniser: {reason(error)}") from error


def word_tokenizer(texts, limit):
    """A tokeniser whose vocabulary is [PAD] [UNK] [CLS] [SEP] and the words of `texts`.

    limit: tokens of a text; what is more is cut off
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = sorted({word for text in texts for word in text.split()})
    ids = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    core = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    core.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep")}
    return PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=limit, **special)


class Batch(NamedTuple):
    """B segments, padded on the right to the longest of them.

    inputs: "a", "v" -> (features (B, T, d) float32, lengths (B,) int64), T >= 1, padding 0.0
            "l" -> (token ids (B, T) int64, lengths (B,) int64), padding the tokeniser's pad id
    y: (B,) float32; video: (B,) int64, equal within a video, -1 if unknown; ids: B str
    """

    inputs: dict
    y: torch.Tensor
    video: torch.Tensor
    ids: list


class Segments(torch.utils.data.Dataset):
    """A split as the model takes it. Texts are tokenised once; frames are cleaned when asked for.

    modalities: a subset of "avl"; the others become empty sequences
    segments[i]: ({"a": (T, d) float32, "v": likewise, "l": (T,) int64}, y, video, id)
    """

    def __init__(self, split, tokenizer, standardizer, modalities="avl"):
        self.split, self.standardizer, self.modalities = split, standardizer, modalities
        self.pad_id, self.notes = tokenizer.pad_token_id or 0, []
        self.tokens = self._tokenize(tokenizer) if "l" in modalities else [[]] * len(split)
        number = defaultdict(lambda: len(number))
        self.video = [number[v] for v in split.video] if split.video else [-1] * len(split)

    def _tokenize(self, tokenizer):
        if self.split.text is None and tokenizer.vocab_size != 30522:
            size = f"{tokenizer.vocab_size:,} tokens"
            raise DataError(f"no text but bert-base-uncased's ids, and a tokeniser of {size}")
        if self.split.text is None:
            return self.split.tokens
        limit = min(tokenizer.model_max_length, 512)
        tokens = tokenizer(self.split.text, truncation=True, max_length=limit)["input_ids"]
        if full := sum(len(ids) == limit for ids in tokens):
            self.notes.append(f"{self.split.name}: {full} texts are cut to {limit} tokens")
        return tokens

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
        for m in MODALITIES:
            padding = self.pad_id if m == "l" else 0.0
            padded = torch.nn.utils.rnn.pad_sequence([s[m] for s in x], True, padding)
            if m in FRAMES and padded.shape[1] == 0:
                padded = padded.new_zeros(len(x), 1, padded.shape[2])
            inputs[m] = padded, torch.tensor([len(s[m]) for s in x])
        return Batch(inputs, torch.tensor(y), torch.tensor(video), list(ids))


def batches(video, batch_size, whole_videos, seed=None):
    """First fit: lists of indices with every segment in one of them, shuffled by the seed.

    video: N int, equal within a video, negative if unknown; seed: None leaves them in order
    whole_videos: no video is divided, since Eq. 13 attends within it; one longer than batch_size is
        a batch of its own.
    """
    groups, plan = defaultdict(list), []
    for i, v in enumerate(video):
        groups[v if whole_videos and v >= 0 else -1 - i].append(i)
    groups = list(groups.values())
    order = (
        range(len(groups)) if seed is None else np.random.default_rng(seed).permutation(len(groups))
    )
    for k in order:
        fits = (batch for batch in plan if len(batch) + len(groups[k]) <= batch_size)
        if (batch := next(fits, None)) is None:
            plan.append(batch := [])
        batch.extend(groups[k])
    return plan


# --- A corpus that needs no file -----------------------------------------------------------------

GRADES = {  # words, by the sentiment that they carry
    -3: "awful terrible horrible dreadful atrocious",
    -2: "bad boring poor annoying disappointing",
    -1: "weak slow dull bland uneven",
    1: "decent okay pleasant watchable nice",
    2: "good fun strong charming enjoyable",
    3: "amazing brilliant fantastic wonderful superb",
}
DEGREES = {"": 1.0, "very ": 1.3, "slightly ": 0.5, "not ": -0.7}
NOUNS = "movie plot acting music ending story cast script humor dialogue camera pacing"
FILLERS = "um uh so well like basically actually honestly anyway and i think you know"


def _sentence(rng, sentiment):
    """One to four clauses, each of which says about as much as `sentiment`."""
    phrases = [
        (abs(degree * grade - sentiment) + rng.uniform(0, 0.5), adverb + word)
        for adverb, degree in DEGREES.items()
        for grade, words in GRADES.items()
        for word in words.split()
    ]
    clauses = []
    for _, phrase in sorted(phrases)[: rng.integers(1, 5)]:
        fillers = rng.choice(FILLERS.split(), rng.integers(0, 4))
        clauses += [*fillers, "the", rng.choice(NOUNS.split()), "was", phrase]
    return " ".join(clauses)


def _signal(rng, direction, sentiment):
    """(T, d) frames that lean towards `direction` with the sentiment; a few are empty, a few -inf."""
    frames = 0 if rng.random() < 0.06 else rng.integers(3, 20)
    x = rng.normal(size=(frames, len(direction))) + sentiment * direction
    x[rng.random(x.shape) < 0.002] = -np.inf
    x[:, -1] = 7  # constant columns are found in files, too
    return x.astype(np.float32)


def synthetic(seed=0):
    """600 / 150 / 150 generated segments. All modalities show one hidden sentiment, with noise, and
    each shows a part of y that the others lack."""
    rng = np.random.default_rng(seed)
    direction = {"a": rng.normal(size=12) / 2, "v": rng.normal(size=8) / 2}
    splits, number = {}, 0
    for name, n in zip(SPLITS, (600, 150, 150), strict=True):
        ids, text, y, signals = [], [], [], {"a": [], "v": []}
        while len(ids) < n:
            number, mood = number + 1, rng.normal(0, 0.7)
            for clip in range(min(rng.integers(5, 20), n - len(ids))):
                shared, *own = rng.normal((mood, 0, 0, 0), (1.1, 0.5, 0.5, 0.5))
                ids.append(f"synthetic{number:03}$_${clip}")
                text.append(_sentence(rng, np.clip(shared + own[2], -3.5, 3.5)))
                y.append(np.clip(round(shared + sum(own), 1), -3, 3))
                for m, part in zip(signals, own, strict=False):
                    signals[m].append(_signal(rng, direction[m], shared + part))
        lengths = {m: np.array([len(x) for x in xs]) for m, xs in signals.items()}
        video, y = [video_and_clip(i)[0] for i in ids], np.array(y, np.float32)
        splits[name] = Split(name, ("synthetic",), ids, video, y, text, None, signals, lengths)
    what = "SYNTHETIC data, 600 / 150 / 150 segments of generated sentences and signals"
    return Corpus("synthetic", what, splits, {m: len(x) for m, x in direction.items()})


# --- What is in a file? --------------------------------------------------------------------------


def explain(path, labels=None, digest=False):
    """Prints what a file or folder holds. Raises DataError where it cannot be used."""
    corpus = read(path, labels)
    for name, part in tree_of(path).items():
        print(f"{name}: {type(part).__name__}")
        for key, x in part.items() if isinstance(part, dict) else ():
            size = getattr(x, "shape", len(x) if hasattr(x, "__len__") else "")
            print(f"    {key:22} {size} {getattr(x, 'dtype', type(x).__name__)}")
    for name, split in corpus.splits.items():
        classes = sorted(Counter(np.rint(split.y).astype(int).tolist()).items())
        print(f"{name}: {len(split):,} segments, {len(set(split.video or []))} videos")
        print("    labels, rounded: ", ", ".join(f"{y:+d}: {n:,}" for y, n in classes))
        for m, key in FRAMES.items():
            print(f"    {key}: {_survey(split, m)}")
    if digest and Path(path).is_file():
        found = sha256(path)
        print(f"SHA-256 {found}: {SHA256.get(found, 'none of those that MMSA published')}")
    notes = corpus.notes + Standardizer.fit(next(iter(corpus.splits.values()))).notes
    print("\n".join([corpus.description, *(f"note: {note}" for note in notes)]))


def _survey(split, m):
    """Lengths and missing values of a modality, over the true frames of all segments."""
    lengths, missing, tests = [], 0, (np.isnan, np.isneginf, np.isposinf)
    for i in range(len(split)):
        x = split.frames(m, i)
        lengths.append(len(x))
        missing = missing + np.array([np.count_nonzero(test(x)) for test in tests])
    steps = "{:.0f} to {:.0f} frames, median {:.0f}".format(*np.percentile(lengths, (0, 100, 50)))
    values = "{:,} NaN, {:,} -inf, {:,} +inf".format(*missing)
    return f"{steps}, {lengths.count(0):,} segments empty; {values}"


def main():
    parser = argparse.ArgumentParser(description="Says what is in a file of CMU-MOSI or CMU-MOSEI.")
    parser.add_argument("file", help="a pickle of MMSA, MulT, MISA or MAG-BERT, or a folder")
    parser.add_argument("--labels", help="CSV with the text of a file that has none (MulT)")
    parser.add_argument("--hash", action="store_true", help="its SHA-256: 13.7 GB take a minute")
    arguments = parser.parse_args()
    try:
        explain(arguments.file, arguments.labels, arguments.hash)
    except DataError as error:
        print(f"data.py: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
