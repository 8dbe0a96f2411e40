"""L^a alone: do the modalities meet? Eqs. 4–8 on fixed features, and nothing else.

    python -m experiments.game --figure game.png                     # synthetic data
    python -m experiments.game -- --dataset mosi --learning-rate 1e-3 --data FILE --bert FOLDER

The untrained model computes x (Eqs. 1–3) once. Then generators and discriminators alone play on it,
with random batches of each modality: both forms of Eqs. 5–7, without the gradient penalty of
converging.py and with three weights of it, over seeds. Valid's h is measured with the running mean
of the weights (decay 0.99): probe, CMD and spread as in similarity.py; gap, the mean distance
between the modalities' means. The figure shows gap and probe over the steps and needs matplotlib.
The options after `--` go to train.py.
"""

import copy
import itertools
import sys

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

import plumbing
import train
from experiments import markdown, parser, split_options
from experiments.converging import Converging, build, gradient_penalty, mean_cmd
from experiments.figures import Figure, require_matplotlib
from experiments.similarity import embed, probe
from msfn import MSFN, adversarial_loss
from plumbing import devices

FORMS, PENALTIES = ("literal", "bounded"), (0.0, 1.0, 10.0, 100.0)
STEPS = (0, 50, 100, 250, 500, 750, 1000, 1500, 2000, 4000, 8000, 16000)  # when it is measured
NAMES = ("probe", "CMD", "gap", "spread")


@torch.no_grad()
def measure(model: MSFN, valid: dict[str, dict[str, Tensor]]) -> list[float]:
    """The numbers of NAMES. valid: as `similarity.embed` gives it"""
    model.eval()
    h = {m: model.generators[m](x) for m, x in valid["x"].items()}
    means = [v.mean(0) for v in h.values()]
    gap = np.mean([float((a - b).norm()) for a, b in itertools.combinations(means, 2)])
    spread = np.mean([float((v - v.mean(0)).norm(dim=1).mean()) for v in h.values()])
    return [probe(h, valid["video"]), float(mean_cmd(h)), gap, spread]


def play(
    model: Converging, config: train.Config, x: dict[str, Tensor], valid: dict, steps: int
) -> list[list[float]]:
    """One game, which changes the model's weights -> what `measure` gives at each of STEPS"""
    optimizer = torch.optim.Adam(model.parameter_groups(), config.learning_rate, fused=True)
    torch.manual_seed(config.seed)
    measured = []
    for step in range(steps + 1):
        if step in STEPS:
            measured.append(measure(model.mean, valid))
        model.train()
        draw = {m: v[torch.randint(len(v), (config.batch_size,))] for m, v in x.items()}
        h = {m: model.generators[m](v) for m, v in draw.items()}
        logits = {m: {k: model.discriminators[m](h[k]) for k in h} for m in h}
        value = adversarial_loss(logits, config.adversarial)
        if model.rho:
            value = value - model.rho / 2 * gradient_penalty(model.discriminators, h)
        optimizer.zero_grad()
        value.backward()
        for side in model.generators, model.discriminators:
            clip_grad_norm_(side.parameters(), config.clip)
        optimizer.step()
        model.update_mean()
    return measured


def games(options: list[str], seeds: int, steps: int) -> tuple[dict[tuple, np.ndarray], float]:
    """{(form, ρ): (seeds, STEPS, NAMES)}, and the accuracy of a probe that guesses"""
    settings = list(itertools.product(FORMS, PENALTIES))
    measured = {setting: [] for setting in settings}
    for seed in range(seeds):
        config = train.parse([*options, "--seed", str(seed)])[0]
        session = train.Session(config, build(Converging, 0.99, 0.0))
        x, valid = embed(session, "train")["x"], embed(session)
        for part in session.model, session.model.mean:
            del part.embeddings  # they do not play, and averaging them takes time
        for form, rho in settings:
            model = copy.deepcopy(session.model)
            config.adversarial, model.rho = form, rho
            measured[form, rho].append(play(model, config, x, valid, steps))
    return {setting: np.array(values) for setting, values in measured.items()}, 1 / len(x)


def draw(measured: dict[tuple, np.ndarray], chance: float) -> Figure:
    """Gap above probe; the printed form left, the bounded one right: the mean and each seed."""
    figure = Figure(figsize=(10, 7), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True, sharey="row")
    for (form, rho), values in measured.items():
        steps = STEPS[: values.shape[1]]
        for axis, name in zip(axes[:, FORMS.index(form)], ("gap", "probe"), strict=True):
            lines, color = values[:, :, NAMES.index(name)], f"C{PENALTIES.index(rho)}"
            axis.plot(steps, lines.T, c=color, lw=0.6, alpha=0.5)
            axis.plot(steps, lines.mean(0), c=color, lw=2, label=f"ρ = {rho:g}")
    for column, title in enumerate(("−log D(fake), as printed", "log(1 − D(fake)), bounded")):
        axes[0, column].set(title=title, yscale="log")
        axes[1, column].set(xlabel="step", xlim=(0, steps[-1]), ylim=(0, 1.03))
        axes[1, column].axhline(chance, c="grey", ls=":")
        axes[1, column].annotate("chance", (0, chance), (4, 4), textcoords="offset points")
    axes[0, 0].set_ylabel("distance between the modalities' means")
    axes[1, 0].set_ylabel("accuracy of a linear probe")
    axes[0, 1].legend(loc="center right")
    return figure


@devices.flush_denormals()
def main(argv: list[str]) -> None:
    words, options = split_options(argv)
    own = parser(__doc__)
    own.add_argument("--steps", type=int, default=2000, help="of Adam (2000)")
    own.add_argument("--seeds", type=int, default=3, help="0 … N-1 (3)")
    own.add_argument("--figure", metavar="PNG", help="draw gap and probe over the steps")
    typed = own.parse_args(words)
    if typed.figure:
        require_matplotlib()
    options = ["--dataset", "synthetic", *options, "--device", "cpu"]
    measured, chance = games(options, typed.seeds, typed.steps)
    rows = []
    for (form, rho), values in measured.items():
        last = values.shape[1] - 1
        for i in [0, last] if not rows else [last]:
            name = f"{form}, ρ = {rho:g}" if i else "before"
            rows.append([name, *(f"{mean:.2f}" for mean in values[:, i].mean(0))])
    head = f"step {STEPS[last]:,}, mean of {typed.seeds} seeds"
    print("", markdown([head, *NAMES], rows), sep="\n")
    if typed.figure:
        draw(measured, chance).savefig(typed.figure, dpi=120)


if __name__ == "__main__":
    sys.exit(plumbing.run(main, sys.argv[1:]))
