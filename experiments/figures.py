"""Pictures of a run, as PNGs in its folder; needs matplotlib.

    python experiments/figures.py runs/NAME

curves.png: each loss of Eq. 16, D(real) and D(fake), and the valid metrics, epoch by epoch; for a run
of similarity.py also how far apart the modalities are.
predictions.png: predictions against labels, on valid.
features.png: x and h of the three modalities in the plane of their first two principal components,
before and after training, by modality and by sentiment, on valid: what L^a and L^d are to change.
"""

import json
import sys
from pathlib import Path

import numpy as np

try:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
except ImportError:
    sys.exit(print("error: figures need matplotlib: pip install matplotlib", file=sys.stderr) or 2)

import similarity  # puts the project's folder on the path

import train

NAMES = {"a": "audio", "v": "visual", "l": "language"}
COLOURS = {"a": "tab:orange", "v": "tab:green", "l": "tab:blue"}


def curves(folder: Path, config: train.Config):
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    log = [json.loads(line) for line in lines]
    epochs = [entry["epoch"] for entry in log]
    panels = {
        "L^task": [("train", "task")],
        f"L^a  (α = {config.alpha:g})": [("train", "adversarial")],
        f"L^d  (β = {config.beta:g})": [("train", "distance")],
        f"L^rl  (γ = {config.gamma:g})": [("train", "reconstruction")],
        "D(real), D(fake)": [("train", "d_real"), ("train", "d_fake")],
        "MAE and Corr on valid": [("valid", "mae"), ("valid", "corr")],
    }
    if all("h_cmd" in entry.get("observed", {}) for entry in log):  # a run of similarity.py
        panels |= {
            "CMD between the modalities": [("observed", "x_cmd"), ("observed", "h_cmd")],
            "probe; triplets violated": [("observed", "h_probe"), ("observed", "violated")],
        }
    columns = len(panels) // 2
    figure, axes = pyplot.subplots(2, columns, figsize=(4 * columns, 6), layout="constrained")
    for axis, (title, series) in zip(axes.flat, panels.items(), strict=True):
        for part, name in series:
            axis.plot(epochs, [entry[part][name] for entry in log], marker=".", label=name)
        axis.set(title=title, xlabel="epoch")
        if len(series) > 1:
            axis.legend()
    figure.savefig(folder / "curves.png", dpi=120)


def features(run: train.Run, config: train.Config) -> dict[str, dict[str, np.ndarray]]:
    """{"x" | "h": {m: (N_m, d)}} and {"y": {m: (N_m,)}} of the valid segments that have m"""
    found = similarity.embed(run, config)
    return {name: {m: v.numpy() for m, v in part.items()} for name, part in found.items()}


def plane(by_modality: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All modalities on the first two principal components that they have in common: (N_m, 2)"""
    everyone = np.concatenate(list(by_modality.values()))
    centre = everyone.mean(0)
    axes = np.linalg.svd(everyone - centre, full_matrices=False)[2][:2]
    return {m: (values - centre) @ axes.T for m, values in by_modality.items()}


def draw_features(folder: Path, before: dict, after: dict):
    figure, axes = pyplot.subplots(2, 4, figsize=(16, 8), layout="constrained")
    pairs = [(when, part) for part in ("x", "h") for when in ("before", "after")]
    for column, (when, part) in enumerate(pairs):
        source = {"before": before, "after": after}[when]
        for m, p in plane(source[part]).items():
            axes[0, column].scatter(*p.T, s=9, alpha=0.6, c=COLOURS[m], label=NAMES[m])
            colours = {"c": source["y"][m], "cmap": "coolwarm", "vmin": -3, "vmax": 3}
            shown = axes[1, column].scatter(*p.T, s=9, **colours)
        axes[0, column].set_title(f"{part}, {when} training")
    axes[0, 0].set_ylabel("by modality")
    axes[1, 0].set_ylabel("by sentiment")
    axes[0, 0].legend()
    figure.colorbar(shown, ax=axes[1, :], label="y", shrink=0.8)
    figure.savefig(folder / "features.png", dpi=120)


def draw_predictions(folder: Path, y_hat: np.ndarray, y: np.ndarray):
    found = train.metrics(y_hat, y)
    figure, axis = pyplot.subplots(figsize=(5, 5), layout="constrained")
    axis.plot([-3, 3], [-3, 3], c="grey", lw=1)
    axis.scatter(y, y_hat, s=12, alpha=0.6)
    title = f"valid: MAE {found['mae']:.3f}, Corr {found['corr']:.3f}"
    axis.set(xlabel="label y", ylabel="prediction ŷ", title=title, aspect="equal")
    figure.savefig(folder / "predictions.png", dpi=120)


@train.clean_exit()
def main(folder: Path):
    run, config, before, after = similarity.before_and_after(folder, features)
    curves(folder, config)
    draw_features(folder, before, after)
    draw_predictions(folder, *train.predict(run, run.segments["valid"], config))
    print(*(folder / f"{name}.png" for name in ("curves", "features", "predictions")), sep="\n")


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
