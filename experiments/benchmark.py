"""What a training step costs, and how much of it is BERT alone.

    python experiments/benchmark.py                                              # synthetic, small BERT
    python experiments/benchmark.py -- --dataset mosi --data FILE --bert FOLDER  # your file, your BERT
    python experiments/benchmark.py --mosi label.csv --base -- --bert FOLDER

What follows `--` goes to train.py as it is. --mosi: MOSI's texts and times from a label CSV (columns
mode, video_id, clip_id, text, label, start, end), with random features of MMSA's shapes. --base: an
encoder of BERT-base's size with random weights, and the tokeniser of --bert.

Every time is a median over --repeats batches; what is compared runs on the same batch, in turns. Read
the ratios: seconds belong to the machine. The floor is the encoder of Eq. 3 alone on the same batch:
forward, backward, the same optimiser.
"""

import csv
import pickle
import resource
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import tables  # puts the project's folder on the path
import torch
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm
from transformers import BertConfig, BertModel

import data
import plumbing
import train
from msfn import MODALITIES, attention_mask, task_loss, triplet_loss
from plumbing import UserError, devices, encoders, explained, fetch
from plumbing.packing import Packed, pack

# MMSA's MOSI files: the most frames, and the features of a frame
SHAPES = {"aligned": {"a": (50, 5), "v": (50, 20)}, "unaligned": {"a": (375, 5), "v": (500, 20)}}
FRAMES_A_SECOND = 30  # of the unaligned features; the aligned ones have a frame a word
TEXT_AT_MOST = 50  # to which the field pads every text
SIZES = (16, 32, 64, 128, 256, 512)  # of a batch, and of its sequences, as they grow


def mosi_shaped(labels: Path, shapes: str, folder: Path) -> Path:
    """A file of MMSA's format: true texts, labels and lengths, random features. Raises UserError."""
    rng, content = np.random.default_rng(0), {}
    with explained(f"--mosi {labels} is no CSV of MOSI's texts, labels and times"):
        with open(labels, newline="", encoding="utf-8-sig") as file:
            table = list(csv.DictReader(file))
        for split in dict.fromkeys(row["mode"] for row in table):
            rows = [row for row in table if row["mode"] == split]
            part = content[split] = {"raw_text": [row["text"] for row in rows]}
            part["id"] = [f"{row['video_id']}$_${row['clip_id']}" for row in rows]
            part["regression_labels"] = np.array([row["label"] for row in rows], np.float32)
            frames = np.array([len(row["text"].split()) for row in rows])
            if shapes == "unaligned":
                seconds = [float(row["end"]) - float(row["start"]) for row in rows]
                frames = (FRAMES_A_SECOND * np.array(seconds)).astype(int)
            for m, (T, d) in SHAPES[shapes].items():
                key = data.FRAMES[m]
                part[f"{key}_lengths"] = frames.clip(1, T)
                part[key] = rng.normal(size=(len(rows), T, d)).astype(np.float32)
                part[key][np.arange(T) >= frames.clip(1, T)[:, None]] = 0
    path = folder / f"mosi_{shapes}.pkl"
    path.write_bytes(pickle.dumps(content, protocol=4))
    return path


def bert_base(tokenizer: str, folder: Path) -> Path:
    """A folder with a random BERT-base and the tokeniser of another encoder. Raises UserError."""
    torch.manual_seed(0)
    encoder = BertModel(BertConfig())
    for part in (encoder, encoders.load_tokenizer(fetch.encoder(tokenizer), encoder)):
        part.save_pretrained(folder / "bert")
    return folder / "bert"


class Clock(defaultdict):
    """{name of a piece of work: its seconds, each time}, on a device that may lag behind"""

    def __init__(self, device: torch.device):
        super().__init__(list)
        self.wait = torch.accelerator.synchronize if device.type != "cpu" else lambda: None

    def time(self, name, work, *arguments):
        self.wait()
        start = time.perf_counter()
        result = work(*arguments)
        self.wait()
        self[name].append(time.perf_counter() - start)
        return result


def peak_memory(device: torch.device) -> float:
    """The most that this process has used so far, in GB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


# ── The pieces of a step, forward and backward ────────────────────────────────────────────────────


def embed(run: train.Run, config: train.Config, batch: data.Batch, modalities: str):
    """Eqs. 1–3 of some modalities."""
    with devices.autocast(config.amp, run.device):
        x = [run.model.embeddings[m](*batch.inputs[m]) for m in modalities]
    sum(each.float().sum() for each in x).backward()


def after_embedding(run: train.Run, config: train.Config, batch: data.Batch):
    """Eqs. 4–16, on an x that costs nothing, which is also all that is optimised."""
    x = torch.randn(len(batch.y), config.d, device=run.device, requires_grad=True)
    for block in run.model.embeddings.values():
        block.forward = lambda *_: x
    train.train_step(run, run.model, torch.optim.SGD([x]), config, batch)
    for block in run.model.embeddings.values():
        del block.forward


def fuse(run: train.Run, config: train.Config, batch: data.Batch):
    """Eqs. 13–15."""
    h = torch.randn(len(batch.y), config.d, device=run.device, requires_grad=True)
    with devices.autocast(config.amp, run.device):
        mask = attention_mask(batch.video, config.attention)
        attended = [run.model.attentions[m](h, mask) for m in MODALITIES]
        prediction = run.model.predictor(torch.cat(attended, dim=-1))
    task_loss(batch.y, prediction.float()).backward()


def clip_and_step(run: train.Run, config: train.Config, optimizer: torch.optim.Optimizer):
    clip_grad_norm_(run.model.parameters(), config.clip)
    optimizer.step()


def pad(batch: data.Batch, longest: dict[str, int]) -> data.Batch:
    """Every sequence of modality m cut or padded to longest[m]; its padding counts as true."""
    inputs = {}
    for m, T in longest.items():
        values, lengths = batch.inputs[m]
        longer = values.new_zeros(len(values), T, *values.shape[2:])
        longer[:, : values.shape[1]] = values[:, :T]
        inputs[m] = longer, torch.full_like(lengths, T)
    return batch._replace(inputs=inputs)


# ── The tables ────────────────────────────────────────────────────────────────────────────────────


def some_batches(run: train.Run, config: train.Config, number: int) -> list[data.Batch]:
    """The first batches of the first epoch, on the device."""
    loader = train.loader(run.segments["train"], config, epoch=0)
    return [batch.to(run.device) for _, batch in zip(range(number), loader)]


def tokens(batch: data.Batch) -> int:
    return int(batch.inputs["l"][1].sum())


def compare(run: train.Run, config: train.Config, repeats: int) -> str:
    """The step, its parts, its floor, and the same model as the field runs it."""
    model, split = run.model.train(), run.segments["train"].split
    longest = {"l": TEXT_AT_MOST}
    for m in data.FRAMES:
        longest[m] = max(1, *(len(split.frames(m, i)) for i in range(len(split))))
    optimizer, clock = train.make_optimizer(run, config), Clock(run.device)
    unfused = torch.optim.Adam(model.parameter_groups(), config.learning_rate)
    float32 = replace(config, amp="off")
    batches = some_batches(run, config, repeats)
    for batch in batches:  # warm up
        train.train_step(run, model, optimizer, config, batch)
    memory = peak_memory(run.device)
    train.train_step(run, model, unfused, float32, pad(batches[0], longest))
    for batch in tqdm(batches, "compared", leave=False):
        clock.time("step", train.train_step, run, model, optimizer, config, batch)
        clock.time("BERT", embed, run, config, batch, "l")
        clock.time("its optimiser", optimizer.step)  # passes over what has no gradient
        clock.time("LSTMs", embed, run, config, batch, "av")
        clock.time("Eqs. 4-16", after_embedding, run, config, batch)
        clock.time("fusion", fuse, run, config, batch)
        clock.time("optimiser", clip_and_step, run, config, optimizer)  # now all have gradients
        optimizer.zero_grad()
        padded = pad(batch, longest)
        clock.time("padded", train.train_step, run, model, unfused, float32, padded)
    seconds = {name: np.array(values) for name, values in clock.items()}
    step, floor = seconds["step"], seconds["BERT"] + seconds["its optimiser"]

    def share(name: str, part: np.ndarray) -> list[str]:
        return [f"{name}, alone", f"{100 * np.median(part / step):.1f} % of a step"]

    segments = np.array([len(batch.y) for batch in batches])
    words = np.array([tokens(batch) for batch in batches])
    rows = [
        ["one step", f"{np.median(step):.3f} s for {segments.mean():.0f} segments"],
        ["segments/s", f"{np.median(segments / step):.1f}"],
        ["tokens/s", f"{np.median(words / step):.0f}"],
        ["step / floor", f"{np.median(step / floor):.3f}"],
        share("BERT", seconds["BERT"]),
        share("LSTMs", seconds["LSTMs"]),
        share("similarity and losses", seconds["Eqs. 4-16"] - seconds["fusion"]),
        share("fusion", seconds["fusion"]),
        share("clipping and optimiser", seconds["optimiser"]),
        ["padded, float32, unfused / step", f"{np.median(seconds['padded'] / step):.2f}"],
        ["real token positions", f"{100 * real_positions(batches, run.encoder):.1f} %"],
        ["peak memory", f"{memory:.2f} GB"],
        ["of an epoch, outside the steps", f"{100 * outside(run, config, optimizer):.2f} %"],
    ]
    return tables.markdown(["", f"median of {len(batches)} batches"], rows)


def real_positions(batches: list[data.Batch], encoder: torch.nn.Module) -> float:
    """The share of the token positions given to the encoder that are no padding."""
    positions = 0
    for batch in batches:
        given, lengths = batch.inputs["l"]
        if isinstance(encoder, Packed):
            given, _ = pack(lengths.clamp(min=1), encoder.row_length)
        positions += given.numel()
    return sum(map(tokens, batches)) / positions


def outside(run: train.Run, config: train.Config, optimizer: torch.optim.Optimizer) -> float:
    """The share of an epoch of train.py that is loading, batching and logging."""
    clock, step = Clock(run.device), train.train_step
    train.train_step = lambda *arguments: clock.time("step", step, *arguments)
    clock.time("epoch", train.train_epoch, run, run.model, optimizer, config, 0)
    train.train_step = step
    return 1 - sum(clock["step"]) / sum(clock["epoch"])


def triplets(sizes: tuple[int, ...]) -> str:
    """Eq. 9, forward and backward, on the CPU."""
    rows, clock = [], Clock(torch.device("cpu"))
    before = peak_memory(torch.device("cpu"))
    for B in sizes:
        h, y = torch.randn(B, 128, requires_grad=True), torch.randint(-3, 4, (B,))
        for _ in range(3):
            clock.time(B, lambda h, y: triplet_loss(h, y).backward(), h, y)
        used = peak_memory(torch.device("cpu")) - before
        rows.append([f"{B:,}", f"{np.median(clock[B]):.2f}", f"{used:.2f}"])
    return tables.markdown(["Eq. 9 on the CPU, d = 128: segments", "seconds", "GB"], rows)


def growth(run: train.Run, config: train.Config) -> str:
    """A step's time by batch size, and by the length of the sequences: medians of three."""
    optimizer, work = train.make_optimizer(run, config), {}
    for B in SIZES:  # for batches of just B, videos are divided
        size = replace(config, batch_size=B, attention="segment")
        (batch,) = some_batches(run, size, 1)
        work[f"{len(batch.y)} segments"] = batch
    few = next(iter(work.values()))
    for T in SIZES:
        if run.encoder.config.max_position_embeddings >= T:
            what = f"{len(few.y)} segments of {T} tokens and {T} frames"
            work[what] = pad(few, dict.fromkeys(MODALITIES, T))
    rows, clock = [], Clock(run.device)
    for what, batch in tqdm(work.items(), "growth", leave=False):
        for _ in range(4):
            clock.time(what, train.train_step, run, run.model, optimizer, config, batch)
        seconds = np.median(clock[what][1:])  # the first warms up
        rows.append([what, f"{seconds:.3f}", f"{tokens(batch) / seconds:.0f}"])
    return tables.markdown(["a step of", "seconds", "tokens/s"], rows)


def main():
    parser = tables.parser(__doc__)
    parser.add_argument("--mosi", type=Path, metavar="CSV", help="MOSI's texts, labels and times")
    parser.add_argument("--shapes", choices=SHAPES, default="aligned", help="for --mosi (aligned)")
    parser.add_argument("--base", action="store_true", help="BERT-base's size, random weights")
    parser.add_argument("--no-growth", action="store_true", help="without the tables of growth")
    parser.add_argument("--repeats", type=int, default=10, help="batches compared (10)")
    typed = parser.parse_args()
    if typed.repeats < 1:
        raise UserError(f"--repeats must be at least 1, not {typed.repeats}")
    dataset = "mosi" if typed.mosi else "synthetic"
    config, _ = train.parse(["--dataset", dataset, *typed.options])
    if "l" not in config.modalities:
        raise UserError("the floor of a step is BERT's: leave l in --modalities")
    if not typed.no_growth:
        # In a process of its own, since peak memory never sinks; first, since it is inherited.
        with get_context("spawn").Pool(1) as pool:
            print(pool.apply(triplets, [(1024, 2048, 4096)]), end="\n\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        if typed.mosi:
            config.data = str(mosi_shaped(typed.mosi, typed.shapes, Path(folder)))
        if typed.base:
            config.bert = str(bert_base(config.bert, Path(folder)))
        run = train.prepare(config)
        threads = torch.get_num_threads()
        print(f"{run.device}, {threads} threads, batch {config.batch_size}, amp {config.amp}\n")
        print(compare(run, config, typed.repeats), flush=True)
        if not typed.no_growth:
            print("", growth(run, config), sep="\n")


if __name__ == "__main__":
    sys.exit(plumbing.run(main))
