"""A picture of a run, features.png in its folder; needs matplotlib.

    python -m experiments.figures runs/NAME

It shows x and h of the valid split in the plane of their first two principal components (PCA),
before training and at the best epoch. Left, by modality: what L^a should bring together. Right, by
sentiment, each modality moved to its own mean: what L^d should sort. Before and after share one
plane, fitted on both together, and one scale.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor

import plumbing
from experiments import parser
from experiments.similarity import before_and_after, embed
from plumbing import UserError
from plumbing.runs import replacing

try:
    import matplotlib
    from matplotlib.figure import Figure
except ImportError:
    Figure = matplotlib = None

STYLE = {"font.size": 13, "savefig.dpi": 150}
NAMES = {"a": "audio", "v": "visual", "l": "language"}
# Okabe and Ito's colors, which the color-blind can tell apart, and three shapes
COLORS = {"a": "#E69F00", "v": "#009E73", "l": "#0072B2"}
SHAPES = {"a": "o", "v": "^", "l": "s"}


def draw(axes: list, states: list[dict[str, Tensor]], color: dict[str, dict]) -> object:
    """Draw each state on its axis -> the last points, for a color bar

    All share one scale and one plane, of the first two principal components of all together.

    states: {m: (N_m, d)} each, such as before and after training
    """
    joint = torch.cat([values for state in states for values in state.values()])
    center = joint.mean(0)
    plane = torch.linalg.svd(joint - center, full_matrices=False).Vh[:2].T  # (d, 2)
    low, high = ((joint - center) @ plane).aminmax(dim=0)
    x, y = ((low + high) / 2).tolist()
    half = 0.54 * float((high - low).max())
    for axis, state in zip(axes, states, strict=True):
        for m, values in state.items():
            style = {"marker": SHAPES[m], "s": 24, "alpha": 0.7, "linewidths": 0}
            points = (values - center) @ plane  # (N_m, 2)
            drawn = axis.scatter(*points.T, label=NAMES[m], **style, **color[m])
        axis.set(xlim=(x - half, x + half), ylim=(y - half, y + half))
        axis.set(box_aspect=1, xticks=[], yticks=[])
    return drawn


def features(before: dict, after: dict) -> Figure:
    """before, after: as `similarity.embed` gives them"""
    figure = Figure(figsize=(12, 6.6), layout="constrained")
    grid = figure.subplots(2, 4)
    modality = {m: {"color": color} for m, color in COLORS.items()}
    scale = {"cmap": "coolwarm", "vmin": -3, "vmax": 3}
    sentiment = {m: {"c": y, **scale} for m, y in before["y"].items()}
    for row, part in zip(grid, ("x", "h"), strict=True):
        states = [before[part], after[part]]
        centered = [{m: v - v.mean(0) for m, v in state.items()} for state in states]
        draw(row[:2], states, modality)
        bar = draw(row[2:], centered, sentiment)
    halves = ("by modality", "by sentiment, centered")
    titles = [f"{half}\n{when} training" for half in halves for when in ("before", "after")]
    for axis, title in zip(grid[0], titles, strict=True):
        axis.set_title(title)
    grid[0, 0].set_ylabel("$x_m$ (Eqs. 1–3)")
    grid[1, 0].set_ylabel("$h_m$ (Eq. 4)")
    handles, names = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, markerscale=2)
    figure.colorbar(bar, ax=grid, label="sentiment $y$", aspect=40)
    note = "before and after share plane and scale; centered: each modality about its mean"
    figure.suptitle(f"Valid split, PCA: {note}")
    return figure


def main(argv: list[str]) -> None:
    own = parser(__doc__)
    own.add_argument("run", type=Path, metavar="RUN", help="folder of a trained run")
    folder = own.parse_args(argv).run
    if matplotlib is None:
        raise UserError("a picture needs matplotlib: pip install matplotlib")
    before, after = before_and_after(folder, embed)
    path = folder / "features.png"
    with matplotlib.rc_context(STYLE):
        figure = features(before, after)
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png")
    print(path)


if __name__ == "__main__":
    sys.exit(plumbing.run(main, sys.argv[1:]))
