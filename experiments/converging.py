"""Not in the paper: a game that comes to rest, and CMD in its place.

Games like Eqs. 5–8 circle or diverge unless the discriminators' slope is penalized (Mescheder,
Geiger and Nowozin, 2018, "Which training methods for GANs do actually converge?"). `Converging`
subtracts (ρ/2) R from the game's value, lets the discriminators play without Adam's momentum, under
which the game still circles, and is evaluated with a running mean of the weights, in which the
circles cancel. `CMDInstead` makes the modalities alike as MISA does, without a game.

`build` makes them for train.py; rows.py names the rows that use them. The mean is a submodule, so
checkpoints hold it and train.py knows nothing of it.
"""

import copy
from functools import partial
from itertools import combinations
from pathlib import Path

import safetensors
import torch
from torch import Tensor, nn

import train
from experiments.baselines import cmd
from msfn import MSFN, Losses, MSFNConfig, Output, select_present
from plumbing import explained, regular
from plumbing.runs import RunFolder


def gradient_penalty(discriminators: dict[str, nn.Module], h: dict[str, Tensor]) -> Tensor:
    """R = E[ ‖∇_h z‖² ]  over the samples of all pairs (m, k), where D_m(h_k) = σ(z)

    It gives each D_m a reason to become flat where the modalities meet. h is detached: R moves the
    discriminators, not the generators. Discriminators of absent modalities are skipped.

    discriminators[m]: (B, d) -> logits (B,), h[m]: (B_m, d) float -> (), 0 without a sample
    """
    samples = torch.cat(list(h.values())).detach().requires_grad_()  # (Σ B_m, d)
    logits = [discriminators[m](samples) for m in h if len(h[m])]
    slopes = [torch.autograd.grad(z.sum(), samples, create_graph=True)[0] for z in logits]
    squares = [slope.square().sum() for slope in slopes]
    return sum(squares, samples.new_zeros(())) / max(len(samples) * len(squares), 1)


class Averaged(MSFN):
    """MSFN, evaluated with a running mean of its weights:  w̄ ← δ w̄ + (1 − δ) w  after each step

    The first step copies the weights. A model does not see the optimizer's steps, so the mean takes
    a step's weights in the next forward pass, of training or evaluation.
    """

    def __init__(self, config: MSFNConfig, embeddings: dict, decay: float):
        super().__init__(config, embeddings)
        mean = copy.deepcopy(self)
        self.decay, self.stepped = decay, False  # stepped: since the mean was updated
        self.mean = mean.requires_grad_(False)
        self.register_buffer("steps", torch.tensor(0))

    @torch.no_grad()
    def update_mean(self) -> None:
        weights, decay = dict(self.named_parameters()), torch.where(self.steps > 0, self.decay, 0.0)
        for name, mean in self.mean.named_parameters():
            mean.lerp_(weights[name], (1 - decay).to(mean.dtype))
        self.steps += 1

    def forward(self, inputs: dict, video: Tensor | None = None) -> Output:
        if self.stepped:
            self.update_mean()
        self.stepped = self.training
        return MSFN.forward(self if self.training else self.mean, inputs, video)

    def parameter_groups(self) -> list[dict]:
        mean = {id(p) for p in self.mean.parameters()}
        groups = super().parameter_groups()
        return [{**g, "params": [p for p in g["params"] if id(p) not in mean]} for g in groups]


class Converging(Averaged):
    """L = L^task + α (L^a − (ρ/2) R) + β L^d + γ L^rl,  the discriminators without momentum"""

    def __init__(self, config: MSFNConfig, embeddings: dict, decay: float, rho: float):
        super().__init__(config, embeddings, decay)
        self.rho = rho

    def losses(self, output: Output, y: Tensor) -> Losses:
        losses = super().losses(output, y)
        R = gradient_penalty(self.discriminators, select_present(output.h, output.rows))
        return losses._replace(total=losses.total - self.config.alpha * self.rho / 2 * R)

    def parameter_groups(self) -> list[dict]:
        rest, adversary = super().parameter_groups()
        return [rest, {**adversary, "betas": (0.0, 0.999)} if self.rho else adversary]


def mean_cmd(features: dict[str, Tensor]) -> Tensor:
    """Mean `cmd` over the pairs of modalities, each feature scaled to [0, 1] over all of them."""
    joint = torch.cat(list(features.values())).detach()
    low, high = joint.min(0).values, joint.max(0).values
    scaled = [(v - low) / (high - low).clamp(min=1e-6) for v in features.values()]
    return torch.stack([cmd(X, Y) for X, Y in combinations(scaled, 2)]).mean()


class CMDInstead(Averaged):
    """L = L^task + α CMD(h) + β L^d + γ L^rl;  CMD(h) is logged as L^a, no discriminator learns"""

    def losses(self, output: Output, y: Tensor) -> Losses:
        losses = super().losses(output, y)
        h = {m: v for m, v in select_present(output.h, output.rows).items() if len(v)}
        discrepancy = mean_cmd(h) if len(h) > 1 else y.new_zeros(())
        # L^a leaves L and keeps a gradient of 0: DDP wants one for each parameter
        total = losses.total + self.config.alpha * (discrepancy - losses.adversarial)
        return losses._replace(total=total, adversarial=discrepancy)


def build(kind: type[Averaged], **arguments: float) -> train.Build:
    """The function for `build=` of train.py that makes Averaged, Converging or CMDInstead."""
    return partial(train.build_msfn, kind=partial(kind, **arguments))


def build_of(folder: Path) -> train.Build:
    """The function that builds the model of a finished run, of MSFN or of this file.

    Raises UserError if `folder` holds no trained model.
    """
    path = RunFolder(folder).weights
    with explained(f"{folder} holds no trained model"):
        names = safetensors.safe_open(regular(path), "pt").keys()
        return build(Averaged, decay=0.0) if "steps" in names else train.build_msfn
