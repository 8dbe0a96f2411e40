"""L^a alone: do the generators meet? Eqs. 4–8 on fixed features, and nothing else.

    python experiments/game.py                                              # synthetic data
    python experiments/game.py --momentum 0 -- --adversarial bounded
    python experiments/game.py -- --dataset mosi --data FILE --bert FOLDER

x (Eqs. 1–3) is computed once, by the untrained model; then generators and discriminators alone play on
it, on random batches of each modality. Measured on valid's h: probe, CMD and spread as in
similarity.py; gap, the mean distance between the modalities' means; D(real) and D(fake). What follows
`--` goes to train.py as it is.
"""

import sys
from itertools import combinations

import numpy as np
import tables  # puts the project's folder on the path
import torch
from similarity import embed, mean_cmd, probe
from torch.nn.utils import clip_grad_norm_

import plumbing
import train
from msfn import adversarial_loss

SHOWN = (250, 500, 1000, 2000, 5000, 10000, 20000, 50000)  # steps


def logits(run: train.Run, h: dict) -> dict[str, dict]:
    """[m][k]: D_m(h_k) before its sigmoid"""
    return {m: {k: run.model.discriminators[m](h[k]) for k in h} for m in h}


@torch.no_grad()
def look(run: train.Run, found: dict[str, dict]) -> list[str]:
    """One row of the table."""
    run.model.eval()
    h = {m: run.model.generators[m](x) for m, x in found["x"].items()}
    means = [v.mean(0) for v in h.values()]
    gap = np.mean([float((one - two).norm()) for one, two in combinations(means, 2)])
    spread = np.mean([float((v - v.mean(0)).norm(dim=1).mean()) for v in h.values()])
    z = logits(run, h)
    real = np.mean([float(z[m][m].sigmoid().mean()) for m in h])
    fake = np.mean([float(z[m][k].sigmoid().mean()) for m in h for k in h if k != m])
    numbers = (probe(h, found["video"]), mean_cmd(h), gap, spread, real, fake)
    return [f"{number:.2f}" for number in numbers]


def main():
    parser = tables.parser(__doc__)
    parser.add_argument("--steps", type=int, default=5000, help="of Adam (5000)")
    parser.add_argument("--momentum", type=float, default=0.9, help="Adam's β₁ (0.9)")
    typed = parser.parse_args()
    argv = ["--dataset", "synthetic", *typed.options, "--device", "cpu"]
    config, _ = train.parse(argv)
    run = train.prepare(config)
    fixed, valid = embed(run, config, "train")["x"], embed(run, config)
    sides = run.model.generators, run.model.discriminators
    groups = [{"params": side.parameters(), "maximize": side is sides[1]} for side in sides]
    optimizer = torch.optim.Adam(groups, config.learning_rate, (typed.momentum, 0.999))
    rows = [["0", *look(run, valid)]]
    for step in range(1, typed.steps + 1):
        run.model.train()
        draw = {m: x[torch.randint(len(x), (config.batch_size,))] for m, x in fixed.items()}
        h = {m: run.model.generators[m](x) for m, x in draw.items()}
        optimizer.zero_grad()
        adversarial_loss(logits(run, h), config.adversarial).backward()
        for side in sides:
            clip_grad_norm_(side.parameters(), config.clip)
        optimizer.step()
        if step in SHOWN or step == typed.steps:
            rows.append([f"{step:,}", *look(run, valid)])
    names = ["probe", "CMD", "gap", "spread", "D(real)", "D(fake)"]
    print("", tables.markdown(["step", *names], rows), sep="\n")


if __name__ == "__main__":
    sys.exit(plumbing.run(main))
