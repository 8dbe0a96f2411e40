"""The paper's tables, over seeds, each of its rows beside ours.

    python experiments/tables.py --table 2 --seeds 5                        # MOSI
    python experiments/tables.py --table 3 --seeds 5                        # MOSEI
    python experiments/tables.py --table 2 --rows "TFN (B)" "MISA (B)" --jobs 2 -- --data FILE
    python experiments/tables.py --table 4 --seeds 5 --jobs 2 -- --bert FOLDER --data FILE
    python experiments/tables.py --table 4 --from runs/tables/mosi          # of finished runs

What follows `--` goes to train.py, a row's own options (ROWS here and in baselines.py) after it. A
finished run is not run again and a broken one is resumed, so the same command goes on where it stopped.
All seeds are shown and none is dropped. Every run chooses its epoch on valid and reads test once.
"""

import argparse
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import baselines

import plumbing
import train
from plumbing import UserError
from plumbing.runs import read_json
from train import COLUMNS

TRAIN = [str(ROOT / "train.py")]
BASELINES = str(ROOT / "experiments" / "baselines.py")
HEADS = ("Acc-2 non0", "F1 non0", "Acc-2 has0", "F1 has0", "MAE", "Corr", "Acc-7", "Acc-5")

ROWS = {  # Table 4's rows, then two that users ask for and the paper lacks: one change each
    "MSFN": "",
    "without L^a": "--alpha 0",
    "without L^d": "--beta 0",
    "without L^rl": "--gamma 0",
    "task loss only": "--alpha 0 --beta 0 --gamma 0",
    "text only, task loss only": "--modalities l --alpha 0 --beta 0 --gamma 0",
}

# Acc-2, F1, MAE, Corr, Acc-7 as printed. The paper does not name its Acc-2; most plausibly non0.
PAPER = {
    2: """MFN 77.3 77.4 1.042 0.615 30.6; LMF 77.3 77.3 1.005 0.622 35.4;
        TFN 78.2 78.3 0.987 0.615 34.5; TFN (B) 80.8 80.8 0.901 0.698 34.9;
        LMF (B) 82.5 82.5 0.917 0.695 33.2; ICCN (B) 83.1 83.0 0.862 0.714 39.0;
        ARGF (B) 83.4 83.6 0.826 0.740 37.9; MISA (B) 83.1 83.0 0.796 0.749 43.4;
        MSFN 83.4 83.5 0.802 0.756 43.1""",
    3: """TFN 76.2 76.1 0.722 0.510 43.2; MFN 76.6 76.7 0.727 0.511 43.9;
        LMF 76.2 76.4 0.712 0.540 45.1; TFN (B) 82.6 82.1 0.593 0.700 50.2;
        LMF (B) 82.0 82.2 0.623 0.677 48.0; ICCN (B) 84.2 84.4 0.565 0.713 51.6;
        MISA (B) 84.1 83.6 0.563 0.755 50.8; ARGF (B) 84.2 84.7 0.572 0.740 51.2;
        MSFN 84.5 84.4 0.560 0.747 51.6""",
    4: """MSFN 83.4 83.5 0.802 0.756 43.1; without L^a 82.5 82.6 0.835 0.746 42.1;
        without L^d 82.2 82.5 0.821 0.743 41.2; without L^rl 83.1 83.2 0.833 0.762 43.""",
}
T95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}


def folder_of(runs: Path, row: str, seed: int) -> Path:
    """One folder a row and seed, named so that `--from` finds it."""
    return runs / f"{row.replace(' ', '_').replace(',', '')}-seed{seed}"


def run(folder: Path, argv: list[str], threads: int, script: list[str] = TRAIN):
    """Train, or go on, or do nothing if it is done. Raises UserError if it fails."""
    if (folder / "results.json").exists():
        return
    begun = (folder / "config.json").exists()
    new = [*argv, "--name", folder.name, "--runs", str(folder.parent)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / f"{folder.name}.log", "a", encoding="utf-8") as log:
        argv = ["--resume", str(folder)] if begun else new
        command = [sys.executable, *script, *argv]
        if subprocess.call(command, env=environment, stdout=log, stderr=log):
            raise UserError(f"{folder.name} failed; {log.name} says why")
    print(f"done: {folder.name}", file=sys.stderr, flush=True)


def same_options(folder: Path, argv: list[str]):
    """Raises UserError if the run in `folder` was made with other options than `argv`."""
    asked = asdict(train.parse(argv)[0])
    if not (folder / "config.json").exists():
        return
    found = asdict(train.read_config(folder))
    for key in set(asked) - {"name", "runs"} - ({"data"} if asked["data"] is None else set()):
        if found[key] != asked[key]:
            raise UserError(
                f"{folder} was run with {key} = {found[key]}, not {asked[key]}: "
                "choose another folder with --runs"
            )


def run_all(work: dict[Path, list[str]], jobs: int, scripts: dict[Path, list[str]] | None = None):
    """{folder: what to type after train.py, or after its script}, `jobs` at a time. Raises UserError."""
    if jobs < 1:
        raise UserError(f"--jobs must be at least 1, not {jobs}")
    for folder, argv in work.items():
        same_options(folder, argv)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    scripts = scripts or {}
    with ThreadPoolExecutor(jobs) as pool:
        try:
            list(pool.map(lambda f: run(f, work[f], threads, scripts.get(f, TRAIN)), work))
        finally:  # after a failure or Ctrl-C, start no more
            pool.shutdown(cancel_futures=True)


def collect(runs: Path, rows: list[str], seeds: range) -> dict[str, list[dict]]:
    """{row: what its finished runs' results.json hold, in the order of seeds}"""
    results = {}
    for row in rows:
        files = [folder_of(runs, row, seed) / "results.json" for seed in seeds]
        found = [read_json(f) for f in files if f.exists()]
        if found:
            results[row] = found
    return results


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(column: str, values: list[float], spread: float | None) -> str:
    text = train.number(column, statistics.fmean(values))
    return text if spread is None else f"{text} ± {train.number(column, spread)}"


def paired(column: str, these: list[float], those: list[float]) -> str:
    """The mean difference seed by seed ± its standard error, and whether it is noise (95 %)."""
    change = [a - b for a, b in zip(these, those, strict=True)]
    error = statistics.stdev(change) / len(change) ** 0.5
    noise = abs(statistics.fmean(change)) <= T95[len(change)] * error
    return cell(column, change, error) + (" (within noise)" if noise else "")


def our_rows(row: str, runs: list[dict]) -> list[list[str]]:
    """Mean ± standard deviation, then each seed."""
    columns = {c: [run["test"][c] for run in runs] for c in COLUMNS}
    name, rows = f"**{row}**, {len(runs)} seed{'s' * (len(runs) > 1)}", []
    for found in runs if len(runs) > 1 else []:
        cells = (cell(c, [found["test"][c]], None) for c in COLUMNS)
        rows.append([f"seed {found['seed']}", *cells])
    spread = {c: statistics.stdev(v) if rows else None for c, v in columns.items()}
    return [[name, *(cell(c, v, spread[c]) for c, v in columns.items())], *rows]


def main_table(table: int, results: dict[str, list[dict]]) -> str:
    """Each of the paper's rows and ours below it, then those that the paper lacks."""
    ours, rows = {row: our_rows(row, runs) for row, runs in results.items()}, []
    for line in PAPER[table].split(";"):
        *name, acc2, f1, mae, corr, acc7 = line.split()
        name = " ".join(name)
        rows.append([f"paper: {name}", acc2, f1, "–", "–", mae, corr, acc7, "–"])
        rows += ours.pop(name, []) + ours.pop(f"{name} (static)", [])
    return markdown(["", *HEADS], rows + [line for lines in ours.values() for line in lines])


def settings_table(runs: Path, results: dict[str, list[dict]]) -> str:
    """What the rows' first runs were told, where it is not the same for all."""
    folders = [folder_of(runs, row, found[0]["seed"]) for row, found in results.items()]
    told = [asdict(train.read_config(folder)) for folder in folders]
    keys = [k for k in told[0] if k != "name" and len({c[k] for c in told}) > 1]
    lines = [[row, *(str(c[k]) for k in keys)] for row, c in zip(results, told, strict=True)]
    return markdown(["settings", *keys], lines)


def difference_table(results: dict[str, list[dict]]) -> str:
    """Each row less the first."""
    base, *rest = results
    rows = []
    for row in rest:
        cells = []
        for c in COLUMNS:
            these, those = ([run["test"][c] for run in results[r]] for r in (row, base))
            cells.append(paired(c, these, those))
        rows.append([f"{row} − {base}", *cells])
    return markdown(["paired difference", *HEADS], rows)


def parser(doc: str, runs: str | None = None, options: bool = True) -> argparse.ArgumentParser:
    """What the scripts share: --jobs and --runs where there are runs, train.py's options after --."""
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    if runs:
        made.add_argument("--jobs", type=int, default=1, help="runs side by side (1)")
        made.add_argument("--runs", type=Path, default=Path(runs), help=f"({runs})")
    if options:
        made.add_argument("options", nargs="*", help="after --: train.py's own options")
    return made


def main():
    own = parser(__doc__, "runs/tables")
    own.add_argument("--table", type=int, choices=(2, 3, 4), required=True)
    own.add_argument("--rows", nargs="+", metavar="ROW", help="some of the table's, with MSFN")
    own.add_argument("--vectors", metavar="FILE", help="GloVe's, for the static rows")
    own.add_argument("--seeds", type=int, default=5, choices=range(1, 11), help="0 … N-1 (5)")
    own.add_argument("--from", type=Path, dest="source", help="only read what is in this folder")
    typed = own.parse_args()
    dataset = "mosei" if typed.table == 3 else "mosi"
    if not train.parse(["--dataset", dataset, *typed.options])[0].test:
        own.error("the tables are of the test split: leave --no-test out")
    options = ROWS if typed.table == 4 else {r: made.options for r, made in baselines.ROWS.items()}
    rows, seeds = list(dict.fromkeys(["MSFN", *(typed.rows or options)])), range(typed.seeds)
    if unknown := set(rows) - set(options):
        own.error(f"--rows: {unknown.pop()} is none of {', '.join(options)}")
    runs = typed.source or typed.runs / dataset
    if not typed.source:
        work, scripts = {}, {}
        for seed in seeds:
            for row in rows:
                folder = folder_of(runs, row, seed)
                argv = [*typed.options, "--seed", str(seed), *options[row].split()]
                if typed.vectors and row.endswith("(static)"):
                    argv += ["--bert", typed.vectors]
                work[folder] = ["--dataset", dataset, *argv]
                scripts[folder] = TRAIN if typed.table == 4 else [BASELINES, row]
        run_all(work, typed.jobs, scripts)
    results = collect(runs, rows, seeds)
    if not results or any("test" not in run for found in results.values() for run in found):
        own.error(f"{runs} holds no results.json with test of {', '.join(rows)}")
    print(main_table(typed.table, results))
    complete = len({len(found) for found in results.values()}) == 1
    if len(results) > 1 and complete and len(next(iter(results.values()))) > 1:
        print("\n" + difference_table(results))
    if typed.table != 4:
        print("\n" + settings_table(runs, results))


if __name__ == "__main__":
    sys.exit(plumbing.run(main))
