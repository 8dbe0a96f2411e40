"""Train sets of rows over seeds, and print their tables beside the paper's.

    python -m experiments.tables table4 --seeds 5 --jobs 2 -- --data FILE --bert FOLDER
    python -m experiments.tables table2 --rows "TFN (B)" "MISA (B)" -- --data FILE
    python -m experiments.tables table4 --print                      # of finished runs alone

table2: MOSI. table3: MOSEI. table4: the ablation. readings: of ambiguous equations. alike: the
modalities made alike. rates: a grid of each row's rates, on valid alone.

The options after `--` go to train.py, before those of the row (see rows.py). Finished runs are not
run again and interrupted ones are resumed, so the same command continues where it stopped; sets
share the runs of a row. No seed is dropped. Each run chooses its epoch on valid and reads test
once; rates never reads test.
"""

import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import product
from pathlib import Path

import plumbing
import train
from experiments import markdown, parser, similarity, split_options
from experiments.rows import ROWS
from plumbing import UserError
from plumbing.metrics import number
from plumbing.runs import read_json

# ── Sets of rows ──────────────────────────────────────────────────────────────────────────────────
# Acc-2, F1, MAE, Corr, Acc-7 as printed. The paper does not name its Acc-2; most plausibly non0.
PAPER = {
    "table2": """MFN 77.3 77.4 1.042 0.615 30.6; LMF 77.3 77.3 1.005 0.622 35.4;
        TFN 78.2 78.3 0.987 0.615 34.5; TFN (B) 80.8 80.8 0.901 0.698 34.9;
        LMF (B) 82.5 82.5 0.917 0.695 33.2; ICCN (B) 83.1 83.0 0.862 0.714 39.0;
        ARGF (B) 83.4 83.6 0.826 0.740 37.9; MISA (B) 83.1 83.0 0.796 0.749 43.4;
        MSFN 83.4 83.5 0.802 0.756 43.1""",
    "table3": """TFN 76.2 76.1 0.722 0.510 43.2; MFN 76.6 76.7 0.727 0.511 43.9;
        LMF 76.2 76.4 0.712 0.540 45.1; TFN (B) 82.6 82.1 0.593 0.700 50.2;
        LMF (B) 82.0 82.2 0.623 0.677 48.0; ICCN (B) 84.2 84.4 0.565 0.713 51.6;
        MISA (B) 84.1 83.6 0.563 0.755 50.8; ARGF (B) 84.2 84.7 0.572 0.740 51.2;
        MSFN 84.5 84.4 0.560 0.747 51.6""",
    "table4": """MSFN 83.4 83.5 0.802 0.756 43.1; without L^a 82.5 82.6 0.835 0.746 42.1;
        without L^d 82.2 82.5 0.821 0.743 41.2; without L^rl 83.1 83.2 0.833 0.762 43.""",
}
NAMES = list(ROWS)
TABLE_2 = NAMES[: NAMES.index("text only") + 1]
PRINTED, ALIKE = NAMES.index("as printed"), NAMES.index("long-0")
SETS = {  # the first row is what the others are compared with
    "table2": TABLE_2,
    "table3": TABLE_2,
    "table4": ["MSFN", *NAMES[NAMES.index("without L^a") : PRINTED + 1]],
    "readings": ["MSFN", "MSFN, segment", *NAMES[PRINTED:ALIKE]],
    "alike": NAMES[ALIKE:],
    "rates": TABLE_2,
}
RATES = [
    f"--learning-rate {rate} --bert-learning-rate {bert}"
    for rate, bert in product(("1e-4", "3e-4", "1e-3"), ("3e-5", "1e-4"))
]
STATIC_RATES = [
    f"--learning-rate {rate} --dropout {dropout}"
    for rate, dropout in product(("3e-3", "1e-2", "3e-2"), ("0.1", "0.3"))
]


# ── Runs ──────────────────────────────────────────────────────────────────────────────────────────
def folder_of(runs: Path, label: str, seed: int) -> Path:
    name = label.replace(" ", "_").replace(",", "").replace(":", "")
    return runs / f"{name}-seed{seed}"


def run(folder: Path, row: str, argv: list[str], threads: int) -> None:
    """Train, resume, or do nothing if the run is finished. Raises UserError if it fails."""
    if (folder / "results.json").exists():
        return
    new = [*argv, "--name", folder.name, "--runs", str(folder.parent)]
    argv = ["--resume", str(folder)] if (folder / "config.json").exists() else new
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / f"{folder.name}.log", "a", encoding="utf-8") as log:
        command = [sys.executable, "-m", "experiments.rows", row, *argv]
        if subprocess.call(command, env=environment, stdout=log, stderr=log):
            raise UserError(f"{folder.name} failed; {log.name} says why")
    print(f"done: {folder.name}", file=sys.stderr, flush=True)


def check_options(folder: Path, argv: list[str]) -> None:
    """Raises UserError if the run in `folder` was started with other options than `argv`."""
    if not (folder / "config.json").exists():
        return
    asked, used = asdict(train.Config(**train.parse(argv))), asdict(train.read_config(folder))
    for key in set(asked) - {"name", "runs"} - ({"data"} if asked["data"] is None else set()):
        if used[key] != asked[key]:
            raise UserError(
                f"{folder} was run with {key} = {used[key]}, not {asked[key]}: "
                "choose another folder with --runs"
            )


def run_all(work: dict[Path, tuple[str, list[str]]], jobs: int) -> None:
    """work: {folder: (row, train.py's options)}; runs `jobs` of them side by side."""
    if jobs < 1:
        raise UserError(f"--jobs must be at least 1, not {jobs}")
    for folder, (_, argv) in work.items():
        check_options(folder, argv)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with ThreadPoolExecutor(jobs) as pool:
        try:
            list(pool.map(lambda folder: run(folder, *work[folder], threads), work))
        finally:  # after a failure or Ctrl-C, start no more
            pool.shutdown(cancel_futures=True)


def collect(runs: Path, labels: list[str], seeds: range) -> dict[str, list[dict]]:
    """The finished runs' results by label, with what was observed at the chosen epoch."""
    results = {}
    for label, seed in product(labels, seeds):
        folder = folder_of(runs, label, seed)
        if (folder / "results.json").exists():
            log = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            result = {"config": read_json(folder / "config.json")}
            result |= read_json(folder / "results.json")
            result["observed"] = json.loads(log[result["epoch"]]).get("observed", {})
            results.setdefault(label, []).append(result)
    return results


# ── Tables ────────────────────────────────────────────────────────────────────────────────────────
# By number of seeds, from 2: Student's t of a two-sided test at 5 %, and the true mean, in standard
# errors, at which that test finds a difference with a probability of 80 % (noncentral t).
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
POWER80 = (16.335, 5.653, 4.256, 3.761, 3.514, 3.367, 3.270, 3.201, 3.150)
LEGEND = """± is half the 95 % interval (Student's t; differences are paired by seed). "finds x":
these seeds find a true difference of x with a probability of 80 %, given this spread."""
METRICS = {"mae": "MAE", "corr": "Corr", "acc2_non0": "Acc-2 non0", "acc2_has0": "has0"}
METRICS |= {"acc7": "Acc-7"}


def interval(values: list[float]) -> tuple[float, float]:
    """The mean over the seeds, and half its 95 % interval. values: of 2 to 10 seeds"""
    n = len(values)
    return statistics.fmean(values), T95[n - 2] * statistics.stdev(values) / n**0.5


def cell(metric: str, values: list[float], difference: bool = False) -> str:
    """The mean ± half its 95 % interval; of a difference also what its seeds find."""
    n = len(values)
    if n == 1:
        return number(metric, values[0])
    mean, half = interval(values)
    text = f"{number(metric, mean)} ± {number(metric, half)}"
    least = half * POWER80[n - 2] / T95[n - 2]
    return f"{text} (finds {number(metric, least)})" if difference else text


def results_table(name: str, results: dict[str, list[dict]], split: str) -> str:
    """The paper's rows where the set has them, ours below each, then those that the paper lacks."""
    ours, rows = {}, []
    for label, runs in results.items():
        mae, *others = (cell(m, [run[split][m] for run in runs]) for m in METRICS)
        each = ", ".join(number("mae", run[split]["mae"]) for run in runs)
        row = ROWS[label.split(":")[0]]  # rates: "row: options"
        over = runs[0]["config"]["attention"] if row.is_msfn else "–"
        ours[label] = [f"**{label}**", mae, each, *others, over]
    printed = PAPER.get(name, "").split(";") if split == "test" else []
    for line in filter(None, printed):
        *words, acc2, _, mae, corr, acc7 = line.split()
        row = " ".join(words)
        rows.append([f"paper: {row}", mae, "–", corr, acc2, "–", acc7, "–"])
        rows += [ours.pop(key) for key in (row, f"{row} (static)") if key in ours]
    head = [split, "MAE", "MAE of each seed", *list(METRICS.values())[1:], "attends over"]
    return markdown(head, rows + list(ours.values()))


def difference_table(results: dict[str, list[dict]], splits: list[str]) -> str:
    """Each row less the first, paired by seed: MAE on valid, all metrics on the last split."""
    (base, those), *rest = results.items()
    columns = [(s, m) for s in splits for m in METRICS if s == splits[-1] or m == "mae"]
    rows = []
    for label, these in rest:
        cells = []
        for split, m in columns:
            pairs = zip(these, those, strict=True)
            cells.append(cell(m, [a[split][m] - b[split][m] for a, b in pairs], difference=True))
        rows.append([label, *cells])
    return markdown([f"less {base}", *(f"{s} {METRICS[m]}" for s, m in columns)], rows)


def print_tables(name: str, results: dict[str, list[dict]]) -> None:
    """All tables of a set; of rates one, the best points first."""
    if name == "rates":
        mae = {k: statistics.fmean(run["valid"]["mae"] for run in v) for k, v in results.items()}
        best = sorted(results, key=mae.get)
        return print(results_table(name, {label: results[label] for label in best}, "valid"))
    tested = all("test" in run for runs in results.values() for run in runs)
    splits = ["valid", "test"] if tested else ["valid"]
    tables = [results_table(name, results, split) for split in splits]
    seeds = {tuple(run["seed"] for run in runs) for runs in results.values()}
    if len(results) > 1 and len(seeds) == 1 and len(*seeds) > 1:
        tables += [difference_table(results, splits), LEGEND]
    observed = {label: [run["observed"] for run in runs] for label, runs in results.items()}
    if any(any(each) for each in observed.values()):
        tables += [similarity.table(observed)]
    print(*tables, sep="\n\n")


def main(argv: list[str]) -> None:
    words, options = split_options(argv)
    own = parser(__doc__)
    own.add_argument("set", choices=SETS, metavar="SET", help=", ".join(SETS))
    own.add_argument("--rows", nargs="+", metavar="ROW", help="instead of the set's: any rows")
    own.add_argument("--seeds", type=int, default=5, choices=range(1, 11), help="0 … N-1 (5)")
    own.add_argument("--jobs", type=int, default=1, help="runs side by side (1)")
    own.add_argument("--runs", type=Path, default=Path("runs/tables"), help="(runs/tables)")
    own.add_argument("--vectors", metavar="FILE", help="GloVe's, for the static rows")
    own.add_argument("--print", action="store_true", help="start no run")
    typed = own.parse_args(words)
    rows = typed.rows or SETS[typed.set]
    if unknown := set(rows) - set(ROWS):
        own.error(f"no row {unknown.pop()!r}; python -m experiments.rows lists the rows")
    if typed.set == "rates":
        options = ["--epochs", "20", "--patience", "5", *options, "--no-test"]
        grids = {row: STATIC_RATES if ROWS[row].static else RATES for row in rows}
        points = {f"{row}: {rates}": (row, rates) for row in rows for rates in grids[row]}
    else:
        points = {row: (row, "") for row in [SETS[typed.set][0], *rows]}
    options = ["--dataset", "mosei" if typed.set == "table3" else "mosi", *options]
    runs, work = typed.runs / train.Config(**train.parse(options)).dataset, {}
    for seed, (label, (row, point)) in product(range(typed.seeds), points.items()):
        argv = [*options, "--seed", str(seed), *ROWS[row].options.split(), *point.split()]
        if typed.vectors and ROWS[row].static:
            argv += ["--bert", typed.vectors]
        work[folder_of(runs, label, seed)] = row, argv
    if not typed.print:
        run_all(work, typed.jobs)
    results = collect(runs, list(points), range(typed.seeds))
    if not results:
        own.error(f"{runs} holds no finished run of {', '.join(rows)}")
    print_tables(typed.set, results)


if __name__ == "__main__":
    sys.exit(plumbing.run(main, sys.argv[1:]))
