"""The paper's grid search (4.2) over α, β, γ and the margin, scored on valid alone.

    python experiments/grid.py --dataset mosi --jobs 2 -- --data FILE --bert FOLDER      # all 256
    python experiments/grid.py --dataset mosi --random 20 -- --data FILE --bert FOLDER   # 20 of them

What follows `--` goes to train.py as it is. No trial reads the test split. Each finished trial is a
row of runs/grid/DATASET/trials.csv, sorted by valid MAE; the same command goes on where it stopped.
"""

import csv
import itertools
import random
import sys
from pathlib import Path

import tables  # puts the project's folder on the path

import plumbing
from plumbing import UserError
from plumbing.runs import read_json, replacing

GRID = {  # Table 1's values are among them; the paper names neither its grid nor its margin
    "alpha": (0.1, 0.2, 0.4, 0.8),
    "beta": (0.1, 0.3, 0.5, 1.0),
    "gamma": (0.1, 0.2, 0.4, 0.8),
    "margin": (0.2, 0.5, 1.0, 2.0),
}


def trials(number: int | None, seed: int) -> list[dict[str, float]]:
    """All points of the grid, or a random sample without repeats. Raises UserError for too many."""
    points = [dict(zip(GRID, values, strict=True)) for values in itertools.product(*GRID.values())]
    if number is not None and not 1 <= number <= len(points):
        raise UserError(f"--random must be in 1 … {len(points)}, not {number}")
    return points if number is None else random.Random(seed).sample(points, number)


def write_csv(runs: Path) -> list[dict]:
    """trials.csv from the results.json of every finished trial, the best on valid first."""
    rows = []
    for path in runs.glob("*/results.json"):
        config = read_json(path.parent / "config.json")
        found = read_json(path)
        point = {name: config[name] for name in (*GRID, "seed")}
        valid = {f"valid_{name}": value for name, value in found["valid"].items()}
        rows.append({**point, "epoch": found["epoch"], **valid})
    rows.sort(key=lambda row: row["valid_mae"])
    with replacing(runs / "trials.csv") as beside, open(beside, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return rows


def main():
    parser = tables.parser(__doc__, "runs/grid")
    parser.add_argument("--dataset", choices=("mosi", "mosei", "synthetic"), required=True)
    parser.add_argument("--random", type=int, metavar="N", help="N points of the grid, not all")
    parser.add_argument("--seed", type=int, default=0, help="of the sample and the runs (0)")
    typed = parser.parse_args()
    runs, work = typed.runs / typed.dataset, {}
    for point in trials(typed.random, typed.seed):
        chosen = [part for name, value in point.items() for part in (f"--{name}", str(value))]
        folder = runs / "-".join([*(f"{value:g}" for value in point.values()), str(typed.seed)])
        fixed = ["--dataset", typed.dataset, "--seed", str(typed.seed), "--no-test"]
        work[folder] = [*typed.options, *fixed, *chosen]
    tables.run_all(work, typed.jobs)
    rows = write_csv(runs)
    print(f"{len(rows)} trials in {runs / 'trials.csv'}; the best on valid:")
    head = [*GRID, "epoch", "valid_mae", "valid_corr"]
    print(tables.markdown(head, [[f"{row[name]:.4g}" for name in head] for row in rows[:5]]))


if __name__ == "__main__":
    sys.exit(plumbing.run(main))
