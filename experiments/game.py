"""L^a alone: do the modalities meet? Eqs. 4–8 on fixed features, and nothing else.

    python experiments/game.py --figure game.png                            # synthetic data
    python experiments/game.py -- --dataset mosi --learning-rate 1e-3 --data FILE --bert FOLDER

x (Eqs. 1–3) is computed once, by the untrained model; then generators and discriminators alone play on
it, on random batches of each modality: both forms of Eqs. 5–7, each with and without the gradient
penalty, over seeds. Measured on valid's h, with the mean of the last 100 steps' weights (`--average
0.99`): probe, CMD and spread as in similarity.py; gap, the mean distance between the modalities'
means; D(real) and D(fake). The figure shows gap and probe over the steps; it needs matplotlib. What
follows `--` goes to train.py as it is.
"""

import copy
import itertools
import sys

import numpy as np
import tables  # puts the project's folder on the path
import torch
from similarity import embed, mean_cmd, probe
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import plumbing
import train
from msfn import MSFN, adversarial_loss, gradient_penalty

FORMS, PENALTIES = ("literal", "bounded"), (0.0, 1.0, 10.0, 100.0)
STEPS = (0, 50, 100, 250, 500, 750, 1000, 1500, 2000, 4000, 8000, 16000)  # at which one looks
NAMES = ("probe", "CMD", "gap", "spread", "D(real)", "D(fake)")


def logits(model: MSFN, h: dict) -> dict[str, dict]:
    """[m][k]: D_m(h_k) before its sigmoid"""
    return {m: {k: model.discriminators[m](h[k]) for k in h} for m in h}


@torch.no_grad()
def look(model: MSFN, found: dict[str, dict]) -> list[float]:
    """What is named in NAMES."""
    model.eval()
    h = {m: model.generators[m](x) for m, x in found["x"].items()}
    means = [v.mean(0) for v in h.values()]
    gap = np.mean([float((a - b).norm()) for a, b in itertools.combinations(means, 2)])
    spread = np.mean([float((v - v.mean(0)).norm(dim=1).mean()) for v in h.values()])
    z = logits(model, h)
    real = np.mean([float(z[m][m].sigmoid().mean()) for m in h])
    fake = np.mean([float(z[m][k].sigmoid().mean()) for m in h for k in h if k != m])
    return [probe(h, found["video"]), float(mean_cmd(h)), gap, spread, real, fake]


def play(model: MSFN, config: train.Config, x: dict, valid: dict, steps: int) -> list[list[float]]:
    """One game from the model's weights, which it changes -> what `look` saw at each of STEPS"""
    optimizer = torch.optim.Adam(model.parameter_groups(), config.learning_rate, fused=True)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.average))
    torch.manual_seed(config.seed)
    seen = []
    for step in range(steps + 1):
        if step in STEPS:
            seen.append(look(average.module, valid))
        model.train()
        draw = {m: v[torch.randint(len(v), (config.batch_size,))] for m, v in x.items()}
        h = {m: model.generators[m](v) for m, v in draw.items()}
        value = adversarial_loss(logits(model, h), config.adversarial)
        if config.penalty:
            value = value - config.penalty / 2 * gradient_penalty(model.discriminators, h)
        optimizer.zero_grad()
        value.backward()
        for side in model.generators, model.discriminators:
            clip_grad_norm_(side.parameters(), config.clip)
        optimizer.step()
        average.update_parameters(model)
    return seen


def games(argv: list[str], seeds: int, steps: int) -> tuple[dict[tuple, np.ndarray], float]:
    """{(form, ρ): (seeds, looks, names)}, and what a probe that guesses would reach"""
    settings = list(itertools.product(FORMS, PENALTIES))
    seen = {setting: [] for setting in settings}
    for seed in range(seeds):
        config, _ = train.parse([*argv, "--seed", str(seed)])
        run = train.prepare(config)
        x, valid = embed(run, config, "train")["x"], embed(run, config)
        del run.model.embeddings  # they do not play, and to average them takes time
        for setting in settings:
            config.adversarial, config.penalty = setting
            model = copy.deepcopy(run.model)
            seen[setting].append(play(model, config, x, valid, steps))
    return {setting: np.array(found) for setting, found in seen.items()}, 1 / len(x)


def load_pyplot():
    """matplotlib's. Raises UserError without it."""
    with plumbing.explained("--figure needs matplotlib, pip install matplotlib"):
        import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def draw(pyplot, seen: dict[tuple, np.ndarray], chance: float, path: str):
    """Above the gap, below the probe; left the printed form, right the bounded one: mean and seeds."""
    figure, axes = pyplot.subplots(2, 2, figsize=(10, 7), sharex=True, sharey="row")
    for (form, rho), found in seen.items():
        steps = STEPS[: found.shape[1]]
        for axis, name in zip(axes[:, FORMS.index(form)], ("gap", "probe"), strict=True):
            values, colour = found[:, :, NAMES.index(name)], f"C{PENALTIES.index(rho)}"
            axis.plot(steps, values.T, c=colour, lw=0.6, alpha=0.5)
            label = f"ρ = {rho:g}" if rho else "ρ = 0, no penalty"
            axis.plot(steps, values.mean(0), c=colour, lw=2, label=label)
    for column, title in enumerate(("−log D(fake), as printed", "log(1 − D(fake)), bounded")):
        axes[0, column].set(title=title, yscale="log")
        axes[1, column].set(xlabel="step", xlim=(0, steps[-1]), ylim=(0, 1.03))
        axes[1, column].axhline(chance, c="grey", ls=":")
        axes[1, column].annotate("chance", (0, chance), (4, 4), textcoords="offset points")
    axes[0, 0].set_ylabel("distance between the modalities' means")
    axes[1, 0].set_ylabel("accuracy of a linear probe")
    axes[0, 1].legend(loc="center right")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main():
    parser = tables.parser(__doc__)
    parser.add_argument("--steps", type=int, default=2000, help="of Adam (2000)")
    parser.add_argument("--seeds", type=int, default=3, help="0 … N-1 (3)")
    parser.add_argument("--figure", metavar="PNG", help="draw gap and probe over the steps")
    typed = parser.parse_args()
    pyplot = load_pyplot() if typed.figure else None
    argv = ["--dataset", "synthetic", "--average", "0.99", *typed.options, "--device", "cpu"]
    seen, chance = games(argv, typed.seeds, typed.steps)
    rows = []
    for (form, rho), found in seen.items():
        for i, step in enumerate(STEPS[: found.shape[1]]):
            if step in (1000, STEPS[found.shape[1] - 1]) or (step == 0 and not rows):
                name = "before" if step == 0 else f"{form}, ρ = {rho:g}, step {step:,}"
                numbers = zip(found[:, i].mean(0), found[:, i].std(0), strict=True)
                rows.append([name, *(f"{mean:.2f} ± {std:.2f}" for mean, std in numbers)])
    print("", tables.markdown([f"{typed.seeds} seeds", *NAMES], rows), sep="\n")
    if typed.figure:
        draw(pyplot, seen, chance, typed.figure)


if __name__ == "__main__":
    sys.exit(plumbing.run(main))
