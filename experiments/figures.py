"""Pictures of a run, as PNGs in its folder; needs matplotlib.

    python experiments/figures.py runs/NAME

features.png: x and h of the valid split in the plane of their first two principal components (PCA),
before training and at the best epoch. Left, by modality: what L^a is to bring together. Right, by
sentiment, each modality moved to its own mean: what L^d is to sort. Before and after share one plane,
fitted on both together, and one scale.
curves.png: each loss of Eq. 16, the discriminators and the valid metrics, epoch by epoch; for a run of
similarity.py also how far apart the modalities are.
predictions.png: predictions against labels, on valid.
"""

import json
import math
import sys
from pathlib import Path

import numpy as np
import similarity
import tables  # puts the project's folder on the path
import torch
from torch import Tensor

import plumbing
import train
from plumbing import explained
from plumbing.runs import replacing

try:
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
except ImportError:
    print("error: figures.py needs matplotlib: pip install matplotlib", file=sys.stderr)
    sys.exit(2)

matplotlib.rcParams.update({"font.size": 13, "savefig.dpi": 150})
NAMES = {"a": "audio", "v": "visual", "l": "language"}
# The colour-blind can tell them apart, too: Okabe and Ito's colours, and three shapes
COLOURS = {"a": "#E69F00", "v": "#009E73", "l": "#0072B2"}
SHAPES = {"a": "o", "v": "^", "l": "s"}
LINES = ({"c": "#0072B2"}, {"c": "#D55E00", "ls": "--"})

PANELS = {  # of curves.png: title, then its lines: part and name in metrics.jsonl, label
    r"$\mathcal{L}^{task}$ (Eq. 15)": [("train", "task", "")],
    r"$\mathcal{L}^{a}$ (Eq. 8)": [("train", "adversarial", "")],
    r"$\mathcal{L}^{d}$ (Eq. 10)": [("train", "distance", "")],
    r"$\mathcal{L}^{rl}$ (Eq. 12)": [("train", "reconstruction", "")],
    "discriminators (Eqs. 5–7)": [
        ("train", "d_real", "$D_m(h_m)$"),
        ("train", "d_fake", r"$D_m(h_k),\ k \neq m$"),
    ],
    "valid": [("valid", "mae", "MAE"), ("valid", "corr", "Corr")],
    "valid: probe of the modality": [
        ("observed", "x_probe", "of $x$"),
        ("observed", "h_probe", "of $h$"),
    ],
    "valid: CMD between modalities": [
        ("observed", "x_cmd", "of $x$"),
        ("observed", "h_cmd", "of $h$"),
    ],
    "valid: share of triplets violated": [("observed", "violated", "")],
}


def curves(log: list[dict]) -> Figure:
    """log: the lines of metrics.jsonl. What a run did not log has no panel."""
    panels = {
        title: lines
        for title, lines in PANELS.items()
        if all(name in entry.get(part, {}) for part, name, _ in lines for entry in log)
    }
    epochs = [entry["epoch"] for entry in log]
    best = min(log, key=lambda entry: entry["valid"]["mae"])["epoch"]
    rows = math.ceil(len(panels) / 3)
    figure = Figure(figsize=(12, 3 * rows), layout="constrained")
    figure.suptitle("train: means over each epoch; valid: after it; dotted: the best epoch")
    for i, (title, lines) in enumerate(panels.items()):
        axis = figure.add_subplot(rows, 3, i + 1)
        for (part, name, label), style in zip(lines, LINES, strict=False):
            values = [entry[part][name] for entry in log]
            axis.plot(epochs, values, marker="o", markersize=4, label=label, **style)
        axis.axvline(best, c="grey", ls=":")
        axis.set(title=title, xlabel="epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(lines) > 1:
            axis.legend(fontsize=11)
    return figure


def planes(states: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """PCA: all states on the first two principal components of all of them together.

    states: as before and after training, {m: (N_m, d)} each -> the same, {m: (N_m, 2)} each
    """
    everyone = torch.cat([values for state in states for values in state.values()])
    centre = everyone.mean(0)
    axes = torch.linalg.svd(everyone - centre, full_matrices=False).Vh[:2]
    return [{m: (values - centre) @ axes.T for m, values in state.items()} for state in states]


def draw(axes: np.ndarray, states: list[dict[str, Tensor]], colour: dict[str, dict]):
    """Each state on its axis, all in one plane and one scale -> what a colour bar needs."""
    drawn = planes(states)
    everyone = torch.cat([points for plane in drawn for points in plane.values()])
    low, high = everyone.amin(0), everyone.amax(0)
    x, y = ((low + high) / 2).tolist()
    half = 0.54 * float((high - low).max())
    for axis, plane in zip(axes, drawn, strict=True):
        for m, points in plane.items():
            style = {"marker": SHAPES[m], "s": 24, "alpha": 0.7, "linewidths": 0}
            shown = axis.scatter(*points.T, label=NAMES[m], **style, **colour[m])
        axis.set(xlim=(x - half, x + half), ylim=(y - half, y + half))
        axis.set(box_aspect=1, xticks=[], yticks=[])
    return shown


def features(before: dict, after: dict) -> Figure:
    """before, after: what `similarity.embed` gives."""
    figure = Figure(figsize=(12, 6.6), layout="constrained")
    grid = figure.subplots(2, 4)
    modality = {m: {"color": colour} for m, colour in COLOURS.items()}
    scale = {"cmap": "coolwarm", "vmin": -3, "vmax": 3}
    sentiment = {m: {"c": y, **scale} for m, y in before["y"].items()}
    for row, part in zip(grid, ("x", "h"), strict=True):
        states = [before[part], after[part]]
        centred = [{m: v - v.mean(0) for m, v in state.items()} for state in states]
        draw(row[:2], states, modality)
        bar = draw(row[2:], centred, sentiment)
    halves = ("by modality", "by sentiment, centred")
    titles = [f"{half}\n{when} training" for half in halves for when in ("before", "after")]
    for axis, title in zip(grid[0], titles, strict=True):
        axis.set_title(title)
    grid[0, 0].set_ylabel("$x_m$ (Eqs. 1–3)")
    grid[1, 0].set_ylabel("$h_m$ (Eq. 4)")
    handles, names = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, markerscale=2)
    figure.colorbar(bar, ax=grid, label="sentiment $y$", aspect=40)
    what = "before and after share plane and scale; centred: each modality about its mean"
    figure.suptitle(f"Valid split, PCA: {what}")
    return figure


def predictions(y_hat: np.ndarray, y: np.ndarray) -> Figure:
    metrics = train.metrics(y_hat, y)
    figure = Figure(figsize=(6, 6), layout="constrained")
    axis = figure.subplots()
    axis.plot([-3, 3], [-3, 3], c="grey", lw=1)
    axis.scatter(y, y_hat, s=14, alpha=0.6, c=COLOURS["l"])
    title = f"valid: MAE {metrics['mae']:.3f}, Corr {metrics['corr']:.3f}"
    axis.set(title=title, xlabel="label $y$", ylabel=r"prediction $\hat{y}$", aspect="equal")
    return figure


def main():
    parser = tables.parser(__doc__, options=False)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a trained run")
    folder = parser.parse_args().run
    run, config, before, after = similarity.before_and_after(folder, similarity.embed)
    with explained(f"{folder / 'metrics.jsonl'} is no log of a run"):
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        pictures = {"curves": curves([json.loads(line) for line in lines])}
    pictures["features"] = features(before, after)
    pictures["predictions"] = predictions(*train.predict(run, run.segments["valid"], config))
    for name, figure in pictures.items():
        path = folder / f"{name}.png"
        with replacing(path) as beside:
            figure.savefig(beside, format="png")
        print(path)


if __name__ == "__main__":
    sys.exit(plumbing.run(main))
