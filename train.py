"""Train MSFN and print its metrics beside the paper's row.

    python train.py --dataset synthetic                         # no data, no hub, no GPU: a minute
    python train.py --dataset mosi                              # MMSA's file, fetched if need be
    python train.py --dataset mosi --data FILE --bert FOLDER    # your file, your BERT
    torchrun --nproc_per_node=2 -- train.py --dataset mosi      # two GPUs, or two processes

    python train.py --resume runs/NAME                          # go on after Ctrl-C or a crash
    python train.py --evaluate runs/NAME --data FILE            # the table, and predictions.csv
    python train.py --predict runs/NAME "I loved every minute"  # one number

The story, from top to bottom: configuration, metrics, preparation, many processes, an epoch, the
whole run, checkpoints, a finished run, the command line. The best epoch is chosen on the valid
split's MAE alone; the test split is read once, when that epoch is fixed.
"""

import argparse
import csv
import json
import math
import os
import signal
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import BertConfig, BertModel, PreTrainedTokenizerBase

import data
from msfn import MODALITIES, MSFN, TABLE_1, Losses, MSFNConfig, Output, mean, option

# ── Configuration: defaults < Table 1's preset < what the user typed ──────────────────────────────


@dataclass
class Config(MSFNConfig):
    """All that makes a run: MSFNConfig (the model and Table 1), the data, the training."""

    dataset: str = option("mosi", "which data set", ("mosi", "mosei", "synthetic"))
    data: str | None = option(None, "its file or folder; else the one under data/; else fetched")
    labels: str | None = option(None, "CSV with the text of a file that holds none")
    modalities: str = option("avl", "subset of avl; the others become empty sequences")
    epochs: int = option(12, "epochs at most")
    patience: int = option(5, "stop after so many epochs without a better valid MAE")
    bert_learning_rate: float | None = option(None, "of BERT's weights; else r, as printed")
    clip: float = option(1.0, "largest gradient norm of each side of the game")
    seed: int = option(0, "seed of weights, dropout and batches")
    grad_accum: int = option(1, "batches a step; Eqs. 5–10 and 13 see one batch at a time")
    amp: str = option("auto", "bf16 in the forward pass; auto: on CUDA", ("auto", "off", "bf16"))
    compile: bool = option(False, "compile BERT with torch.compile")
    device: str = option("auto", "cpu, cuda, mps, or the best that is there")
    save_minutes: float = option(10.0, "between checkpoints inside an epoch; each epoch has one")
    test: bool = option(True, "read the test split at the end; a search must not")
    runs: str = option("runs", "folder of all runs")
    name: str | None = option(None, "this run's folder in it; else data set and seed, numbered")

    def __post_init__(self):
        super().__post_init__()
        if not self.modalities or set(self.modalities) - set(MODALITIES):
            raise ValueError(f"modalities must be letters of avl, not {self.modalities!r}")
        for name in ("epochs", "patience", "grad_accum"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("bert_learning_rate", "clip"):
            if not (getattr(self, name) is None or getattr(self, name) > 0):
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if not 0 <= self.seed < 2**30:
            raise ValueError(f"seed must be in 0 … 2**30 − 1, not {self.seed}")
        for name in ("data", "labels", "bert"):  # a resumed run finds them from anywhere
            path = getattr(self, name)
            if path not in (None, SMALL_BERT) and Path(path).exists():
                setattr(self, name, str(Path(path).resolve()))

    @classmethod
    def preset(cls, dataset: str, /, **typed) -> "Config":
        if dataset == "synthetic":  # a BERT from scratch wants a larger step than a pre-trained one
            return cls(
                dataset=dataset, **{"d": 64, "learning_rate": 1e-3, "bert": SMALL_BERT, **typed}
            )
        return super().preset(dataset, dataset=dataset, **typed)


SMALL_BERT = "small"  # 2 layers of width 64 with random weights, for the synthetic data
SMALL_BERT_TOKENS = 64  # of a text


class UserError(Exception):
    """Something that the user can mend, in one clear sentence; exit code 2."""


# ── Metrics ───────────────────────────────────────────────────────────────────────────────────────

# Tables 2 and 3. The paper does not name its Acc-2: its ICCN row equals ICCN's own non0 column.
PAPER = {
    "mosi": {"acc2_non0": 0.834, "f1_non0": 0.835, "mae": 0.802, "corr": 0.756, "acc7": 0.431},
    "mosei": {"acc2_non0": 0.845, "f1_non0": 0.844, "mae": 0.560, "corr": 0.747, "acc7": 0.516},
}


def metrics(prediction: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """The field's metrics of sentiment in [-3, 3], by its usual definitions.

    mae: mean |ŷ − y|. corr: Pearson's, 0 where either is constant. acc7, acc5: equal after rounding
    (half to even) what is clipped to ±3, ±2. acc2, f1 in two conventions: has0, negative /
    non-negative over all segments; non0, negative / positive over those with y ≠ 0. f1: each
    class's F1 weighted by its true count. NaN where there is no segment.

    prediction, y: (N,) float -> dict of float
    """
    prediction, y = np.asarray(prediction, np.float64), np.asarray(y, np.float64)
    result = {
        "mae": np.abs(prediction - y).mean() if len(y) else math.nan,
        "corr": pearson(prediction, y),
    }
    for name, bound in (("acc7", 3), ("acc5", 2)):
        result[name] = share(
            np.round(prediction.clip(-bound, bound)) == np.round(y.clip(-bound, bound))
        )
    kept = y != 0
    for name, p, t in (
        ("has0", prediction >= 0, y >= 0),
        ("non0", prediction[kept] > 0, y[kept] > 0),
    ):
        result[f"acc2_{name}"] = share(p == t)
        result[f"f1_{name}"] = weighted_f1(p, t)
    return {name: float(value) for name, value in result.items()}


def share(hits: np.ndarray) -> float:
    return hits.mean() if len(hits) else math.nan


def pearson(p: np.ndarray, t: np.ndarray) -> float:
    p, t = p - p.mean(), t - t.mean()
    norm = np.sqrt((p @ p) * (t @ t))
    return (p @ t) / norm if norm > 1e-12 * len(t) else 0.0


def weighted_f1(p: np.ndarray, t: np.ndarray) -> float:
    """F1 of the classes False and True, weighted by how many of each are true. p, t: (N,) bool"""
    f1 = [
        2 * ((p == c) & (t == c)).sum() / max(((p == c).sum() + (t == c).sum()), 1)
        for c in (False, True)
    ]
    return np.average(f1, weights=[(~t).sum(), t.sum()]) if len(t) else math.nan


def table(dataset: str, rows: dict[str, dict[str, float]]) -> str:
    """The metrics as text, one row a name, the paper's row first where it has one."""
    columns = ("acc2_non0", "f1_non0", "acc2_has0", "f1_has0", "mae", "corr", "acc7", "acc5")
    rows = ({"paper: MSFN": PAPER[dataset]} if dataset in PAPER else {}) | rows
    lines = [f"{'':20}" + "".join(f"{c.replace('_', ' '):>11}" for c in columns)]
    for name, row in rows.items():
        cells = (
            f"{row[c]:.3f}" if c in ("mae", "corr") else f"{100 * row[c]:.1f}" if c in row else "–"
            for c in columns
        )
        lines.append(f"{name:20}" + "".join(f"{cell:>11}" for cell in cells))
    return "\n".join(lines)


# ── Preparation ───────────────────────────────────────────────────────────────────────────────────


def pick_device(name: str) -> torch.device:
    """ "auto": CUDA, else MPS, else the CPU. Raises UserError for a device that is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    there["cpu"] = True
    if name == "auto":
        name = next(kind for kind, found in there.items() if found)
    kind, colon, index = name.partition(":")
    cards = torch.cuda.device_count() if kind == "cuda" else 1
    if not there.get(kind) or (colon and index not in map(str, range(cards))):
        raise UserError(f"--device {name} is not on this machine; --device cpu always is")
    return torch.device(f"cuda:{RANK % torch.cuda.device_count()}" if name == "cuda" else name)


class Run(NamedTuple):
    """What a run works with."""

    model: MSFN
    segments: dict[str, data.Segments]  # by split
    tokenizer: PreTrainedTokenizerBase
    standardizer: data.Standardizer
    device: torch.device


def prepare(config: Config) -> Run:
    """Data and model of a run. Raises DataError or UserError for what the user can mend."""
    device = pick_device(config.device)
    # A gradient that fades over hundreds of frames ends in numbers that a CPU multiplies 10 x slower.
    torch.set_flush_denormal(True)
    corpus = data.load(config.dataset, config.data, config.labels)
    if config.dataset != "synthetic":  # a resumed run must not find another file
        config.data = str(Path(corpus["train"].source[0]).resolve())
    standardizer = data.Standardizer.fit(corpus["train"])
    torch.manual_seed(config.seed)
    if config.bert == SMALL_BERT:
        if corpus["train"].text is None:
            raise UserError(f"--bert {SMALL_BERT} needs texts, and {config.data} holds token ids")
        tokenizer = data.word_tokenizer(corpus["train"].text, SMALL_BERT_TOKENS)
        bert = small_bert(len(tokenizer))
    else:
        bert = data.encoder_folder(config.bert)
        tokenizer = data.load_tokenizer(bert)
    segments = {
        split: data.Segments(corpus[split], tokenizer, standardizer, config.modalities)
        for split in data.SPLITS
    }
    notes = [note for part in (corpus, standardizer, *segments.values()) for note in part.notes]
    print(corpus.description, *notes, sep="\n")
    try:
        model = MSFN(config, corpus.dims, bert)
    except Exception as error:  # transformers raises half a dozen unrelated classes
        why = data.reason(error)
        raise UserError(f"--bert {config.bert}: no encoder can be loaded: {why}") from error
    known = model.embeddings["l"].bert.get_input_embeddings().num_embeddings
    if len(tokenizer) > known:
        raise UserError(f"--bert {config.bert}: {len(tokenizer)} tokens, embeddings of {known}")
    if config.compile:
        model.embeddings["l"].bert.compile(dynamic=True)
    return Run(model.to(device), segments, tokenizer, standardizer, device)


def small_bert(vocabulary: int) -> nn.Module:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "max_position_embeddings": SMALL_BERT_TOKENS}
    return BertModel(BertConfig(vocab_size=vocabulary, **sizes))


def loader(segments: data.Segments, config: Config, epoch: int | None = None, skip: int = 0):
    """Batches of one epoch, shuffled by (seed, epoch), from number `skip` on; None: unshuffled."""
    seed = None if epoch is None else (config.seed, epoch)
    plan = data.batches(segments.video, config.batch_size, config.attention == "video", seed)
    options = {"collate_fn": segments.collate, "pin_memory": torch.cuda.is_available()}
    return DataLoader(segments, batch_sampler=plan[skip:], **options)


def to_device(batch: data.Batch, device: torch.device) -> data.Batch:
    """Values to the device; lengths stay on the CPU, where packing and chunking read them."""
    move = {"device": device, "non_blocking": True}
    inputs = {m: (values.to(**move), lengths) for m, (values, lengths) in batch.inputs.items()}
    return batch._replace(inputs=inputs, y=batch.y.to(**move), video=batch.video.to(**move))


def precision(config: Config, device: torch.device):
    """The autocast of the forward pass; the losses are always computed in float32."""
    on = config.amp == "bf16" or (config.amp == "auto" and device.type == "cuda")
    return torch.autocast(device.type, torch.bfloat16, enabled=on)


def float32(part):
    """A tensor, or the tensors of (nested) dicts, in float32."""
    if isinstance(part, dict):
        return {key: float32(value) for key, value in part.items()}
    return part.float()


# ── Many processes ────────────────────────────────────────────────────────────────────────────────

RANK, WORLD = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


class Gather(torch.autograd.Function):
    """The rows that each process computed -> all rows, in each; gradients are summed likewise."""

    @staticmethod
    def forward(ctx, mine: Tensor, rows: Tensor, B: int) -> Tensor:
        ctx.rows = rows
        everyone = mine.new_zeros(B, *mine.shape[1:])
        everyone[rows] = mine
        dist.all_reduce(everyone)
        return everyone

    @staticmethod
    def backward(ctx, gradient: Tensor):
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[ctx.rows], None, None


def distribute(model: MSFN, device: torch.device) -> DistributedDataParallel:
    """Share each batch among the processes of torchrun.

    Eqs. 5–10 and 13 compare segments with each other, so no process can compute them from its own
    share. Eqs. 1–3 cost nearly everything and work segment by segment: these are shared out; x is
    gathered, and what follows is computed alike in each process, dropout and all. The gradient of x
    is a sum over the processes and DDP takes the mean, so loss and gradients are those of a single
    process.
    """
    ids = [device] if device.type == "cuda" else None

    def shared(alone):
        def forward(X: Tensor, lengths: Tensor) -> Tensor:
            rows = torch.arange(len(X)).tensor_split(WORLD)[RANK]
            seed = int(torch.randint(1 << 60, ())) + RANK  # each share has a dropout of its own
            with torch.random.fork_rng(ids or ()):
                torch.manual_seed(seed)
                mine = alone(X[rows], lengths[rows])
            return Gather.apply(mine, rows, len(X))

        return forward

    for block in model.embeddings.values():
        block.forward = shared(block.forward)
    # A process whose share has no face gives the LSTM of v no gradient: find_unused_parameters.
    return DistributedDataParallel(
        model, ids, forward_sync_buffers=False, find_unused_parameters=True
    )


# ── An epoch ──────────────────────────────────────────────────────────────────────────────────────

LOGGED = (*Losses._fields, "d_real", "d_fake")
CHECK_EVERY = 20  # steps between looks at the losses: each look waits for the GPU


@dataclass
class Progress:
    """Where a run is: all that a checkpoint holds beside weights and optimiser."""

    epoch: int = 0
    step: int = 0  # batches done in this epoch
    seconds: float = 0.0  # spent in this epoch
    logged: list[list[float]] = field(default_factory=list)  # LOGGED of each batch of this epoch
    best: dict = field(default_factory=lambda: {"epoch": -1, "valid": {"mae": math.inf}})


def make_optimizer(run: Run, config: Config) -> torch.optim.Adam:
    """Adam for both sides of the game; BERT may have a learning rate of its own."""
    rest, adversary = run.model.parameter_groups()
    bert = list(run.model.embeddings["l"].bert.parameters())
    ids = {id(p) for p in bert}
    groups = [
        {"params": [p for p in rest["params"] if id(p) not in ids]},
        {"params": bert, "lr": config.bert_learning_rate or config.learning_rate},
        adversary,
    ]
    return torch.optim.Adam(groups, config.learning_rate, fused=run.device.type in ("cpu", "cuda"))


def train_epoch(run: Run, forward, optimizer, config: Config, progress: Progress, keeper) -> dict:
    """The rest of an epoch -> the mean over its batches of each of LOGGED.

    forward: the model, or what DDP made of it. All randomness of a step comes from its number, so
    that a resumed run draws the same. Raises UserError, naming term and segments, when a loss is
    no longer finite.
    """
    run.model.train()
    batches = loader(run.segments["train"], config, progress.epoch, progress.step)
    last = progress.step + len(batches)
    waiting, start = [], time.perf_counter() - progress.seconds
    title = f"epoch {progress.epoch}"
    bar = tqdm(batches, title, last, False, initial=progress.step, disable=RANK > 0 or None)
    for batch in bar:
        torch.manual_seed((config.seed * 10_007 + progress.epoch) * 1_000_003 + progress.step)
        waiting.append((train_step(run, forward, config, batch), batch.ids))
        progress.step += 1
        if progress.step % config.grad_accum == 0 or progress.step == last:
            update(optimizer, config)
            due = keeper.due()
            if due or len(waiting) >= CHECK_EVERY or progress.step == last:
                progress.logged += finite(waiting, progress)
                progress.seconds, waiting = time.perf_counter() - start, []
                bar.set_postfix(L=f"{progress.logged[-1][0]:.3f}")
            if due:
                keeper.save(progress)
    return dict(zip(LOGGED, np.mean(progress.logged, 0).tolist(), strict=True))


def train_step(run: Run, forward, config: Config, batch: data.Batch) -> Tensor:
    """Forward and backward of one batch -> LOGGED: (7,)"""
    batch = to_device(batch, run.device)
    lengths = {m: batch.inputs[m][1] for m in MODALITIES}
    with precision(config, run.device):
        output = forward(batch.inputs, batch.video)
    output = Output(*map(float32, output))
    losses = run.model.losses(output, batch.y, lengths)
    (losses.total / config.grad_accum).backward()
    return torch.stack([*losses, *discriminated(output.logits, lengths)]).detach()


def update(optimizer: torch.optim.Optimizer, config: Config):
    """Clip the gradients, each side of the game by itself, and step."""
    for ascends in (False, True):
        groups = [g["params"] for g in optimizer.param_groups if g["maximize"] == ascends]
        clip_grad_norm_([p for group in groups for p in group], config.clip)
    optimizer.step()
    optimizer.zero_grad()


def finite(waiting: list[tuple[Tensor, list[str]]], progress: Progress) -> list[list[float]]:
    """The numbers of the batches since the last look. Raises UserError if one is not finite."""
    rows = torch.stack([row for row, _ in waiting]).tolist()
    for i, (row, (_, ids)) in enumerate(zip(rows, waiting, strict=True)):
        if bad := [name for name, value in zip(LOGGED, row, strict=True) if not np.isfinite(value)]:
            term = bad[min(1, len(bad) - 1)]  # the first is the total
            raise UserError(
                f"the {term} loss is {row[LOGGED.index(term)]} in epoch {progress.epoch}, step "
                f"{progress.step - len(rows) + i}, segments {' '.join(ids)}: stopped; the last "
                "checkpoint is kept; a smaller --learning-rate or --clip may help"
            )
    return rows


@torch.no_grad()
def discriminated(
    logits: dict[str, dict[str, Tensor]], lengths: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Mean D_m(G_m(x_m)), and mean D_m(G_k(x_k)) for k ≠ m, where m and k are there; 0 of none."""
    rows = {m: n.nonzero().squeeze(1) for m, n in lengths.items() if n.any()}
    real, fake = [logits["l"]["l"][:0]], [logits["l"]["l"][:0]]
    for m in rows:
        for k in rows:
            (real if m == k else fake).append(logits[m][k][rows[k]])
    return mean(torch.cat(real).sigmoid()), mean(torch.cat(fake).sigmoid())


@torch.no_grad()
def predict(
    run: Run, segments: data.Segments, config: Config, epoch: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """-> ŷ and y of every segment of a split, in its order: (N,) float32 each

    epoch: of a shuffle of the batches; only for --attention batch does it change ŷ
    """
    run.model.eval()
    batches, predictions = loader(segments, config, epoch), []
    for batch in batches:
        batch = to_device(batch, run.device)
        with precision(config, run.device):
            predictions.append(run.model(batch.inputs, batch.video).prediction.float())
    order = np.concatenate(batches.batch_sampler)
    return torch.cat(predictions).cpu().numpy()[order.argsort()], np.asarray(segments.split.y)


# ── The whole run ─────────────────────────────────────────────────────────────────────────────────


def train(config: Config, folder: Path | None = None, observe=None) -> dict:
    """Train, choose the epoch on valid, read test once -> what results.json holds.

    folder: a run to go on with; without it, a new one. observe(run, config): a dict of numbers to log
    after each epoch. Raises DataError, UserError, or Stopped after Ctrl-C or SIGTERM.
    """
    run = prepare(config)
    folder = folder or new_folder(config)
    describe(run, config, folder)
    forward = distribute(run.model, run.device) if WORLD > 1 else run.model
    optimizer = make_optimizer(run, config)
    synthetic = "synthetic " if config.dataset == "synthetic" else ""
    with Keeper(folder, run, optimizer, config.save_minutes) as keeper:
        progress = keeper.load()
        best = progress.best
        while progress.epoch < config.epochs and progress.epoch - best["epoch"] <= config.patience:
            losses = train_epoch(run, forward, optimizer, config, progress, keeper)
            valid = metrics(*predict(run, run.segments["valid"], config))
            if not math.isfinite(valid["mae"]):
                raise UserError(
                    f"valid MAE is {valid['mae']} after epoch {progress.epoch}: stopped; a smaller "
                    "--learning-rate or --clip may help"
                )
            entry = {"epoch": progress.epoch, "seconds": progress.seconds}
            observed = {"observed": observe(run, config)} if observe else {}
            keeper.log({**entry, "train": losses, "valid": valid, **observed})
            print(epoch_line(progress, losses, valid, synthetic), flush=True)
            if valid["mae"] < best["valid"]["mae"]:
                best = {"epoch": progress.epoch, "valid": valid}
                keeper.keep_weights()
            progress = Progress(epoch=progress.epoch + 1, best=best)
            keeper.save(progress)
        run.model.load_state_dict(load_file(folder / WEIGHTS, device=str(run.device)))
        results = {**best, "dataset": config.dataset, "seed": config.seed}
        if config.test:
            results["test"] = metrics(*predict(run, run.segments["test"], config))
        keeper.finish(results)
    print()
    show(results, folder)
    return results


def show(results: dict, folder: Path):
    """A finished run's metrics beside the paper's row."""
    dataset = results["dataset"]
    prefix = "synthetic " if dataset == "synthetic" else ""
    print(f"{dataset}: epoch {results['epoch']}, the best on {prefix}valid; {folder}")
    print(table(dataset, {prefix + s: results[s] for s in ("valid", "test") if s in results}))


def epoch_line(progress: Progress, losses: dict, valid: dict, synthetic: str) -> str:
    return (
        f"epoch {progress.epoch:2d}  L {losses['total']:6.3f} = task {losses['task']:.3f}"
        f" + α·{losses['adversarial']:.3f} + β·{losses['distance']:.3f}"
        f" + γ·{losses['reconstruction']:.3f}"
        f"  D(real) {losses['d_real']:.2f} D(fake) {losses['d_fake']:.2f}"
        f"  {synthetic}valid MAE {valid['mae']:.3f} Corr {valid['corr']:.3f}"
        f"  {progress.seconds:.0f} s"
    )


# ── Run folders and checkpoints ───────────────────────────────────────────────────────────────────

WEIGHTS, CHECKPOINT = "model.safetensors", "checkpoint.safetensors"


class Stopped(Exception):
    """Ctrl-C or SIGTERM: the checkpoint is written, the message says how to go on."""


def new_folder(config: Config) -> Path:
    """Make the run's folder. A taken name is numbered, or an error if the user typed it."""
    runs, base = Path(config.runs), config.name or f"{config.dataset}-seed{config.seed}"
    names = [base] if config.name else [base, *(f"{base}-{n}" for n in range(2, 1000))]
    made = [f"--name {base}: {runs / base} exists already; choose another name"]
    for name in names if RANK == 0 else ():
        try:
            (runs / name).mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            made = [f"{runs / name} cannot be made: {error.strerror}"]
        else:
            made = [runs / name]
        break
    if WORLD > 1:
        dist.broadcast_object_list(made)
    if isinstance(made[0], str):
        raise UserError(made[0])
    return made[0]


def describe(run: Run, config: Config, folder: Path):
    """What a later --resume, --evaluate or --predict needs beside the weights; no hub, no data."""
    if RANK == 0:
        write_json(folder / "config.json", asdict(config))
        write_json(folder / "standardizer.json", run.standardizer.to_dict())
        run.model.embeddings["l"].bert.config.save_pretrained(folder / "bert")
        run.tokenizer.save_pretrained(folder / "bert")


@contextmanager
def replacing(path: Path):
    """A temporary name to write to; renamed to `path` when it is whole. Raises UserError."""
    beside = path.with_name(path.name + ".tmp")
    try:
        yield beside
        beside.replace(path)
    except (OSError, SafetensorError) as error:
        beside.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written, what was there is kept: {error}") from None


def write_json(path: Path, content: dict):
    with replacing(path) as beside:
        beside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


class Keeper:
    """Writes a run's files, on process 0 alone, each whole or not at all; hears Ctrl-C and SIGTERM.

    Only tensors and JSON are written: to read them back runs no code.
    """

    def __init__(self, folder: Path, run: Run, optimizer, minutes: float):
        self.folder, self.model, self.device = folder, run.model, run.device
        self.optimizer, self.minutes = optimizer, minutes
        self.saved, self.asked = time.monotonic(), False

    def __enter__(self):
        if WORLD == 1:  # many processes would stop at different steps: torchrun ends them all
            self.before = {s: signal.signal(s, self.ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def ask(self, number, _):
        self.asked = True
        signal.signal(number, self.before[number])  # a second one acts at once

    def __exit__(self, *_):
        for number, handler in getattr(self, "before", {}).items():
            signal.signal(number, handler)

    def due(self) -> bool:
        return self.asked or time.monotonic() - self.saved >= 60 * self.minutes

    def save(self, progress: Progress):
        """Write a checkpoint. Raises UserError if it cannot be written, Stopped if it was asked."""
        if RANK == 0:
            tensors = {f"model.{k}": v.contiguous() for k, v in self.model.state_dict().items()}
            for i, state in self.optimizer.state_dict()["state"].items():
                tensors.update({f"optimizer.{i}.{k}": v for k, v in state.items()})
            with replacing(self.folder / CHECKPOINT) as beside:
                save_file(tensors, beside, {"progress": json.dumps(asdict(progress))})
        self.saved = time.monotonic()
        if self.asked:
            raise Stopped(
                f"stopped in epoch {progress.epoch}, step {progress.step}; "
                f"go on with --resume {self.folder}"
            )

    def load(self) -> Progress:
        """Put model and optimiser where the checkpoint left them; without one, the beginning."""
        path, states = self.folder / CHECKPOINT, {}
        if not path.exists():
            return Progress()
        try:
            with safe_open(path, "pt", str(self.device)) as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                progress = Progress(**json.loads(file.metadata()["progress"]))
            for key in [key for key in tensors if key.startswith("optimizer.")]:
                _, i, name = key.split(".")
                states.setdefault(int(i), {})[name] = tensors.pop(key)
            self.model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items()})
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": states, "param_groups": groups})
        except (SafetensorError, OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
            why = data.reason(error)
            raise UserError(f"{path} is damaged, or of another model or data: {why}") from None
        return progress

    def keep_weights(self):
        if RANK == 0:
            weights = {k: v.contiguous() for k, v in self.model.state_dict().items()}
            with replacing(self.folder / WEIGHTS) as beside:
                save_file(weights, beside)

    def log(self, entry: dict):
        """Append to metrics.jsonl; an epoch that is done again after a crash stands there once."""
        path = self.folder / "metrics.jsonl"
        if RANK == 0:
            lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
            with replacing(path) as beside:
                lines = [*lines[: entry["epoch"]], json.dumps(entry)]
                beside.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def finish(self, results: dict):
        if RANK == 0:
            write_json(self.folder / "results.json", results)
            (self.folder / CHECKPOINT).unlink(missing_ok=True)


# ── A finished run ────────────────────────────────────────────────────────────────────────────────


def read_config(folder: Path) -> Config:
    """The configuration of a run. Raises UserError if `folder` is none."""
    try:
        return Config(**json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{folder} is no folder of a run: {error}") from None


def resume(folder: Path, observe=None) -> dict:
    """Go on with a run, or show what it found if it is done -> what results.json holds."""
    config, done = read_config(folder), folder / "results.json"
    if not done.exists():
        return train(config, folder, observe)
    try:
        results = json.loads(done.read_text(encoding="utf-8"))
        show(results, folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{done} is damaged: {data.reason(error)}") from None
    return results


def load_run(folder: Path) -> tuple[Run, Config]:
    """A trained model with its own tokeniser and standardisation, from its folder alone."""
    config, device = read_config(folder), pick_device("auto")
    try:
        model = MSFN.from_run(folder).to(device)
        statistics = json.loads((folder / "standardizer.json").read_text(encoding="utf-8"))
        standardizer = data.Standardizer.from_dict(statistics)
    except (OSError, SafetensorError, RuntimeError, ValueError, KeyError) as error:
        raise UserError(f"{folder} holds no trained model: {data.reason(error)}") from None
    tokenizer = data.load_tokenizer(str(folder / "bert"))
    return Run(model, {}, tokenizer, standardizer, device), config


def width(run: Run, m: str) -> int:
    """d_m, the number of features of a frame of modality a or v that the model was made for."""
    return run.model.embeddings[m].forward_lstm.input_size


def evaluate(folder: Path, path: str | None, labels: str | None = None) -> dict[str, float]:
    """The test split of a file by a trained model: its metrics, and predictions.csv in `folder`.

    predictions.csv: id, text, label, prediction, and the prediction without each modality.
    """
    run, config = load_run(folder)
    corpus = data.load(config.dataset, path or config.data, labels or config.labels)
    for m, d_m in corpus.dims.items():
        if d_m != width(run, m):
            raise UserError(
                f"{path or config.data}: {m} has {d_m} features; {folder} was made for "
                f"{width(run, m)}"
            )
    columns = {}
    for without in ("", *config.modalities):
        kept = config.modalities.replace(without, "")
        segments = data.Segments(corpus["test"], run.tokenizer, run.standardizer, kept)
        name = f"without_{without}" if without else "prediction"
        columns[name], y = predict(run, segments, config)
    texts = corpus["test"].text or [""] * len(y)
    with (
        replacing(folder / "predictions.csv") as beside,
        open(beside, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["id", "text", "label", *columns])
        rows = zip(corpus["test"].ids, texts, y, *columns.values(), strict=True)
        writer.writerows([*row[:2], *(f"{value:.4f}" for value in row[2:])] for row in rows)
    result = {name: metrics(y_hat, y) for name, y_hat in columns.items()}
    print(corpus.description, table(config.dataset, result), folder / "predictions.csv", sep="\n")
    return result["prediction"]


def predict_text(folder: Path, text: str, audio: str | None, vision: str | None) -> float:
    """Sentiment of one segment, from its words and, as .npy files (T, d_m), its audio and vision."""
    run, config = load_run(folder)
    inputs = {}
    for m, path in (("a", audio), ("v", vision)):
        if path and m not in config.modalities:
            raise UserError(f"{path}: {folder} was trained without modality {m}")
        try:
            frames = np.load(path).astype(np.float64) if path else np.zeros((0, width(run, m)))
        except Exception as error:  # numpy raises half a dozen unrelated classes
            why = data.reason(error)
            raise UserError(f"{path} is no array that numpy can read: {why}") from error
        if frames.ndim != 2 or frames.shape[1] != width(run, m):
            raise UserError(f"{path} has shape {frames.shape}, not (T, {width(run, m)})")
        frames = torch.from_numpy(run.standardizer(m, frames))[None].to(run.device)
        inputs[m] = frames, torch.tensor([frames.shape[1]])
    limit = min(run.tokenizer.model_max_length, 512)
    ids = run.tokenizer(text, truncation=True, max_length=limit, return_tensors="pt")["input_ids"]
    ids = ids if "l" in config.modalities else ids[:, :0]
    inputs["l"] = ids.to(run.device), torch.tensor([ids.shape[1]])
    with torch.no_grad(), precision(config, run.device):
        prediction = run.model(inputs).prediction.item()
    print(f"{prediction:+.2f}  (-3 strongly negative, +3 strongly positive)")
    return prediction


# ── The command line ──────────────────────────────────────────────────────────────────────────────


def build_parser() -> argparse.ArgumentParser:
    """Each field of Config is an option, with the paper's symbol where it has one."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    instead = parser.add_argument_group("instead of a new run")
    instead.add_argument("--resume", metavar="RUN", help="go on with a run; takes no other option")
    instead.add_argument("--evaluate", metavar="RUN", help="a trained model on --data's test split")
    instead.add_argument("--predict", nargs=2, metavar=("RUN", "TEXT"), help="one segment")
    instead.add_argument("--audio", metavar="NPY", help="for --predict: its audio, (T, d_a)")
    instead.add_argument("--vision", metavar="NPY", help="for --predict: its vision, (T, d_v)")
    group = {
        title: parser.add_argument_group(title)
        for title in ("this run", "Table 1", "what the paper leaves open")
    }
    own = {f.name for f in fields(MSFNConfig)}
    for spec in fields(Config):
        open_ = "Table 1" if spec.name in TABLE_1["mosi"] else "what the paper leaves open"
        kind = (get_args(spec.type) or (spec.type,))[0]  # float of "float | None"
        group[open_ if spec.name in own else "this run"].add_argument(
            f"--{spec.name.replace('_', '-')}",
            help=spec.metadata["help"] + ("" if spec.default is None else f" ({spec.default})"),
            **(
                {"action": argparse.BooleanOptionalAction}
                if kind is bool
                else {"type": kind, "choices": spec.metadata["choices"] or None}
            ),
        )
    return parser


def configure(typed: dict) -> Config:
    """What was typed, over the preset of its data set. Raises UserError for what cannot be."""
    try:
        return Config.preset(typed.pop("dataset", "mosi"), **typed)
    except ValueError as error:
        raise UserError(str(error)) from None


@contextmanager
def clean_exit():
    """Exit code 2 and one line for what the user can mend, 130 for a run that was stopped."""
    try:
        yield
    except (data.DataError, UserError) as error:
        sys.exit(print(f"error: {error}", file=sys.stderr) or 2)
    except torch.OutOfMemoryError:
        hint = "--amp bf16, or a smaller --batch-size with --grad-accum"
        sys.exit(print(f"error: out of GPU memory: try {hint}", file=sys.stderr) or 2)
    except (Stopped, KeyboardInterrupt) as stop:
        sys.exit(print(str(stop) or "stopped", file=sys.stderr) or 130)


@clean_exit()
def main(argv: list[str] | None = None, observe=None):
    """What was typed: a new run, or what stands instead of one. observe: as `train` takes it."""
    parser = build_parser()
    typed = vars(parser.parse_args(argv))
    takes = {"resume": set(), "evaluate": {"data", "labels"}, "predict": {"audio", "vision"}}
    command = next((name for name in takes if name in typed), None)
    if command is None:
        if stray := set(typed) & takes["predict"]:
            parser.error(f"--{min(stray)} goes with --predict")
        return train(configure(typed), observe=observe)
    target = typed.pop(command)
    if stray := set(typed) - takes[command]:
        parser.error(f"--{command} does not take --{min(stray).replace('_', '-')}")
    if command == "predict":
        folder, text = target
        return predict_text(Path(folder), text, typed.get("audio"), typed.get("vision"))
    if command == "evaluate":
        return evaluate(Path(target), typed.get("data"), typed.get("labels"))
    return resume(Path(target), observe)


if __name__ == "__main__":
    if WORLD > 1:
        if cuda := torch.cuda.is_available():
            torch.cuda.set_device(RANK % torch.cuda.device_count())
        dist.init_process_group("nccl" if cuda else "gloo")
        sys.stdout = sys.stdout if RANK == 0 else None  # print() then says nothing
    main()
