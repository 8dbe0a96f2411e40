"""What a training step costs, and how much of it is the encoder alone.

    python -m experiments.benchmark                        # synthetic data, small BERT
    python -m experiments.benchmark -- --dataset mosi --data FILE --bert FOLDER

The options after `--` go to train.py. Each time is a median over --repeats batches; the parts run
on the same batch, in turns. Read the ratios: seconds belong to the machine. The floor is the
encoder of Eq. 3 alone on the same batch: forward, backward, the same optimizer. The rest of a step
is what floor and LSTMs leave of it: Eqs. 4–16 and clipping.
"""

import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from tqdm import tqdm

import data
import plumbing
import train
from experiments import markdown, parser, split_options
from plumbing import UserError, devices


def timed(device: torch.device, part: Callable, batch: data.Batch) -> float:
    """Seconds of part(batch), on a device that may lag behind."""
    wait = torch.accelerator.synchronize if device.type != "cpu" else lambda: None
    wait()
    start = time.perf_counter()
    part(batch)
    wait()
    return time.perf_counter() - start


def peak_memory(device: torch.device) -> float:
    """The most memory that this process has used so far, in GB; NaN on Windows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    try:
        import resource
    except ImportError:
        return float("nan")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def embed(session: train.Session, batch: data.Batch, modalities: str) -> None:
    """Eqs. 1–3 of some modalities: forward, backward, and the optimizer's step."""
    with devices.autocast(session.config.amp, session.device):
        x = [session.model.embeddings[m](*batch.inputs[m]) for m in modalities]
    sum(each.float().sum() for each in x).backward()
    session.optimizer.step()  # skips parameters without a gradient
    session.optimizer.zero_grad()


def compare(session: train.Session, repeats: int) -> str:
    """The step, its parts and its floor, on the first batches of the first epoch."""
    parts = {
        "step": lambda batch: train.train_step(session, batch),
        "floor": lambda batch: embed(session, batch, "l"),
        "LSTMs": lambda batch: embed(session, batch, "av"),
    }
    session.model.train()
    loader = train.loader(session.segments["train"], session.config, epoch=0)
    batches = [batch.to(session.device) for _, batch in zip(range(repeats), loader, strict=False)]
    for batch in batches:  # warm up
        train.train_step(session, batch)
    memory = peak_memory(session.device)
    times = {name: [] for name in parts}
    for batch in tqdm(batches, "compared", leave=False):
        for name, part in parts.items():
            times[name].append(timed(session.device, part, batch))
    step, floor, lstms = (np.array(values) for values in times.values())
    segments = np.array([len(batch.y) for batch in batches])
    tokens = np.array([int(batch.inputs["l"][1].sum()) for batch in batches])
    shares = {"floor": floor / step, "LSTMs": lstms / step, "rest": 1 - (floor + lstms) / step}
    rows = [
        ["one step", f"{np.median(step):.3f} s for {segments.mean():.0f} segments"],
        ["step / floor", f"{np.median(step / floor):.3f}"],
        *([name, f"{np.median(share):.1%} of a step"] for name, share in shares.items()),
        ["segments/s", f"{np.median(segments / step):.1f}"],
        ["tokens/s", f"{np.median(tokens / step):.0f}"],
        ["peak memory", f"{memory:.2f} GB"],
    ]
    return markdown(["", f"median of {len(batches)} batches"], rows)


@devices.flush_denormals()
def main(argv: list[str]) -> None:
    words, options = split_options(argv)
    own = parser(__doc__)
    own.add_argument("--repeats", type=int, default=10, help="batches compared (10)")
    typed = own.parse_args(words)
    if typed.repeats < 1:
        raise UserError(f"--repeats must be at least 1, not {typed.repeats}")
    config = train.Config(**train.parse(["--dataset", "synthetic", *options]))
    if "l" not in config.modalities:
        raise UserError("the floor of a step is the encoder's: leave l in --modalities")
    session = train.Session(config)
    threads = torch.get_num_threads()
    print(f"{session.device}, {threads} threads, batch {config.batch_size}, amp {config.amp}\n")
    print(compare(session, typed.repeats))


if __name__ == "__main__":
    sys.exit(plumbing.run(main, sys.argv[1:]))
