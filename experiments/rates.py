"""A small grid on valid for each row of Tables 2 and 3, of the same size for every row.

    python experiments/rates.py --seeds 2 --jobs 2 -- --data FILE --bert FOLDER
    python experiments/rates.py --rows MSFN "text only" "TFN (B)" -- --data FILE --bert FOLDER

Rates decide more than models do: what is built from scratch learns nothing at a rate that suits an
encoder, and the other way round. So each row gets six points, the same seeds, up to 20 epochs
and a patience of 5: rows that are fine-tuned the rate of the encoder and that of all else; static rows,
whose encoder has no rate, their rate and dropout. No trial reads test. What follows `--` goes to train.py
as it is; finished runs are not run again.
"""

import itertools
import statistics
import sys
from pathlib import Path

import tables  # puts the project's folder on the path
from baselines import ROWS

import plumbing
from plumbing.runs import read_json

AXES = {  # by whether the row is static
    False: {"learning-rate": (1e-4, 3e-4, 1e-3), "bert-learning-rate": (3e-5, 1e-4)},
    True: {"learning-rate": (3e-3, 1e-2, 3e-2), "dropout": (0.1, 0.3)},
}


def points(static: bool) -> list[list[str]]:
    """Each point as train.py's options."""
    axes = AXES[static]
    values = itertools.product(*axes.values())
    return [[f"--{k}={v:g}" for k, v in zip(axes, point, strict=True)] for point in values]


def folder_of(runs: Path, row: str, point: list[str], seed: int) -> Path:
    return tables.folder_of(runs, " ".join([row, *(p.split("=")[1] for p in point)]), seed)


def scores(runs: Path, rows: list[str], static: bool, seeds: range) -> str:
    """Mean best valid MAE of each row at each point, its epochs, and the best point in bold."""
    lines = []
    for row in rows:
        results = [
            [read_json(folder_of(runs, row, point, s) / "results.json") for s in seeds]
            for point in points(static)
        ]
        mae = [statistics.fmean(run["valid"]["mae"] for run in found) for found in results]
        epochs = [", ".join(str(run["epoch"]) for run in found) for found in results]
        cells = [f"{value:.3f} ({when})" for value, when in zip(mae, epochs, strict=True)]
        best = mae.index(min(mae))
        cells[best] = f"**{cells[best]}**"
        lines.append([row, *cells])
    head = f"valid MAE (epoch), mean of {len(seeds)}"
    return tables.markdown([head, *(" ".join(p).replace("--", "") for p in points(static))], lines)


def main():
    parser = tables.parser(__doc__, "runs/rates")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW")
    parser.add_argument("--dataset", choices=("mosi", "mosei", "synthetic"), default="mosi")
    parser.add_argument("--seeds", type=int, default=2, choices=range(1, 11), help="0 … N-1 (2)")
    typed = parser.parse_args()
    runs, seeds, work, scripts = typed.runs / typed.dataset, range(typed.seeds), {}, {}
    for seed, row in itertools.product(seeds, typed.rows):
        for point in points(ROWS[row].static):
            folder = folder_of(runs, row, point, seed)
            fixed = ["--dataset", typed.dataset, "--seed", str(seed), "--no-test"]
            own = ROWS[row].options.split()
            work[folder] = ["--epochs=20", "--patience=5", *typed.options, *fixed, *own, *point]
            scripts[folder] = [tables.BASELINES, row]
    tables.run_all(work, typed.jobs, scripts)
    for static in AXES:
        if rows := [row for row in typed.rows if ROWS[row].static == static]:
            print(scores(runs, rows, static, seeds), end="\n\n")


if __name__ == "__main__":
    sys.exit(plumbing.run(main))
