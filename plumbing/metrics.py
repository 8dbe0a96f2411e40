"""The field's metrics, and the table that prints them beside the paper's row."""

import math
from pathlib import Path

import numpy as np

COLUMNS = ("acc2_non0", "f1_non0", "acc2_has0", "f1_has0", "mae", "corr", "acc7", "acc5")
# Tables 2 and 3. The paper does not name its Acc-2: its ICCN row equals ICCN's own non0 column.
PAPER = {
    "mosi": {"acc2_non0": 0.834, "f1_non0": 0.835, "mae": 0.802, "corr": 0.756, "acc7": 0.431},
    "mosei": {"acc2_non0": 0.845, "f1_non0": 0.844, "mae": 0.560, "corr": 0.747, "acc7": 0.516},
}


def metrics(prediction: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """The field's metrics of sentiment in [-3, 3], by its usual definitions.

    mae: the mean of |ŷ − y|. corr: Pearson's; 0 if either is constant. acc7, acc5: the share that
    is equal after clipping to ±3 or ±2 and rounding (half to even). acc2, f1 in two conventions:
    has0 (negative or not, over all segments), non0 (negative or positive, over those with y ≠ 0).
    f1: each class's F1 weighted by its true count, scikit-learn's "weighted"; MulT and MISA call
    that with swapped arguments. NaN without a segment.

    prediction, y: (N,) float -> dict of float
    """
    prediction, y = np.asarray(prediction, np.float64), np.asarray(y, np.float64)
    if len(y) == 0:
        return dict.fromkeys(COLUMNS, math.nan)
    result = {"mae": np.abs(prediction - y).mean(), "corr": pearson(prediction, y)}
    for name, bound in (("acc7", 3), ("acc5", 2)):
        p, t = (x.clip(-bound, bound).round() for x in (prediction, y))
        result[name] = (p == t).mean()
    signed = y != 0
    signs = {"has0": (prediction >= 0, y >= 0), "non0": (prediction[signed] > 0, y[signed] > 0)}
    for name, (p, t) in signs.items():
        result[f"acc2_{name}"] = (p == t).mean() if len(t) else math.nan
        result[f"f1_{name}"] = weighted_f1(p, t) if len(t) else math.nan
    return {name: float(value) for name, value in result.items()}


def pearson(p: np.ndarray, t: np.ndarray) -> float:
    """The correlation, 0 if either is constant. p, t: (N,) float"""
    p, t = p - p.mean(), t - t.mean()
    norm = np.sqrt((p @ p) * (t @ t))
    return (p @ t) / norm if norm > 1e-12 * len(t) else 0.0


def weighted_f1(p: np.ndarray, t: np.ndarray) -> float:
    """F1 of the classes False and True, weighted by how many of each are true. p, t: (N,) bool"""
    f1 = []
    for c in (False, True):
        both = ((p == c) & (t == c)).sum()
        f1.append(2 * both / max((p == c).sum() + (t == c).sum(), 1))
    return np.average(f1, weights=[(~t).sum(), t.sum()])


def table(dataset: str, rows: dict[str, dict[str, float]]) -> str:
    """The metrics as text, one row per name, after the paper's row if it has one."""
    if dataset in PAPER:
        rows = {"paper: MSFN": PAPER[dataset], **rows}
    lines = [f"{'':20}" + "".join(f"{c.replace('_', ' '):>10}" for c in COLUMNS)]
    for name, row in rows.items():
        cells = "".join(f"{number(c, row[c]) if c in row else '–':>10}" for c in COLUMNS)
        lines.append(f"{name:20}" + cells)
    return "\n".join(lines)


def print_results(results: dict, folder: Path | str) -> None:
    """Print a finished run's metrics, and where they are. results: the content of results.json"""
    splits = {split: results[split] for split in ("valid", "test") if split in results}
    print(f"\n{results['dataset']}, epoch {results['epoch']}, the best on valid:")
    print(table(results["dataset"], splits))
    print(f"{folder} holds metrics.jsonl and the weights, model.safetensors")


def number(column: str, value: float) -> str:
    """A metric as the paper prints it: MAE and Corr with three digits, the others in percent."""
    return f"{value:.3f}" if column in ("mae", "corr") else f"{100 * value:.1f}"


def epoch_line(entry: dict, with_header: bool) -> str:
    """An epoch's losses and valid metrics as a line of the log. entry: a line of metrics.jsonl"""
    valid = {"valid MAE": entry["valid"]["mae"], "Corr": entry["valid"]["corr"]}
    numbers = {name: f"{value:.3f}" for name, value in (entry["train"] | valid).items()}
    columns = {"epoch": str(entry["epoch"]), **numbers, "seconds": f"{entry['seconds']:.0f}"}
    line = " ".join(text.rjust(max(len(name), 6)) for name, text in columns.items())
    header = " ".join(name.rjust(6) for name in columns)
    return f"{header}\n{line}" if with_header else line
