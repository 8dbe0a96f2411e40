"""Train MSFN and print its metrics beside the paper's row.

    python train.py --dataset synthetic                         # no data, no hub, no GPU: a minute
    python train.py --dataset mosi                              # MMSA's file, fetched if need be
    python train.py --dataset mosi --data FILE --bert FOLDER    # your file, your BERT
    torchrun --nproc_per_node=2 -- train.py --dataset mosi      # two GPUs, or two processes
    python train.py --resume runs/NAME                          # go on after Ctrl-C or a crash

The best epoch is chosen on the valid split's MAE alone; the test split is read once, when that epoch
is fixed. Each epoch is a line on the screen and in metrics.jsonl: means over its batches of total,
task, adversarial, distance, reconstruction (L and its terms in Eq. 16, unweighted), of d_real, mean
D_m(G_m(x_m)), and of d_fake, mean D_m(G_k(x_k)), k ≠ m. 1 and 0: the discriminators win.

What is trained is a class: build(config, widths, encoder) with the face of `msfn.MSFN`:
    forward(inputs, video) -> NamedTuple, its first field the prediction
    losses(output, y, lengths) -> NamedTuple, its first field the total, the others logged
    observed(output, lengths) -> more numbers to log
    parameter_groups(), and for many processes embeddings
"""

import plumbing  # isort: skip (first: then Ctrl-C during the other imports is no traceback)
import math
import statistics
import sys
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

import data
from msfn import MODALITIES, MSFN, MSFNConfig, option
from plumbing import UserError, devices, encoders, explained, options, processes
from plumbing.runs import RunFolder, read_json

# ── Configuration: defaults < the data set's preset < what the user typed ─────────────────────────
PRESETS = {  # the defaults are Table 1's column of MOSI; a BERT from scratch wants larger steps
    "mosi": {},
    "mosei": {"d": 256, "alpha": 0.4, "beta": 0.3, "gamma": 0.1, "batch_size": 16},
    "synthetic": {"d": 64, "learning_rate": 1e-3, "bert": encoders.SMALL},
}


@dataclass
class Config(MSFNConfig):
    """All that makes a run. Raises UserError, naming field and value, for what cannot be."""

    dataset: Literal["mosi", "mosei", "synthetic"] = option("mosi", "which data set")
    data: str | None = option(None, "its file or folder; else the one under data/; else fetched")
    labels: str | None = option(None, "CSV with the text of a file that holds none")
    modalities: str = option("avl", "subset of avl; the others become empty sequences")
    bert: str = option("google-bert/bert-base-uncased", "encoder: a folder or a hub name")
    learning_rate: float = option(1e-4, "r: learning rate")
    bert_learning_rate: float | None = option(None, "of BERT's weights; else r, as printed")
    batch_size: int = option(64, "segments in a batch")
    epochs: int = option(30, "epochs at most")
    patience: int = option(8, "stop after so many epochs without a better valid MAE")
    average: float = option(0.0, "evaluate a running mean of the weights; its decay a step")
    clip: float = option(1.0, "largest gradient norm of each side of the game")
    seed: int = option(0, "seed of weights, dropout and batches")
    amp: Literal["auto", "off", "bf16"] = option("auto", "bf16 in the forward pass; auto: on CUDA")
    device: str = option("auto", "cpu, cuda, mps, or the best that is there")
    test: bool = option(True, "read the test split at the end; a search must not")
    runs: str = option("runs", "folder of all runs")
    name: str | None = option(None, "this run's folder in it; else data set and seed, numbered")

    def __post_init__(self):
        options.check(self)
        for name in ("d", "lstm_width", "batch_size", "epochs", "patience"):
            options.demand(self, name, lambda n: n >= 1, "at least 1")
        for name in ("learning_rate", "bert_learning_rate", "clip"):
            options.demand(self, name, lambda r: r > 0, "positive")
        for name in ("alpha", "beta", "gamma", "penalty", "margin"):
            options.demand(self, name, lambda w: w >= 0, "at least 0")
        for name in ("dropout", "average"):
            options.demand(self, name, lambda p: 0 <= p < 1, "at least 0 and below 1")
        options.demand(self, "seed", lambda n: 0 <= n < 2**30, "in 0 … 2**30 − 1")
        options.demand(self, "modalities", lambda m: m and set(m) <= set("avl"), "letters of avl")
        for name in ("data", "labels", "bert"):  # a resumed run finds them from anywhere
            path = getattr(self, name)
            if path not in (None, encoders.SMALL) and Path(path).exists():
                setattr(self, name, str(Path(path).resolve()))


def parse(argv: list[str]) -> tuple[Config | None, str | None]:
    """What was typed: a configuration, or the run to go on with. Exits with code 2 on a typo."""
    return options.parse(Config, PRESETS, "dataset", __doc__, argv)


def read_config(path: Path) -> Config:
    """The configuration of a run's folder. Raises UserError if `path` is none."""
    try:
        return Config(**read_json(path / "config.json"))
    except (UserError, TypeError) as error:  # TypeError: other fields
        raise UserError(f"{path} is no folder of a run: {error}") from None


# ── Metrics ───────────────────────────────────────────────────────────────────────────────────────
COLUMNS = ("acc2_non0", "f1_non0", "acc2_has0", "f1_has0", "mae", "corr", "acc7", "acc5")
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
    if len(y) == 0:
        return dict.fromkeys(COLUMNS, math.nan)
    result = {"mae": np.abs(prediction - y).mean(), "corr": pearson(prediction, y)}
    for name, bound in (("acc7", 3), ("acc5", 2)):
        p, t = (x.clip(-bound, bound).round() for x in (prediction, y))
        result[name] = (p == t).mean()
    there = y != 0
    signs = {"has0": (prediction >= 0, y >= 0), "non0": (prediction[there] > 0, y[there] > 0)}
    for name, (p, t) in signs.items():
        result[f"acc2_{name}"] = (p == t).mean() if len(t) else math.nan
        result[f"f1_{name}"] = weighted_f1(p, t) if len(t) else math.nan
    return {name: float(value) for name, value in result.items()}


def pearson(p: np.ndarray, t: np.ndarray) -> float:
    p, t = p - p.mean(), t - t.mean()
    norm = np.sqrt((p @ p) * (t @ t))
    return (p @ t) / norm if norm > 1e-12 * len(t) else 0.0


def weighted_f1(p: np.ndarray, t: np.ndarray) -> float:
    """F1 of the classes False and True, weighted by how many of each are true. p, t: (N,) bool"""
    f1 = []
    for c in (False, True):
        both = ((p == c) & (t == c)).sum()
        f1.append(2 * both / max((p == c).sum() + (t == c).sum(), 1))
    return np.average(f1, weights=[(~t).sum(), t.sum()])


def table(dataset: str, rows: dict[str, dict[str, float]]) -> str:
    """The metrics as text, one row a name, the paper's row first where it has one."""
    if dataset in PAPER:
        rows = {"paper: MSFN": PAPER[dataset], **rows}
    lines = [f"{'':20}" + "".join(f"{c.replace('_', ' '):>11}" for c in COLUMNS)]
    for name, row in rows.items():
        cells = "".join(f"{number(c, row[c]) if c in row else '–':>11}" for c in COLUMNS)
        lines.append(f"{name:20}" + cells)
    return "\n".join(lines)


def number(column: str, value: float) -> str:
    """A metric as the paper prints it: MAE and Corr with three digits, the others in percent."""
    return f"{value:.3f}" if column in ("mae", "corr") else f"{100 * value:.1f}"


# ── Preparation ───────────────────────────────────────────────────────────────────────────────────
class Run(NamedTuple):
    """What a run works with."""

    model: nn.Module
    encoder: nn.Module  # the pre-trained part of it
    segments: dict[str, data.Segments]  # by split
    tokenizer: PreTrainedTokenizerBase
    standardizer: data.Standardizer
    device: torch.device
    fingerprint: str | None = None  # of the data file


def prepare(config: Config, build=MSFN) -> Run:
    """Data and model of a run. Raises UserError for what the user can mend."""
    device = devices.pick(config.device)
    # A gradient that fades over hundreds of frames ends in numbers that a CPU multiplies 10 x slower.
    torch.set_flush_denormal(True)
    corpus = data.load(config.dataset, config.data, config.labels)
    print(corpus.description)
    config.data = corpus.path  # a resumed run must not find another file
    standardizer = data.Standardizer.fit(corpus["train"])
    torch.manual_seed(config.seed)
    texts = [corpus[split].text for split in data.SPLITS]
    encoder, tokenizer = encoders.pretrained(config.bert, texts)
    segments = {
        split: data.Segments(corpus[split], tokenizer, standardizer, config.modalities)
        for split in data.SPLITS
    }
    model = build(config, corpus.dims, encoder).to(device)
    return Run(model, encoder, segments, tokenizer, standardizer, device, corpus.fingerprint)


def loader(segments: data.Segments, config: Config, epoch: int | None = None) -> DataLoader:
    """Batches of one epoch, shuffled by (seed, epoch); None: unshuffled."""
    seed = None if epoch is None else (config.seed, epoch)
    plan = data.batches(segments.video, config.batch_size, config.attention == "video", seed)
    options = {"collate_fn": segments.collate, "pin_memory": torch.cuda.is_available()}
    return DataLoader(segments, batch_sampler=plan, **options)


def make_optimizer(run: Run, config: Config) -> torch.optim.Adam:
    """Adam for both sides of the game; the encoder may have a learning rate of its own."""
    encoder = {id(p) for p in run.encoder.parameters()}
    slower = {"lr": config.bert_learning_rate or config.learning_rate}
    groups = []
    for group in run.model.parameter_groups():
        slow = [p for p in group["params"] if id(p) in encoder]
        rest = [p for p in group["params"] if id(p) not in encoder]
        groups += [{**group, "params": rest}, {**group, "params": slow, **slower}]
    return torch.optim.Adam(groups, config.learning_rate, fused=run.device.type in ("cpu", "cuda"))


# ── A step, an epoch ──────────────────────────────────────────────────────────────────────────────
def train_step(run: Run, forward, optimizer, config: Config, batch: data.Batch) -> dict:
    """One batch: forward, backward, and a step of each side -> its losses and what was observed."""
    lengths = {m: batch.inputs[m][1] for m in MODALITIES}  # on the CPU, where they are looked at
    batch = batch.to(run.device)
    with devices.autocast(config.amp, run.device):
        output = forward(batch.inputs, batch.video)
    output = devices.float32(output)
    losses = run.model.losses(output, batch.y, lengths)
    losses[0].backward()
    for ascends in (False, True):
        side = [g["params"] for g in optimizer.param_groups if g["maximize"] == ascends]
        clip_grad_norm_([p for group in side for p in group], config.clip)
    optimizer.step()
    optimizer.zero_grad()
    logged = losses._asdict() | run.model.observed(output, lengths)
    return {name: value.detach() for name, value in logged.items()}


def train_epoch(run: Run, forward, optimizer, config: Config, epoch: int) -> dict[str, float]:
    """-> the mean over its batches of each number logged.

    All randomness comes from (seed, epoch), so that a resumed run draws the same. Raises UserError,
    naming term and segments, when a loss is no longer finite.
    """
    run.model.train()
    torch.manual_seed(config.seed * 1_000_003 + epoch)
    batches = loader(run.segments["train"], config, epoch)
    logged = defaultdict(list)
    for batch in tqdm(batches, f"epoch {epoch}", leave=False, disable=processes.RANK > 0 or None):
        for name, value in train_step(run, forward, optimizer, config, batch).items():
            logged[name].append(value)
    logged = {name: torch.stack(values).cpu().tolist() for name, values in logged.items()}
    for name in [*list(logged)[1:], *list(logged)[:1]]:  # terms say more than their total
        for value, rows in zip(logged[name], batches.batch_sampler, strict=False):
            if not math.isfinite(value):
                ids = " ".join(run.segments["train"].split.ids[i] for i in rows)
                raise UserError(
                    f"{name} is {value} in epoch {epoch}, segments {ids}: stopped, the last "
                    "checkpoint is kept; a smaller --learning-rate may help"
                )
    return {name: statistics.fmean(values) for name, values in logged.items()}


@torch.no_grad()
def predict(run: Run, segments: data.Segments, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """-> ŷ and y of every segment of a split, in its order: (N,) float32 each"""
    run.model.eval()
    batches, predictions = loader(segments, config), []
    for batch in batches:
        batch = batch.to(run.device)
        with devices.autocast(config.amp, run.device):
            predictions.append(run.model(batch.inputs, batch.video)[0].float())
    order = np.concatenate(batches.batch_sampler)
    return torch.cat(predictions).cpu().numpy()[order.argsort()], np.asarray(segments.split.y)


# ── The whole run ─────────────────────────────────────────────────────────────────────────────────
def train(config: Config, folder: RunFolder | None = None, build=MSFN, observe=None) -> dict:
    """Train, choose the epoch on valid, read test once -> what results.json holds.

    folder: a run to go on with; without it, a new one. build: the class to train. observe(run,
    config): a dict of numbers to log after each epoch. Raises UserError.
    """
    run = prepare(config, build)
    if folder is None:
        folder = RunFolder.create(config.runs, config.name, f"{config.dataset}-seed{config.seed}")
        saved = run.standardizer.to_dict(), run.encoder.config, run.tokenizer
        folder.describe(asdict(config), *saved)
    optimizer = make_optimizer(run, config)
    shown, kept = run, nn.ModuleList([run.model])  # what is evaluated; what a checkpoint holds
    if config.average:
        average = AveragedModel(run.model, multi_avg_fn=get_ema_multi_avg_fn(config.average))
        optimizer.register_step_post_hook(lambda *_: average.update_parameters(run.model))
        shown = run._replace(model=average.module)
        kept.append(average)
    forward = processes.distribute(run.model, run.device)
    best = {"epoch": -1, "valid": dict.fromkeys(COLUMNS, math.inf)}
    start = {"epoch": 0, "best": best, "data": run.fingerprint}
    progress = folder.load_checkpoint(kept, optimizer, start)
    if progress["data"] != run.fingerprint:
        raise UserError(f"{config.data} is no longer the file that {folder.path} was begun with")
    epoch, best = progress["epoch"], progress["best"]
    while epoch < config.epochs and epoch - best["epoch"] <= config.patience:
        begun = time.perf_counter()
        losses = train_epoch(run, forward, optimizer, config, epoch)
        valid = metrics(*predict(shown, run.segments["valid"], config))
        if not math.isfinite(valid["mae"]):
            raise UserError(f"valid MAE is {valid['mae']} after epoch {epoch}: stopped")
        seconds = time.perf_counter() - begun
        entry = {"epoch": epoch, "seconds": seconds, "train": losses, "valid": valid}
        if observe:
            entry["observed"] = observe(shown, config)
        folder.log(entry)
        if valid["mae"] < best["valid"]["mae"]:
            best = {"epoch": epoch, "valid": valid}
            folder.keep_weights(shown.model)
        epoch += 1
        progress = {**start, "epoch": epoch, "best": best}
        folder.save_checkpoint(kept, optimizer, progress)
        print(epoch_line(config, entry), flush=True)  # last: a console can fail
    folder.load_weights(run.model)
    results = {**best, "dataset": config.dataset, "seed": config.seed}
    if config.test:
        results["test"] = metrics(*predict(run, run.segments["test"], config))
    folder.finish(results)
    show(results, folder)
    return results


def epoch_line(config: Config, entry: dict) -> str:
    terms = "  ".join(f"{name} {value:.3f}" for name, value in entry["train"].items())
    valid = f"valid MAE {entry['valid']['mae']:.3f} Corr {entry['valid']['corr']:.3f}"
    return f"epoch {entry['epoch']:2d}  {terms}  {config.dataset} {valid}  {entry['seconds']:.0f} s"


def show(results: dict, folder: RunFolder):
    """A finished run's metrics beside the paper's row."""
    dataset = results["dataset"]
    print(f"\n{dataset}: epoch {results['epoch']}, the best on valid; {folder.path}")
    print(table(dataset, {f"{dataset} {s}": results[s] for s in data.SPLITS if s in results}))


def main(argv: list[str], build=MSFN, observe=None):
    """A new run, or one that goes on; one that is finished is shown."""
    processes.start()
    config, resumed = parse(argv)
    if resumed is None:
        return train(config, None, build, observe)
    config, folder = read_config(Path(resumed)), RunFolder(resumed)
    if not folder.results.exists():
        return train(config, folder, build, observe)
    with explained(f"{folder.results} is damaged"):
        show(read_json(folder.results), folder)


if __name__ == "__main__":
    sys.exit(plumbing.run(main, sys.argv[1:]))
