"""What a training step costs, and how much of it is the encoder alone.

    python -m experiments.benchmark                        # synthetic data, small BERT
    python -m experiments.benchmark -- --dataset mosi --data FILE --bert FOLDER

The options after `--` go to train.py. Each time is a median over --repeats batches; the parts run
on the same batch, in turns. Read the ratio: seconds belong to the machine. The floor is the encoder
of Eq. 3 alone on the same batch: forward, backward, the same optimizer.
"""

import sys
import time
from collections.abc import Callable
from itertools import islice

import numpy as np
import torch
from tqdm import tqdm

import data
import plumbing
import train
from experiments import markdown, parser, split_options
from plumbing import UserError, devices


def timed(part: Callable, session: train.Session, batch: data.Batch) -> float:
    """Seconds of part(session, batch), on a device that may lag behind."""
    wait = torch.accelerator.synchronize if session.device.type != "cpu" else lambda: None
    wait()
    start = time.perf_counter()
    part(session, batch)
    wait()
    return time.perf_counter() - start


def floor(session: train.Session, batch: data.Batch) -> None:
    """Eq. 3 alone: forward, backward, and the optimizer's step."""
    with devices.autocast(session.config.amp, session.device):
        x = session.model.embeddings["l"](*batch.inputs["l"])
    x.float().sum().backward()
    session.optimizer.step()  # skips parameters without a gradient
    session.optimizer.zero_grad()


def compare(session: train.Session, repeats: int) -> str:
    """The step and its floor, on the first batches of the first epoch."""
    session.model.train()
    loader = train.loader(session.segments["train"], session.config, epoch=0)
    batches = [batch.to(session.device) for batch in islice(loader, repeats)]
    for batch in batches:  # warm up
        train.train_step(session, batch)
    parts = train.train_step, floor
    times = np.array([[timed(part, session, batch) for part in parts] for batch in tqdm(batches)])
    step, ratio = np.median(times[:, 0]), np.median(times[:, 0] / times[:, 1])
    segments = np.mean([len(batch.y) for batch in batches])
    rows = [
        ["one step", f"{step:.3f} s for {segments:.0f} segments"],
        ["step / floor", f"{ratio:.3f}"],
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
