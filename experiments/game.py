"""L^a alone: do the modalities meet? Eqs. 4–8 on fixed features, and nothing else.

    python -m experiments.game                                       # synthetic data
    python -m experiments.game -- --dataset mosi --learning-rate 1e-3 --data FILE --bert FOLDER

The untrained model computes x (Eqs. 1–3) once. Then generators and discriminators alone play on it,
with random batches of each modality: both forms of Eqs. 5–7, without the gradient penalty of
converging.py and with three weights of it, over seeds. Valid's h is measured with the running mean
of the weights (decay 0.99): probe, CMD and spread as in similarity.py; gap, the mean distance
between the modalities' means. The options after `--` go to train.py.
"""

import copy
import sys
from itertools import combinations, product

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

import plumbing
import train
from experiments import markdown, parser, split_options
from experiments.converging import Converging, build, gradient_penalty, mean_cmd
from experiments.similarity import embed, probe, spread
from msfn import MSFN, adversarial_loss
from plumbing import devices

GAMES = list(product(("literal", "bounded"), (0.0, 1.0, 10.0, 100.0)))  # forms, weights ρ


@torch.no_grad()
def measure(model: MSFN, valid: dict[str, dict[str, Tensor]]) -> list[float]:
    """Probe, CMD, gap and spread of h. valid: as `similarity.embed` gives it"""
    model.eval()
    h = {m: model.generators[m](x) for m, x in valid["x"].items()}
    means = [v.mean(0) for v in h.values()]
    gap = np.mean([float((a - b).norm()) for a, b in combinations(means, 2)])
    return [probe(h, valid["video"]), float(mean_cmd(h)), gap, spread(h)]


def play(model: Converging, config: train.Config, x: dict[str, Tensor], steps: int) -> None:
    """Play one game, which changes the model's weights and their mean."""
    optimizer = torch.optim.Adam(model.parameter_groups(), config.learning_rate, fused=True)
    torch.manual_seed(config.seed)
    model.train()
    for _ in range(steps):
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


@devices.flush_denormals()
def main(argv: list[str]) -> None:
    words, options = split_options(argv)
    own = parser(__doc__)
    own.add_argument("--steps", type=int, default=2000, help="of Adam (2000)")
    own.add_argument("--seeds", type=int, default=3, help="0 … N-1 (3)")
    typed = own.parse_args(words)
    measured = {}
    for seed in range(typed.seeds):
        argv = ["--dataset", "synthetic", *options, "--device", "cpu", "--seed", str(seed)]
        config = train.Config(**train.parse(argv))
        session = train.Session(config, build(Converging, decay=0.99, rho=0.0))
        x, valid = embed(session, "train")["x"], embed(session)
        for part in session.model, session.model.mean:
            del part.embeddings  # they do not play, and averaging them takes time
        measured.setdefault("before", []).append(measure(session.model.mean, valid))
        for form, rho in GAMES:
            model = copy.deepcopy(session.model)
            config.adversarial, model.rho = form, rho
            play(model, config, x, typed.steps)
            measured.setdefault(f"{form}, ρ = {rho:g}", []).append(measure(model.mean, valid))
    rows = [
        [name, *(f"{mean:.2f}" for mean in np.mean(values, axis=0))]
        for name, values in measured.items()
    ]
    head = f"step {typed.steps:,}, mean of {typed.seeds} seeds"
    print("", markdown([head, "probe", "CMD", "gap", "spread"], rows), sep="\n")


if __name__ == "__main__":
    sys.exit(plumbing.run(main, sys.argv[1:]))
