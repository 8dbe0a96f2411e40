"""When does which loss help? Generated corpora, of which one property is turned like a dial.

    python -m experiments.dial --jobs 2                 # ten seeds: over an hour
    python -m experiments.dial own --seeds 3            # one dial, fewer seeds
    python -m experiments.dial --print                  # the tables of finished runs alone
    python -m experiments.dial --print --draw dial.png  # and the picture of own; needs matplotlib

    own     sets the part of the label that each modality alone shows; 0: all show the same
    train   number of segments to train with
    noise   noise of audio

Seed s trains on the corpus of seed s, so that intervals hold over corpora, too. The table of a dial
shows what a loss adds to test MAE if it joins the other two, and what losses add to L^task alone
(below 0: they help); the same if one modality is missing in test. Where no form is named, L^a is
bounded. Each run is a line of --results, and the same command continues where it stopped.
"""

import contextlib
import io
import json
import multiprocessing
import statistics
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import product
from pathlib import Path

import numpy as np
import torch

import data
import plumbing
import train
from experiments import markdown, parser
from experiments.predict import load
from experiments.tables import interval
from plumbing import UserError, explained, regular
from plumbing.metrics import metrics
from plumbing.runs import replacing

DIALS = {"own": (0.0, 0.25, 0.5, 0.75, 1.0), "train": (100, 300, 900), "noise": (0.5, 2.0)}
BOUNDED = "--adversarial bounded"
TRAINED = {  # train.py's options of each row
    "all, as printed": "--adversarial literal",
    "all, bounded": BOUNDED,
    "without L^a": "--alpha 0",
    "without L^d": f"{BOUNDED} --beta 0",
    "without L^rl": f"{BOUNDED} --gamma 0",
    "L^d only": "--alpha 0 --gamma 0",
    "task loss only": "--alpha 0 --beta 0 --gamma 0",
}
EFFECTS = {  # what is added: (the row with it, the row without it)
    "L^a, as printed": ("all, as printed", "without L^a"),
    "L^a, bounded": ("all, bounded", "without L^a"),
    "L^d": ("all, bounded", "without L^d"),
    "L^rl": ("all, bounded", "without L^rl"),
    "all three, as printed": ("all, as printed", "task loss only"),
    "all three, bounded": ("all, bounded", "task loss only"),
    "L^d and L^rl": ("without L^a", "task loss only"),
    "L^d alone": ("L^d only", "task loss only"),
}
PANELS = {  # of the picture: title: effects
    "one loss, added to the others": ("L^a, as printed", "L^a, bounded", "L^d", "L^rl"),
    "losses, added to the task loss": list(EFFECTS)[4:7],
}
Results = dict[tuple, dict[str, float]]  # {(own, train, noise, row, seed): {"test": MAE, …}}


# ── Runs ──────────────────────────────────────────────────────────────────────────────────────────
def positions(dial: str) -> list[tuple[float, int, float]]:
    """(own, train, noise) at each position of a dial; the other two are as in README."""
    usual = {"own": 0.0, "train": 900, "noise": data.NOISE["a"]}
    return [tuple((usual | {dial: value}).values()) for value in DIALS[dial]]


def run(own: float, segments: int, noise: float, row: str, seed: int) -> dict[str, float]:
    """Train one row on one corpus -> MAE on valid and test, and on test without each modality."""
    torch.set_num_threads(1)
    corpus = data.synthetic(seed, own, {**data.NOISE, "a": noise})
    part = {key: values[:segments] for key, values in corpus["train"].part.items()}
    corpus.splits["train"] = data.Split(part)
    with tempfile.TemporaryDirectory() as runs, contextlib.redirect_stdout(io.StringIO()):
        options = ["--dataset", "synthetic", "--seed", str(seed), "--runs", runs, "--name", "run"]
        config = train.Config(**train.parse([*options, *TRAINED[row].split()]))
        results = train.train(config, corpus=corpus)
        model, test = load(Path(runs, "run")), corpus["test"]
        missing = [metrics(model.split(test, m), test.y)["mae"] for m in ("vl", "al", "av")]
    maes = [results["valid"]["mae"], results["test"]["mae"], *missing]
    return dict(zip(("valid", "test", "no a", "no v", "no l"), maes, strict=True))


def read(path: Path) -> Results:
    """The finished runs; {} without a file. Raises UserError for a file of other lines."""
    with explained(f"{path} does not hold results of this command"):
        lines = regular(path).read_text(encoding="utf-8").splitlines() if path.exists() else []
        return {tuple(run): dict(maes) for run, maes in map(json.loads, lines)}


def sweep(path: Path, dials: list[str], seeds: range, jobs: int) -> None:
    """Train what `path` does not hold yet; it is written again whenever a run ends."""
    corpora = dict.fromkeys(place for dial in dials for place in positions(dial))
    results = read(path)
    work = [(*place, row, seed) for place, seed, row in product(corpora, seeds, TRAINED)]
    path.parent.mkdir(parents=True, exist_ok=True)
    # spawn: a forked process may hang in the thread pools of its parent
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        try:
            runs = {pool.submit(run, *one): one for one in work if one not in results}
            for done in as_completed(runs):
                results[runs[done]] = done.result()
                lines = [f"{json.dumps(item)}\n" for item in results.items()]
                with replacing(path) as temporary:
                    temporary.write_text("".join(lines), encoding="utf-8")
        finally:  # after a failure or Ctrl-C, start no more
            pool.shutdown(cancel_futures=True)


# ── Tables and the picture ────────────────────────────────────────────────────────────────────────
def effect(results: Results, place: tuple, name: str, columns: tuple) -> tuple[float, float] | None:
    """What a loss adds to the mean of `columns` -> mean over the seeds, half its 95 % interval."""
    added, base = EFFECTS[name]
    differences = []
    for seed in range(10):
        pair = results.get((*place, added, seed)), results.get((*place, base, seed))
        if None not in pair:
            one, other = (statistics.fmean(line[c] for c in columns) for line in pair)
            differences.append(one - other)
    return interval(differences) if len(differences) > 1 else None


def table(results: Results, dial: str, columns: tuple) -> str:
    """Each effect at each position of a dial."""
    rows = []
    for name in EFFECTS:
        cells = [effect(results, place, name, columns) for place in positions(dial)]
        rows.append([name, *("–" if c is None else f"{c[0]:+.3f} ± {c[1]:.3f}" for c in cells)])
    return markdown([f"test MAE; {dial} =", *map(str, DIALS[dial])], rows)


def draw(results: Results, path: Path) -> None:
    """The effects over the dial `own`, with bands of 95 %. Needs matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("pictures need matplotlib: pip install matplotlib") from None
    figure = Figure(figsize=(9, 4.8), layout="constrained")
    for axis, (title, names) in zip(
        figure.subplots(1, 2, sharey=True), PANELS.items(), strict=True
    ):
        for name in names:
            effects = [effect(results, place, name, ("test",)) for place in positions("own")]
            if None in effects:
                raise UserError("the picture needs two finished seeds at each position of own")
            mean, half = np.array(effects).T
            color = f"C{list(EFFECTS).index(name)}"
            axis.plot(DIALS["own"], mean, marker="o", label=name, color=color)
            axis.fill_between(DIALS["own"], mean - half, mean + half, color=color, alpha=0.2)
        axis.axhline(0, c="grey", ls=":")
        axis.set(title=title, ylabel="added to test MAE; below 0 it helps", xticks=DIALS["own"])
        axis.label_outer()
        axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.08), ncols=2, frameon=False)
    figure.supxlabel("own: the part of the label that each modality alone shows", fontsize=11)
    with replacing(path) as beside:
        figure.savefig(beside, format="png", dpi=150)
    print(path)


def main(argv: list[str]) -> None:
    command = parser(__doc__)
    command.add_argument("dials", nargs="*", metavar="DIAL", help=", ".join(DIALS))
    command.add_argument("--seeds", type=int, default=10, choices=range(1, 11), help="0 … N-1 (10)")
    command.add_argument("--jobs", type=int, default=1, help="runs side by side (1)")
    command.add_argument(
        "--results", type=Path, default=Path("runs/dial.jsonl"), help="(runs/dial.jsonl)"
    )
    command.add_argument("--print", action="store_true", help="start no run")
    command.add_argument("--draw", type=Path, metavar="PNG", help="draw the dial own")
    typed = command.parse_args(argv)
    dials = typed.dials or list(DIALS)
    if unknown := set(dials) - set(DIALS):
        command.error(f"no dial {unknown.pop()!r}, only {', '.join(DIALS)}")
    if typed.jobs < 1:
        command.error(f"--jobs must be at least 1, not {typed.jobs}")
    if not typed.print:
        sweep(typed.results, dials, range(typed.seeds), typed.jobs)
    results = {run: maes for run, maes in read(typed.results).items() if run[-1] < typed.seeds}
    for dial in dials:
        print(table(results, dial, ("test",)))
        print("\nwith one modality missing in test:\n")
        print(table(results, dial, ("no a", "no v", "no l")), "\n")
    if typed.draw:
        draw(results, typed.draw)


if __name__ == "__main__":
    sys.exit(plumbing.run(main, sys.argv[1:]))
