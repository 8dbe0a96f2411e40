"""Do the modalities become alike, and does equal sentiment come near? Measured on valid.

    python experiments/similarity.py runs/NAME ...              # before training, at the best epoch
    python experiments/similarity.py --train --dataset mosi     # train.py, measured at each epoch
    python experiments/similarity.py --cmd --dataset mosi       # the same, with cmd in place of L^a
    python experiments/similarity.py --carry runs/NAME ...      # does one modality stand in for another?

The paper says that L^a makes the modalities' features alike and that L^d keeps equal sentiment
together, and shows neither. Of x (Eqs. 1–3) and of h (Eq. 4):

    probe   accuracy of a fresh linear probe that tells the modalities apart on videos that it was
            not fitted on; chance is 1 / the number of modalities
    lead    the same in the leading principal components alone, which hold 90 % of the variance:
            are they alike where the features vary at all?
    cmd     central moment discrepancy of each two modalities, their mean (the paper's ref. 19)
    spread  mean distance of a modality's features from their mean: a gap closes also if all of
            them become one point

and over the triplets of Eq. 9 inside each modality, of h, or of x after --triplet-features x:

    violated    share with d_ap > d_an − δ
    d_ap, d_an  mean distances

With --train they stand under "observed" in each line of metrics.jsonl. With --cmd, too: the modalities
are made alike as MISA makes them, without a game; α weights the cmd of h, --adversarial and --penalty
have no effect, and d_real and d_fake are of discriminators that nobody trains.

--carry reads the test split of finished runs, once each, at the best epoch: MAE and Corr of the model
without one modality, and of a ridge regression from h_m to y that was fitted on train and that reads
h_k. Where the modalities share a space, m → k comes near to k → k.
"""

import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import tables  # puts the project's folder on the path
import torch
import torch.nn.functional as F
from baselines import cmd
from torch import Tensor

import data
import plumbing
import train
from msfn import MODALITIES, MSFN, sentiment_classes
from plumbing import UserError
from plumbing.runs import RunFolder


@torch.no_grad()
def embed(
    run: train.Run, config: train.Config, split: str = "valid"
) -> dict[str, dict[str, Tensor]]:
    """{"x", "h", "y", "video"}: {m: of the segments of a split that have m}; x and h: (N_m, d)

    A modality that no segment has is in none of them.
    """
    run.model.eval()
    found = {name: {m: [] for m in MODALITIES} for name in ("x", "h", "y", "video")}
    for batch in train.loader(run.segments[split], config):
        batch = batch.to(run.device)
        output = run.model(batch.inputs, batch.video)
        for m in MODALITIES:
            rows = batch.inputs[m][1].nonzero().squeeze(1).to(run.device)
            values = {"x": output.x[m], "h": output.h[m], "y": batch.y, "video": batch.video}
            for name, value in values.items():
                found[name][m].append(value[rows].float().cpu())
    joined = {name: {m: torch.cat(v) for m, v in part.items()} for name, part in found.items()}
    return {name: {m: v for m, v in part.items() if len(v)} for name, part in joined.items()}


def probe(features: dict[str, Tensor], video: dict[str, Tensor]) -> float:
    """Accuracy of multinomial logistic regression from features to modality, each modality alike.

    Fitted on the videos of even number and tried on the odd ones, and the other way round.

    features[m]: (N_m, d), video[m]: (N_m,)
    """
    X = torch.cat(list(features.values()))
    X = (X - X.mean(0)) / X.std(0).clamp(min=1e-6)
    name = torch.cat([torch.full((len(v),), i) for i, v in enumerate(features.values())])
    odd = torch.cat([torch.where(v < 0, torch.arange(len(v)), v) % 2 == 1 for v in video.values()])
    return float(np.mean([_accuracy(X, name, fit) for fit in (odd, ~odd)]))


def leading(features: dict[str, Tensor], share: float = 0.9) -> dict[str, Tensor]:
    """The features in as many principal components, of all together, as hold `share` of the variance."""
    mean = torch.cat(list(features.values())).mean(0)
    centred = {m: v - mean for m, v in features.items()}
    _, s, components = torch.linalg.svd(torch.cat(list(centred.values())), full_matrices=False)
    held = s.square().cumsum(0) / s.square().sum()
    some = components[: int((held < share).sum()) + 1]
    return {m: v @ some.T for m, v in centred.items()}


def _accuracy(X: Tensor, name: Tensor, fit: Tensor) -> float:
    """Of a probe fitted on the rows of `fit`, on the others: the mean over the names."""
    W = torch.zeros(X.shape[1], int(name.max()) + 1, requires_grad=True)
    b = torch.zeros(W.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([W, b], max_iter=100, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = F.cross_entropy(X[fit] @ W + b, name[fit]) + 1e-3 * W.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    right = ((X @ W + b).argmax(1) == name)[~fit].float()
    return float(np.mean([right[name[~fit] == i].mean() for i in name.unique()]))


def mean_cmd(features: dict[str, Tensor]) -> Tensor:
    """Over each two modalities, each feature scaled to [0, 1] by all of them together."""
    everyone = torch.cat(list(features.values())).detach()
    low, high = everyone.min(0).values, everyone.max(0).values
    scaled = [(v - low) / (high - low).clamp(min=1e-6) for v in features.values()]
    return torch.stack([cmd(X, Y) for X, Y in combinations(scaled, 2)]).mean()


class CMDInstead(MSFN):
    """MSFN with L = L^task + α CMD(h) + β L^d + γ L^rl; CMD stands where L^a is logged."""

    def __init__(self, config: train.Config, *given):
        super().__init__(replace(config, alpha=0.0), *given)
        self.alpha = config.alpha

    def losses(self, output, y: Tensor, lengths: dict[str, Tensor]):
        found, rows = super().losses(output, y, lengths), self.rows_with(lengths, y)
        h = {m: output.h[m][rows[m]] for m in rows if len(rows[m])}
        apart = mean_cmd(h) if len(h) > 1 else y.new_zeros(())
        return found._replace(total=found.total + self.alpha * apart, adversarial=apart)


def triplets(h: Tensor, y: Tensor, margin: float) -> Tensor:
    """Over the valid triplets of Eq. 9: share violated, mean d_ap, mean d_an; 0 of none.

    h: (N, d), y: (N,) classes -> (3,)
    """
    distance = torch.cdist(h, h, compute_mode="donot_use_mm_for_euclid_dist")
    sums = torch.zeros(4)
    for a in range(len(h)):
        positive, negative = y == y[a], y != y[a]
        positive[a] = False
        d_ap, d_an = distance[a, positive], distance[a, negative]
        violated = d_ap[:, None] + margin > d_an[None, :]
        n, p = len(d_an), len(d_ap)
        sums += torch.tensor([violated.sum(), d_ap.sum() * n, d_an.sum() * p, n * p])
    return sums[:3] / sums[3].clamp(min=1)


def similarity(run: train.Run, config: train.Config) -> dict[str, float]:
    """All of the above for the model as it is."""
    found, result = embed(run, config), {}
    for part in ("x", "h"):
        if len(found[part]) > 1:
            result[f"{part}_probe"] = probe(found[part], found["video"])
            result[f"{part}_lead"] = probe(leading(found[part]), found["video"])
            result[f"{part}_cmd"] = float(mean_cmd(found[part]))
        spread = [(v - v.mean(0)).norm(dim=1).mean() for v in found[part].values()]
        result[f"{part}_spread"] = float(np.mean(spread))
    per_modality = []
    for m, features in found[config.triplet_features].items():
        classes = sentiment_classes(found["y"][m], config.classes)
        per_modality.append(triplets(features, classes, config.margin))
    means = torch.stack(per_modality).mean(0).tolist()
    result |= dict(zip(("violated", "d_ap", "d_an"), means, strict=True))
    return result


def carry(run: train.Run, config: train.Config) -> dict[str, tuple[float, float]]:
    """{what was read: (MAE, Corr)} on test, for the model as it is."""
    test, result = run.segments["test"], {}
    for gone in config.modalities:
        kept = config.modalities.replace(gone, "")
        some = data.Segments(test.split, run.tokenizer, run.standardizer, kept)
        result[f"without {gone}"] = train.predict(run, some, config)
    fit, read = embed(run, config, "train"), embed(run, config, "test")
    for m, h in fit["h"].items():
        mean, X = h.mean(0), h - h.mean(0)
        C = X.T @ X / len(X)
        ridge = 0.1 * C.diagonal().mean() * torch.eye(len(C))
        w = torch.linalg.solve(C + ridge, X.T @ fit["y"][m] / len(X))
        for k, other in read["h"].items():
            prediction = (other - mean) @ w + fit["y"][m].mean()
            result[f"{m} → {k}"] = prediction.clamp(-3, 3).numpy(), read["y"][k].numpy()
    found = {name: train.metrics(*pair) for name, pair in result.items()}
    return {name: (values["mae"], values["corr"]) for name, values in found.items()}


def before_and_after(folder: Path, measure) -> tuple[train.Run, train.Config, dict, dict]:
    """A run at its best epoch, and what measure(run, config) found before training and there.

    Raises UserError if `folder` holds no trained model.
    """
    config = train.read_config(folder)
    if not RunFolder(folder).weights.exists():
        raise UserError(f"{folder} holds no trained model yet")
    run = train.prepare(config)  # as the run began: same seed, same weights
    before = measure(run, config)
    RunFolder(folder).load_weights(run.model)
    return run, config, before, measure(run, config)


def print_table(corner: str, rows: dict[str, dict[str, str]]):
    names = list(dict.fromkeys(name for found in rows.values() for name in found))
    lines = [[row, *(found.get(name, "–") for name in names)] for row, found in rows.items()]
    print(tables.markdown([corner, *(name.replace("_", " ") for name in names)], lines))


def show_similarity(folders: list[Path]):
    rows = {}
    for folder in folders:
        _, _, before, after = before_and_after(folder, similarity)
        for when, found in (("before", before), ("best epoch", after)):
            rows[f"{folder.name}, {when}"] = {n: f"{value:.3f}" for n, value in found.items()}
    print_table("on valid", rows)


def show_carry(folders: list[Path]):
    rows = {}
    for folder in folders:
        run, config, *_ = before_and_after(folder, lambda *_: None)
        found = carry(run, config)
        rows[folder.name] = {n: f"{mae:.3f}, {corr:.3f}" for n, (mae, corr) in found.items()}
    print_table("on test: MAE, Corr", rows)


def main(words: list[str]):
    if words[:1] in (["--train"], ["--cmd"]):
        train.main(words[1:], MSFN if words[0] == "--train" else CMDInstead, similarity)
    elif words[:1] == ["--carry"] and words[1:]:
        show_carry([Path(name) for name in words[1:]])
    elif words and not words[0].startswith("-"):
        show_similarity([Path(name) for name in words])
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    sys.exit(plumbing.run(main, sys.argv[1:]))
