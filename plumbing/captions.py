"""The text of a data file that has none: from a CSV, or as the token ids that the file holds."""

import codecs
import csv
import io
import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from plumbing import UserError, explained, printable, regular

COLUMNS = ("video_id", "clip_id", "text", "label")
Rows = dict[tuple[str, str], tuple[str, float]]


def beside(path: str | Path) -> Path | None:
    """The first *label*.csv beside a data file, or in the data folder itself."""
    folder = Path(path) if os.path.isdir(path) else Path(path).parent
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    tables = [folder / name for name in names if re.fullmatch(".*label.*[.]csv", name.lower())]
    return tables[0] if tables else None


def add(parts: dict[str, dict[str, Any]], path: str | Path, table: str | Path) -> None:
    """Add raw_text from the table to splits without text. Raises UserError."""
    rows = read_table(table)
    for name, part in parts.items():
        with explained(f"{path}, split {name!r}: its text is not in {table}"):
            part["raw_text"] = texts(rows, part)
        part["notes"].append(f"the text comes from {printable(str(table))}")


def read_table(table: str | Path) -> Rows:
    """{(video, clip) and (video, start): (text, label)} of a CSV; NaN for an empty label.

    The separator is the most frequent of , ; and tab in the first line. Raises UserError.
    """
    rows = {}
    with explained(f"{table} cannot be read as a CSV"):
        text = decoded(regular(table).read_bytes())
        separator = max(",;\t", key=text.partition("\n")[0].count)
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
        names = ["_".join(name.lower().split()) for name in reader.fieldnames or ()]
        reader.fieldnames, found = names, printable(", ".join(names))
        columns = f"columns needed: {', '.join(COLUMNS)}; found: {found}"
        if missing := [name for name in COLUMNS if name not in names]:
            raise UserError(f"{table} has no column {missing[0]} ({columns})")
        for row in reader:
            if not any(row.values()):  # a spreadsheet saves empty rows, too
                continue
            with explained(f"{table}, line {reader.line_num} ({columns})"):
                if None in row or None in row.values():
                    raise ValueError("it has more or fewer cells than the first line")
                video, clip, words, label = (row[name].strip() for name in COLUMNS)
                entry = words, float(label.replace(",", ".") or math.nan)
                rows[video, str(int(clip))] = entry
                if row.get("start"):  # clips of length 0 start with the next one: the last counts
                    rows[video, f"{float(row['start']):.1f}"] = entry
    return rows


def decoded(raw: bytes) -> str:
    """The text of a table in UTF-8, UTF-16, GB18030 (Chinese Excel) or cp1252 (Western Excel)."""
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return raw.decode("utf-16")
    lenient = raw.decode("utf-8", "replace")
    if lenient.count("\N{REPLACEMENT CHARACTER}") <= sum(c > "\x7f" for c in lenient) / 2:
        return raw.decode("utf-8-sig")  # raises if a few bytes are damaged
    runs = re.findall(rb"[\x80-\xff]+", raw)
    pairs = [run for run in runs if len(run) % 2 == 0]  # a Chinese character is two such bytes
    return raw.decode("gb18030" if len(pairs) > len(runs) / 2 else "cp1252")


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
            problems.append((len(missing), f"segments have no row, such as {missing[0]}"))
        elif len(wrong) > 0.05 * np.isfinite(difference).sum():
            problems.append((len(wrong), f"labels differ, such as that of {part['id'][wrong[0]]}"))
        else:
            results.append([rows[key][0] for key in keys])
    if not results:
        count, what = min(problems)  # of the more likely base
        raise ValueError(f"{count} {what}")
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


def checked_ids(token_ids: list[list[int]] | None, tokenizer: Any) -> list[list[int]] | None:
    """The token ids as they are. Raises UserError if they are of another vocabulary.

    Decoding and tokenizing keeps 100 % of MOSI's sentences with their own vocabulary, and 50 to
    85 % with a shuffled one.
    """
    if token_ids is None:
        return None
    equal = 0
    if max([max(ids) for ids in token_ids if ids], default=0) < len(tokenizer):
        texts = tokenizer.batch_decode(token_ids, skip_special_tokens=True)
        again = tokenizer(texts, truncation=True)["input_ids"]
        known = [[id for id in ids if id != tokenizer.unk_token_id] for ids in token_ids]
        equal = sum(a == b for a, b in zip(again, known, strict=True))
    if equal < 0.95 * len(token_ids):
        raise UserError(
            "the data hold token ids instead of text, and --bert has another vocabulary: only "
            f"{equal / len(token_ids):.0%} of the sentences survive decoding and tokenizing"
        )
    return token_ids
