"""Each reading of an ambiguous equation, measured: one choice changed a row, beside the default.

    python experiments/readings.py --seeds 3 --jobs 2 -- --data FILE --bert FOLDER
    python experiments/readings.py --rows bounded cls --seeds 3 -- --data FILE     # some of them
    python experiments/readings.py --list

What follows `--` goes to train.py as it is. Runs are measured at each epoch by similarity.py, choose
their epoch on valid and read test once (never after `-- --no-test`); finished ones are not run
again. The default of a reading is what the valid columns support, within the paper's words; within
noise the paper's print wins.
"""

import json
import statistics
import sys
from pathlib import Path

import numpy as np
import tables  # puts the project's folder on the path

import plumbing

LONG = "--learning-rate 1e-3 --bert-learning-rate 1e-4 --average 0.99 --patience 30"
READINGS = {  # name: (what it reads, train.py's options)
    "default": ("Table 1", ""),
    "bounded": ("Eqs. 5–7: log(1 − D(fake))", "--adversarial bounded"),
    "sign": ("Eq. 9: classes by sign", "--classes sign"),
    "features-x": ("Eq. 9: distances between x_m", "--triplet-features x"),
    "margin-0.5": ("Eq. 9: δ = 0.5", "--margin 0.5"),
    "sum": ("Eqs. 9, 12, 15: sums, as printed", "--reduction sum"),
    "detached": ("Eq. 12: target detached", "--detach-target"),
    "batch": ("Eq. 13: over the batch", "--attention batch"),
    "segment": ("Eq. 13: over the segment", "--attention segment"),
    "cls": ("Eq. 3: [CLS]", "--pooling cls"),
    "rest-1e-3": ("1e-3 but for BERT", "--learning-rate 1e-3 --bert-learning-rate 1e-4"),
    "alpha-0": ("α = 0", "--alpha 0"),
    "alpha-5": ("α = 5", "--alpha 5"),
    "beta-0": ("β = 0", "--beta 0"),
    "gamma-0": ("γ = 0", "--gamma 0"),
    "plain": ("α = β = γ = 0", "--alpha 0 --beta 0 --gamma 0"),
    "text-plain": ("text alone, α = β = γ = 0", "--modalities l --alpha 0 --beta 0 --gamma 0"),
    "text-plain-segment": (
        "the same, Eq. 13 over the segment",
        "--modalities l --alpha 0 --beta 0 --gamma 0 --attention segment",
    ),
    "long-0": ("1e-3 but for BERT, a mean of the weights, α = 0", f"{LONG} --alpha 0"),
    "alike": (
        "the same, bounded, α = 1, ρ = 10",
        f"{LONG} --adversarial bounded --alpha 1 --penalty 10",
    ),
}
OBSERVED = {
    "x_probe": "probe x",
    "h_probe": "probe h",
    "h_lead": "lead h",
    "x_cmd": "CMD x",
    "h_cmd": "CMD h",
}
OBSERVED |= {"h_spread": "spread h"} | {n: n for n in ("violated", "d_ap", "d_an")}
SIMILARITY = [str(tables.ROOT / "experiments" / "similarity.py"), "--train"]


def metrics_table(results: dict[str, list[dict]]) -> str:
    """Mean ± standard deviation; and in MAE the paired difference from the first row."""
    rows, base = [], next(iter(results))
    splits = [s for s in ("valid", "test") if all(s in run for r in results.values() for run in r)]
    for row, runs in results.items():
        cells = []
        for split in splits:
            for c in ("mae", "corr"):
                values = [run[split][c] for run in runs]
                cells.append(tables.cell(c, values, statistics.stdev(values)))
                if c == "mae":
                    those = [run[split][c] for run in results[base]]
                    cells.append("" if row == base else tables.paired(c, values, those))
        rows.append([f"{row}, {READINGS[row][0]}", *cells])
    names = [f"{split} {c}" for split in splits for c in ("MAE", "− default", "Corr")]
    return tables.markdown([f"{len(results[base])} seeds", *names], rows)


def similarity_table(results: dict[str, list[dict]]) -> str:
    """What similarity.py saw on valid at the epoch chosen: means over the seeds."""
    rows = []
    for row, runs in results.items():
        means = [np.mean([run["observed"].get(name, np.nan) for run in runs]) for name in OBSERVED]
        rows.append(
            [f"{row}, {READINGS[row][0]}", *("–" if np.isnan(x) else f"{x:.2f}" for x in means)]
        )
    return tables.markdown(["on valid", *OBSERVED.values()], rows)


def add_observed(runs: Path, row: str, results: list[dict]):
    """Into each result, what was observed at its epoch."""
    for seed, found in enumerate(results):
        log = tables.folder_of(runs, row, seed) / "metrics.jsonl"
        lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        found["observed"] = lines[found["epoch"]].get("observed", {})


def main():
    parser = tables.parser(__doc__, "runs/readings")
    parser.add_argument("--list", action="store_true", help="the rows and what they change")
    parser.add_argument(
        "--rows", nargs="+", choices=READINGS, default=list(READINGS), metavar="ROW"
    )
    parser.add_argument("--dataset", choices=("mosi", "mosei", "synthetic"), default="mosi")
    parser.add_argument("--seeds", type=int, default=3, choices=range(2, 11), help="0 … N-1 (3)")
    typed = parser.parse_args()
    if typed.list:
        names = [[name, *what] for name, what in READINGS.items()]
        return print(tables.markdown(["row", "reading", "options"], names))
    rows = list(dict.fromkeys(["default", *typed.rows]))
    runs, work = typed.runs / typed.dataset, {}
    for seed in range(typed.seeds):
        for row in rows:
            argv = ["--dataset", typed.dataset, *typed.options, "--seed", str(seed)]
            work[tables.folder_of(runs, row, seed)] = [*argv, *READINGS[row][1].split()]
    tables.run_all(work, typed.jobs, dict.fromkeys(work, SIMILARITY))
    results = tables.collect(runs, rows, range(typed.seeds))
    for row, found in results.items():
        add_observed(runs, row, found)
    print(metrics_table(results), similarity_table(results), sep="\n\n")


if __name__ == "__main__":
    sys.exit(plumbing.run(main))
