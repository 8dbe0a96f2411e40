"""The text of a data file that has none: from a CSV, or as the token ids that the file holds."""

import codecs
import csv
import io
import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from plumbing import UserError, explained, printable, regular

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase  # takes seconds

NEEDED = ("video_id", "clip_id", "text", "label")
LARGEST = 1 << 27  # bytes of a table; MOSEI's has 4 MB
Rows = dict[tuple[str, str], tuple[str, float]]


def beside(path: str | Path) -> Path | None:
    """The first *label*.csv in the folder of a data file, or in the data folder itself."""
    folder = Path(path) if os.path.isdir(path) else Path(path).parent
    tables = sorted(file for file in folder.glob("[!.]*") if file.suffix.lower() == ".csv")
    return next((table for table in tables if "label" in table.stem.lower()), None)


def add(parts: dict[str, dict[str, Any]], path: str | Path, table: str | Path) -> None:
    """Add raw_text from the table to splits without text. Raises UserError."""
    rows, encoding = read_table(table)
    for name, part in parts.items():
        with explained(f"{path}, split {name!r}: its text is not in {table}"):
            part["raw_text"] = texts(rows, part)
        part["notes"].append(f"the text comes from {printable(str(table))} ({encoding})")


def read_table(table: str | Path) -> tuple[Rows, str]:
    """The rows of a CSV and its encoding. Raises UserError."""
    with explained(f"{table} cannot be read as a CSV"):
        if os.path.getsize(regular(table)) > LARGEST:
            raise ValueError(f"it has more than {LARGEST:,} bytes")
        text, encoding = decoded(Path(table).read_bytes())
        return rows_of(text), encoding


def decoded(raw: bytes) -> tuple[str, str]:
    """A table's text and encoding: UTF-8, UTF-16, GB18030 (Chinese Excel) or cp1252 (Western)."""
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return raw.decode("utf-16"), "UTF-16"
    try:
        return raw.decode("utf-8-sig"), "UTF-8"
    except UnicodeDecodeError:
        lenient = re.sub("[\0-\x7f]", "", raw.decode("utf-8", "replace"))
        if lenient.count("\N{REPLACEMENT CHARACTER}") < len(lenient) / 2:  # UTF-8, but damaged
            raise
    runs = re.findall(rb"[\x80-\xff]+", raw)
    pairs = sum(len(run) % 2 == 0 for run in runs)  # a Chinese character is two such bytes
    encoding = "GB18030" if pairs > len(runs) / 2 else "cp1252"
    return raw.decode(encoding), encoding


def rows_of(text: str) -> Rows:
    """{(video, clip) and (video, start): (text, label)} of a table; NaN for an empty label.

    The separator is the most frequent of , ; | and tab in the first line. Names of columns are
    compared without case, spaces and punctuation. Raises ValueError, with line and columns.
    """
    separator = max(",;|\t", key=text.partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    names = [name.strip() for name in next(reader, [])]
    index = {re.sub(r"[\W_]", "", name).lower(): i for i, name in enumerate(names)}
    wanted = [index.get(name.replace("_", "")) for name in NEEDED]
    columns = f"(columns needed: {', '.join(NEEDED)}; found: {', '.join(names)})"
    if None in wanted:
        raise ValueError(f"no column {NEEDED[wanted.index(None)]} {columns}")
    rows = {}
    try:
        for cells in filter(any, reader):
            if len(cells) < len(names) or any(cells[len(names) :]):
                raise ValueError(f"it has {len(cells)} cells")
            video, clip, words, label = (cells[i].strip() for i in wanted)
            entry = words, float(label.replace(",", ".") or math.nan)
            key = video, str(int(clip)) if clip.isdecimal() else clip
            if rows.setdefault(key, entry) != entry:
                raise ValueError(f"clip {clip} of {video} appears twice")
            start = cells[index["start"]].strip() if "start" in index else ""
            if start:  # MOSI has clips of length 0, which start with the next one: the last counts
                rows[video, f"{float(start):.1f}"] = entry
    except ValueError as error:
        raise ValueError(f"line {reader.line_num}: {error} {columns}") from error
    return rows


def texts(rows: Rows, part: dict[str, Any]) -> list[str]:
    """The text of each segment of a split. Raises ValueError, which names a segment.

    Clips count from 0 in some files and from 1 in others. The base is the one with which every
    segment has a row, and at most 5 % of the labels that both sides know differ.
    """
    results, problems = [], []
    for first in (0, 1):
        keys = [row_key(id, first) for id in part["id"]]
        missing = [id for id, key in zip(part["id"], keys, strict=True) if key not in rows]
        labels = np.array([rows.get(key, ("", math.nan))[1] for key in keys])
        difference = np.abs(labels - part["regression_labels"])
        wrong = np.flatnonzero(difference >= 0.1)
        if missing:
            problem = f"{len(missing)} segments have no row, such as {missing[0]}"
            problems.append((len(missing), problem))
        elif len(wrong) > 0.05 * np.isfinite(difference).sum():
            problem = f"{len(wrong)} labels differ, as of {part['id'][wrong[0]]}"
            problems.append((len(wrong), problem))
        else:
            results.append([rows[key][0] for key in keys])
    if not results:
        raise ValueError(min(problems)[1])
    if results[0] != results[-1]:
        raise ValueError("without labels it is unknown whether clips count from 0 or from 1")
    return results[0]


def row_key(id: str, first: int) -> tuple[str, str]:
    """The key of a segment's row, if the file's clips count from 0 and the table's from `first`."""
    video, clip = video_and_clip(id)
    return video, f"{float(clip):.1f}" if "." in clip else str(int(clip) + first)


def video_and_clip(id: str) -> tuple[str, str]:
    """The video in an id, and the rest: v$_$3 (MMSA), v[3] (MISA), v_3, v[start:end] (MulT), v."""
    match = re.fullmatch(r"(.+)\$_\$(\d+)|(.+)\[([\d.]+)[:\]].*|(?!.{11}$)(.+)_(\d+)", id)
    return tuple(filter(None, match.groups())) if match else (id, "0")


def token_ids_of(part: dict[str, Any], where: str) -> list[list[int]]:
    """N lists of token ids of text_bert, (N, 3, L): ids, attention mask, token types."""
    if "text_bert" not in part:
        raise UserError(f"{where} has no text: name a CSV of {', '.join(NEEDED)} with --labels")
    part["notes"].append("no text, so the token ids of text_bert are used")
    token_ids = []
    for i, value in enumerate(part["text_bert"]):
        x = np.asarray(value)
        is_three = x.dtype.kind in "biuf" and x.ndim == 2 and len(x) == 3
        if not is_three or not ((x >= 0) & (x < 1 << 31) & (x % 1 == 0)).all():
            what = f"segment {i} is not ids, mask and types, all whole numbers"
            raise UserError(f"{where}, key 'text_bert': {what}")
        token_ids.append(x[0][x[1] > 0].astype(int).tolist())
    return token_ids


def checked_ids(
    token_ids: list[list[int]] | None, tokenizer: "PreTrainedTokenizerBase"
) -> list[list[int]] | None:
    """The token ids as they are. Raises UserError if they are of another vocabulary.

    Decoding and tokenizing keeps 100 % of MOSI's sentences with their own vocabulary, and 50 to
    85 % with a shuffled one.
    """
    if token_ids is None:
        return None
    again = []
    if max(map(max, filter(None, token_ids)), default=0) < len(tokenizer):
        texts = tokenizer.batch_decode(token_ids, skip_special_tokens=True)
        again = tokenizer(texts, truncation=True)["input_ids"]
    known = [[id for id in ids if id != tokenizer.unk_token_id] for ids in token_ids]
    equal = sum(a == b for a, b in zip(again, known, strict=False)) / len(known)
    if equal < 0.95:
        raise UserError(
            "the data hold token ids instead of text, and --bert has another vocabulary: only "
            f"{equal:.0%} of the sentences survive decoding and tokenizing"
        )
    return token_ids
