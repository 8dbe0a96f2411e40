"""The text of a data file that has none, from a CSV of video_id, clip_id, text and label."""

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


def add(parts: dict[str, dict[str, Any]], path: str | Path, table: str | Path | None) -> None:
    """Add raw_text to splits without text. Raises UserError.

    table: the CSV; None takes the first *label*.csv beside the file, or in the data folder itself
    """
    folder = Path(path) if os.path.isdir(path) else Path(path).parent
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    tables = [folder / name for name in names if re.fullmatch(".*label.*[.]csv", name.lower())]
    if not (table or tables):
        columns = ", ".join(COLUMNS)
        raise UserError(f"{path} has no text: name a CSV of {columns} with --labels")
    table = table or tables[0]
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
    with explained(f"{table} cannot be read as a CSV in UTF-8"):
        text = regular(table).read_text(encoding="utf-8-sig")
        separator = max(",;\t", key=text.partition("\n")[0].count)
        reader = csv.DictReader(io.StringIO(text), delimiter=separator)
        reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or ()]
        for row in reader:
            with explained(f"{table}, line {reader.line_num}, needs {', '.join(COLUMNS)}"):
                if None in row or None in row.values():
                    raise ValueError("it has more or fewer cells than the first line")
                video, clip, words, label = (row[name].strip() for name in COLUMNS)
                entry = words, float(label or math.nan)
                rows[video, str(int(clip))] = entry
                if row.get("start"):  # clips of length 0 start with the next one: the last counts
                    rows[video, f"{float(row['start']):.1f}"] = entry
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
            problems.append(f"{len(missing)} segments have no row, such as {missing[0]}")
        elif len(wrong) > 0.05 * np.isfinite(difference).sum():
            problems.append(f"{len(wrong)} labels differ, such as that of {part['id'][wrong[0]]}")
        else:
            results.append([rows[key][0] for key in keys])
    if not results:
        raise ValueError(f"if clips count from 0, {problems[0]}; if from 1, {problems[1]}")
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


def checked_ids(token_ids: None, tokenizer: Any) -> None:
    """Obsolete: every file has text. Delete it as soon as data.py no longer calls it."""
