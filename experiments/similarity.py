"""Do the modalities become alike, and does equal sentiment come near? Measured on valid.

    python -m experiments.similarity runs/NAME ...      # before training, and at the best epoch

The paper says that L^a makes the modalities' features alike and that L^d keeps equal sentiment
together, and shows neither. Of x (Eqs. 1–3) and of h (Eq. 4):

    probe   accuracy of a fresh linear probe that tells the modalities apart on videos that it was
            not fitted on; chance is 1 / the number of modalities
    cmd     central moment discrepancy of two modalities (the paper's ref. 19), mean over the pairs
    spread  mean distance of a modality's features from their mean: a gap also closes if all of
            them become one point

and over the triplets of Eq. 9 inside each modality, of h, or of x with --triplet-features x:

    violated    share with d_ap > d_an − δ

rows.py and tables.py log these numbers after each epoch, under "observed" in metrics.jsonl.
"""

import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import plumbing
import train
from experiments import markdown
from experiments.converging import build_of, mean_cmd
from msfn import sentiment_classes
from plumbing.runs import RunFolder

COLUMNS = {"x_probe": "probe x", "h_probe": "probe h", "x_cmd": "CMD x", "h_cmd": "CMD h"}
COLUMNS |= {"x_spread": "spread x", "h_spread": "spread h", "violated": "violated"}


@torch.no_grad()
def embed(session: train.Session, split: str = "valid") -> dict[str, dict[str, Tensor]]:
    """{"x", "h", "y", "video"}: {m: values of the segments in which m is present}

    x and h: (N_m, d), y and video: (N_m,). Modalities that no segment has are left out.
    """
    session.model.eval()
    parts = defaultdict(list)
    for batch in train.loader(session.segments[split], session.config):
        batch = batch.to(session.device)
        output = session.model(batch.inputs, batch.video)
        for m, rows in output.rows.items():
            values = {"x": output.x[m], "h": output.h[m], "y": batch.y, "video": batch.video}
            for name, value in values.items():
                parts[name, m].append(value[rows].float().cpu())
    result = {name: {} for name in ("x", "h", "y", "video")}
    for (name, m), part in parts.items():
        if sum(map(len, part)):
            result[name][m] = torch.cat(part)
    return result


def probe(features: dict[str, Tensor], video: dict[str, Tensor]) -> float:
    """Accuracy of multinomial logistic regression from features to modality, each modality alike.

    Fitted on the videos of even number and tried on the odd ones, and the other way round.

    features[m]: (N_m, d), video[m]: (N_m,)
    """
    X = torch.cat(list(features.values()))
    X = (X - X.mean(0)) / X.std(0).clamp(min=1e-6)
    label = torch.cat([torch.full((len(v),), i) for i, v in enumerate(features.values())])
    odd = torch.cat([torch.where(v < 0, torch.arange(len(v)), v) % 2 == 1 for v in video.values()])
    return float(np.mean([_accuracy(X, label, fit) for fit in (odd, ~odd)]))


def _accuracy(X: Tensor, label: Tensor, fit: Tensor) -> float:
    """Fit a probe on the rows of `fit` -> its accuracy on the others, mean over the labels."""
    W = torch.zeros(X.shape[1], int(label.max()) + 1, requires_grad=True)
    b = torch.zeros(W.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([W, b], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(X[fit] @ W + b, label[fit]) + 1e-3 * W.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    right = ((X @ W + b).argmax(1) == label)[~fit].float()
    return float(np.mean([right[label[~fit] == i].mean() for i in label.unique()]))


def spread(features: dict[str, Tensor]) -> float:
    """Mean distance of a modality's features from their mean, mean over the modalities."""
    return float(np.mean([(v - v.mean(0)).norm(dim=1).mean() for v in features.values()]))


def violated(h: Tensor, y: Tensor, margin: float) -> float:
    """Share of the triplets of Eq. 9 with d_ap > d_an − δ; 0 without a triplet.

    h: (N, d), y: (N,) classes
    """
    distance = torch.cdist(h, h, compute_mode="donot_use_mm_for_euclid_dist")
    count = valid = 0
    for a in range(len(h)):
        positive, negative = y == y[a], y != y[a]
        positive[a] = False
        wrong = distance[a, positive][:, None] + margin > distance[a, negative]
        count, valid = count + int(wrong.sum()), valid + wrong.numel()
    return count / max(valid, 1)


def similarity(session: train.Session) -> dict[str, float]:
    """All of the above for the model as it is."""
    features, result = embed(session), {}
    for part in ("x", "h"):
        if len(features[part]) > 1:
            result[f"{part}_probe"] = probe(features[part], features["video"])
            result[f"{part}_cmd"] = float(mean_cmd(features[part]))
        result[f"{part}_spread"] = spread(features[part])
    config, shares = session.config, []
    for m, values in features[config.triplet_features].items():
        classes = sentiment_classes(features["y"][m], config.classes)
        shares.append(violated(values, classes, config.margin))
    return result | {"violated": float(np.mean(shares))}


def table(rows: dict[str, list[dict[str, float]]]) -> str:
    """{a row's name: what `similarity` gave for each of its seeds} -> the means over the seeds."""
    lines = []
    for name, seeds in rows.items():
        values = [[measured[m] for measured in seeds if m in measured] for m in COLUMNS]
        lines.append([name, *(f"{np.mean(v):.2f}" if v else "–" for v in values)])
    return markdown(["on valid", *COLUMNS.values()], lines)


def before_and_after(folder: Path, measure: Callable[[train.Session], Any]) -> tuple[Any, Any]:
    """What `measure` gives for a run before training, and at its best epoch.

    Raises UserError if `folder` holds no trained model.
    """
    session = train.Session(train.read_config(folder), build_of(folder))  # same seed, same weights
    before = measure(session)
    RunFolder(folder).load_weights(session.model)
    return before, measure(session)


def main(words: list[str]) -> None:
    if not words or words[0].startswith("-"):
        return print(__doc__)
    rows = {}
    for folder in map(Path, words):
        before, after = before_and_after(folder, similarity)
        rows |= {f"{folder.name}, before": [before], f"{folder.name}, best epoch": [after]}
    print(table(rows))


if __name__ == "__main__":
    sys.exit(plumbing.run(main, sys.argv[1:]))
