"""What a training step costs, and how much of it is BERT alone.

    python experiments/benchmark.py                                         # synthetic data, small BERT
    python experiments/benchmark.py -- --data FILE --bert FOLDER --amp bf16 # your file, your BERT
    python experiments/benchmark.py --mosi label.csv --base -- --bert FOLDER

What follows `--` goes to train.py as it is. --mosi: MOSI's texts and times from a label CSV (columns
mode, video_id, clip_id, text, label, start, end), with random features of MMSA's shapes. --base: an
encoder of BERT-base's size with random weights, and the tokeniser of --bert.

Every time is a median over --repeats batches; what is compared runs on the same batch, in turns. Read
the ratios: seconds belong to the machine. The floor is the encoder of Eq. 3 alone on the same batch:
forward, backward, the same optimiser.
"""

import argparse
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
from types import SimpleNamespace

import numpy as np
import tables  # puts the project's folder on the path
import torch
from tqdm import tqdm

import train
from msfn import MODALITIES, MSFN, attention_mask, pack, task_loss, triplet_loss

# MMSA's MOSI files: the most frames, and the features of a frame
SHAPES = {"aligned": {"a": (50, 5), "v": (50, 20)}, "unaligned": {"a": (375, 5), "v": (500, 20)}}
FRAMES_A_SECOND = 30  # of the unaligned features; the aligned ones have a frame a word
TEXT_AT_MOST = 50  # to which the field pads every text


def mosi_shaped(labels: Path, shapes: str, folder: Path) -> Path:
    """A file of MMSA's format: true texts, labels and lengths, random features."""
    rng, parts = np.random.default_rng(0), defaultdict(list)
    try:
        with open(labels, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            table, columns = list(reader), set(reader.fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise train.UserError(f"--mosi {labels} cannot be read: {error}") from None
    if missing := {"mode", "video_id", "clip_id", "text", "label", "start", "end"} - columns:
        raise train.UserError(f"--mosi {labels} has no column {', '.join(sorted(missing))}")
    for row in table:
        parts[row["mode"]].append(row)
    content = {}
    for split, rows in parts.items():
        part = content[split] = {
            "raw_text": [row["text"] for row in rows],
            "id": [f"{row['video_id']}$_${row['clip_id']}" for row in rows],
        }
        try:
            label, start, end = (
                np.array([row[key] for row in rows], np.float32)
                for key in ("label", "start", "end")
            )
        except ValueError as error:
            raise train.UserError(f"--mosi {labels}, {split}: {error}") from None
        part["regression_labels"] = label
        words = np.array([len(row["text"].split()) for row in rows])
        frames = words if shapes == "aligned" else (FRAMES_A_SECOND * (end - start)).astype(int)
        for name, (T, d) in zip(("audio", "vision"), SHAPES[shapes].values(), strict=True):
            lengths = part[f"{name}_lengths"] = frames.clip(1, T)
            values = part[name] = rng.normal(size=(len(rows), T, d)).astype(np.float32)
            values[np.arange(T) >= lengths[:, None]] = 0
    path = folder / f"mosi_{shapes}.pkl"
    path.write_bytes(pickle.dumps(content, protocol=4))
    return path


def bert_base(tokenizer: str, folder: Path) -> Path:
    """A folder with a random BERT-base and the tokeniser of another encoder."""
    torch.manual_seed(0)
    train.BertModel(train.BertConfig()).save_pretrained(folder / "bert")
    train.data.load_tokenizer(train.data.encoder_folder(tokenizer)).save_pretrained(folder / "bert")
    return folder / "bert"


class Clock(defaultdict):
    """{name of a piece of work: its seconds, each time}, on a device that may lag behind"""

    def __init__(self, device: torch.device):
        super().__init__(list)
        self.wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None

    def time(self, name: str, work, *arguments):
        self.wait()
        start = time.perf_counter()
        result = work(*arguments)
        self.wait()
        self[name].append(time.perf_counter() - start)
        return result

    def sum(self, *names: str) -> np.ndarray:
        return np.sum([self[name] for name in names], axis=0)


def peak_memory(device: torch.device) -> float:
    """The most that this process has used so far, in GB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


# ── The pieces of a step, forward and backward ────────────────────────────────────────────────────


def embed(run: train.Run, config: train.Config, batch: train.data.Batch, modalities: str):
    """Eqs. 1–3 of some modalities."""
    with train.precision(config, run.device):
        x = [run.model.embeddings[m](*batch.inputs[m]) for m in modalities]
    sum(each.float().sum() for each in x).backward()


def after_embedding(run: train.Run, config: train.Config, batch: train.data.Batch):
    """Eqs. 4–16, on an x that costs nothing."""
    x = torch.randn(len(batch.y), config.d, device=run.device, requires_grad=True)
    for block in run.model.embeddings.values():
        block.forward = lambda *_: x
    train.train_step(run, run.model, config, batch)
    for block in run.model.embeddings.values():
        del block.forward


def fuse(run: train.Run, config: train.Config, batch: train.data.Batch):
    """Eqs. 13–15."""
    h = torch.randn(len(batch.y), config.d, device=run.device, requires_grad=True)
    with train.precision(config, run.device):
        mask = attention_mask(batch.video, config.attention)
        prediction = run.model.predictor(*(run.model.attentions[m](h, mask) for m in MODALITIES))
    task_loss(batch.y, prediction.float()).backward()


def pad(batch: train.data.Batch, frames: dict[str, int]) -> train.data.Batch:
    """Every sequence as long as the file's longest; texts cut or padded to 50."""
    inputs = {}
    for m, T in {**frames, "l": TEXT_AT_MOST}.items():
        values, lengths = batch.inputs[m]
        longer = values.new_zeros(len(values), T, *values.shape[2:])
        longer[:, : values.shape[1]] = values[:, :T]
        inputs[m] = longer, torch.full_like(lengths, T)
    return batch._replace(inputs=inputs)


def of_length(batch: train.data.Batch, T: int) -> train.data.Batch:
    """At most 16 segments whose three sequences are T long."""
    inputs = {}
    for m, (values, lengths) in batch.inputs.items():
        values = torch.cat([values[:16]] * -(-T // values.shape[1]), dim=1)[:, :T]
        inputs[m] = values, torch.full_like(lengths[:16], T)
    return train.data.Batch(inputs, batch.y[:16], batch.video[:16], batch.ids[:16])


# ── The tables ────────────────────────────────────────────────────────────────────────────────────


def triplets() -> str:
    """Eq. 9, forward and backward; for a process of its own, since peak memory never sinks."""
    rows, cpu = [], torch.device("cpu")
    before = peak_memory(cpu)
    for B in (1024, 2048, 4096):
        h, y = torch.randn(B, 128, requires_grad=True), torch.randint(-3, 4, (B,))
        clock = Clock(cpu)
        for _ in range(3):
            clock.time("loss", lambda h, y: triplet_loss(h, y).backward(), h, y)
        used = peak_memory(cpu) - before
        rows.append([f"{B:,}", f"{np.median(clock['loss']):.2f}", f"{used:.2f}"])
    return tables.markdown(["Eq. 9 on the CPU, d = 128: segments", "seconds", "GB"], rows)


def some_batches(run: train.Run, config: train.Config, number: int) -> list[train.data.Batch]:
    """The first batches of the first epoch, on the device."""
    loader = train.loader(run.segments["train"], config, epoch=0)
    return [train.to_device(batch, run.device) for _, batch in zip(range(number), loader)]


def compare(run: train.Run, config: train.Config, repeats: int) -> str:
    """The step, its parts, its floor, and the same model as the field runs it."""
    model, split = run.model.train(), run.segments["train"].split
    longest = {m: max(len(x) for x in split.sequences[m]) for m in train.data.FRAMES}
    optimizer, clock = train.make_optimizer(run, config), Clock(run.device)
    unfused = torch.optim.Adam(model.parameter_groups(), lr=config.learning_rate)
    batches = some_batches(run, config, repeats)

    def step(batch):
        clock.time("forward and backward", train.train_step, run, model, config, batch)
        clock.time("optimiser", train.update, optimizer, config)

    def padded(batch):
        train.train_step(run, model, replace(config, amp="off"), batch)
        unfused.step()
        unfused.zero_grad()

    for batch in batches:  # warm up
        step(batch)
    memory = peak_memory(run.device)
    padded(pad(batches[0], longest))
    clock.clear()
    for batch in tqdm(batches, "compared", leave=False):
        step(batch)
        clock.time("BERT", embed, run, config, batch, "l")
        clock.time("its optimiser", optimizer.step)  # passes over what has no gradient
        optimizer.zero_grad()
        clock.time("LSTMs", embed, run, config, batch, "av")
        clock.time("Eqs. 4-16", after_embedding, run, config, batch)
        clock.time("fusion", fuse, run, config, batch)
        optimizer.zero_grad()
        clock.time("padded", padded, pad(batch, longest))
    whole = clock.sum("forward and backward", "optimiser")
    segments = np.array([len(batch.y) for batch in batches])
    tokens = np.array([int(batch.inputs["l"][1].sum()) for batch in batches])
    parts = {
        "BERT": clock.sum("BERT"),
        "LSTMs": clock.sum("LSTMs"),
        "similarity and losses": clock.sum("Eqs. 4-16") - clock.sum("fusion"),
        "fusion": clock.sum("fusion"),
        "clipping and optimiser": clock.sum("optimiser"),
    }
    share = "; ".join(f"{name} {100 * np.median(s / whole):.1f} %" for name, s in parts.items())
    floor = clock.sum("BERT", "its optimiser")
    rows = [
        ["one step", f"{np.median(whole):.3f} s for {segments.mean():.0f} segments"],
        ["segments/s", f"{np.median(segments / whole):.1f}"],
        ["tokens/s", f"{np.median(tokens / whole):.0f}"],
        ["step / floor", f"{np.median(whole / floor):.3f}"],
        ["share of each part, measured alone", share],
        ["padded, float32, unfused / step", f"{np.median(clock.sum('padded') / whole):.2f}"],
        ["real token positions", f"{100 * real_positions(batches, model):.1f} %"],
        ["peak memory", f"{memory:.2f} GB"],
        ["of an epoch, outside the steps", f"{100 * outside(run, config, optimizer):.2f} %"],
    ]
    return tables.markdown(["", f"median of {len(batches)} batches"], rows)


def real_positions(batches: list[train.data.Batch], model: MSFN) -> float:
    """The share of the token positions given to BERT that are no padding."""
    row_length = model.embeddings["l"].row_length
    rows = [pack(batch.inputs["l"][1], row_length)[0] for batch in batches]
    return sum(int((row >= 0).sum()) for row in rows) / sum(row.numel() for row in rows)


def outside(run: train.Run, config: train.Config, optimizer) -> float:
    """The share of an epoch of train.py that is loading, batching and logging."""
    clock = Clock(run.device)
    step, update = train.train_step, train.update
    train.train_step = lambda *arguments: clock.time("step", step, *arguments)
    train.update = lambda *arguments: clock.time("step", update, *arguments)
    keeper = SimpleNamespace(due=lambda: False)
    epoch = (run, run.model, optimizer, config, train.Progress(), keeper)
    clock.time("epoch", train.train_epoch, *epoch)
    train.train_step, train.update = step, update
    return 1 - sum(clock["step"]) / sum(clock["epoch"])


def growth(run: train.Run, config: train.Config) -> str:
    """A step's time by batch size, and by the length of the sequences: medians of three."""
    optimizer, rows = train.make_optimizer(run, config), []

    def add(what: str, batches: list[train.data.Batch]):
        clock = Clock(run.device)
        for batch in [batches[0], *batches]:  # the first warms up
            clock.time("", train.train_step, run, run.model, config, batch)
            clock.time(" ", train.update, optimizer, config)
        seconds = clock.sum("", " ")[1:]
        tokens = [int(batch.inputs["l"][1].sum()) for batch in batches]
        rows.append([what, f"{np.median(seconds):.3f}", f"{np.median(tokens / seconds):.0f}"])

    for B in tqdm((16, 32, 64, 128, 256, 512), "batch size", leave=False):
        batches = some_batches(run, replace(config, batch_size=B), 3)
        add(f"{np.mean([len(batch.y) for batch in batches]):.0f} segments", batches)
    limit = run.model.embeddings["l"].bert.config.max_position_embeddings
    batch = some_batches(run, config, 1)[0]
    for T in tqdm((16, 32, 64, 128, 256, 512), "length", leave=False):
        if limit >= T:
            add(f"16 segments of {T} tokens and {T} frames", [of_length(batch, T)] * 3)
    return tables.markdown(["a step of", "seconds", "tokens/s"], rows)


@train.clean_exit()
def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mosi", type=Path, metavar="CSV", help="MOSI's texts, labels and times")
    parser.add_argument("--shapes", choices=SHAPES, default="aligned", help="for --mosi (aligned)")
    parser.add_argument("--base", action="store_true", help="BERT-base's size, random weights")
    parser.add_argument("--no-growth", action="store_true", help="without the last table")
    parser.add_argument("--repeats", type=int, default=10, help="batches compared (10)")
    parser.add_argument("options", nargs="*", help="after --: train.py's own options")
    typed = parser.parse_args()
    if typed.repeats < 1:
        raise train.UserError(f"--repeats must be at least 1, not {typed.repeats}")
    options = vars(train.build_parser().parse_args(typed.options))
    if instead := {"resume", "evaluate", "predict"} & set(options):
        raise train.UserError(f"--{min(instead)} has no place here: what is timed is a new run")
    with get_context("spawn").Pool(1) as pool:
        print(pool.apply(triplets), end="\n\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        if typed.mosi:
            options |= {"dataset": "mosi"}
            options["data"] = str(mosi_shaped(typed.mosi, typed.shapes, Path(folder)))
        elif "data" not in options:
            options.setdefault("dataset", "synthetic")
        if typed.base:
            options["bert"] = str(bert_base(options.get("bert", train.Config.bert), Path(folder)))
        config = train.configure(options)
        if "l" not in config.modalities:
            raise train.UserError("the floor of a step is BERT's: leave language in --modalities")
        run = train.prepare(config)
        print(
            f"\n{run.device}, {torch.get_num_threads()} threads, batch {config.batch_size}, "
            f"amp {config.amp}\n"
        )
        print(compare(run, config, typed.repeats), end="\n\n", flush=True)
        if not typed.no_growth:
            print(growth(run, config))


if __name__ == "__main__":
    main()
