"""Train MSFN and print its metrics beside the paper's row.

    python train.py --dataset synthetic                         # no data, no hub, no GPU: a minute
    python train.py --dataset mosi                              # fetches MMSA's file if need be
    python train.py --dataset mosi --data FILE --bert FOLDER    # your file, your BERT
    torchrun --nproc_per_node=2 -- train.py --dataset mosi      # two GPUs, or two processes
    python train.py --resume runs/synthetic-seed0               # after Ctrl-C or a crash

The valid split's MAE alone chooses the epoch; the test split is read once, after that. After each
epoch a line on the screen and in metrics.jsonl shows means over its batches: total, task,
adversarial, distance, reconstruction (L and its terms in Eq. 16, unweighted), d_real, the mean of
D_m(G_m(x_m)), and d_fake, the mean of D_m(G_k(x_k)), k ≠ m.
"""

import math
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

import data
import plumbing
from msfn import MSFN, BERTs, LSTMs, MSFNConfig, present
from plumbing import UserError, devices, encoders, explained, options, processes
from plumbing.options import option
from plumbing.runs import RunFolder, read_json

# ── Configuration: defaults < the data set's preset < what the user chose ─────────────────────────
PRESETS = {  # the defaults are Table 1's MOSI column; a BERT from scratch wants larger steps
    "mosi": {},
    "mosei": {"d": 256, "alpha": 0.4, "beta": 0.3, "gamma": 0.1, "batch_size": 16},
    "synthetic": {"d": 64, "learning_rate": 1e-3, "bert": encoders.SMALL},
}


@dataclass(init=False)
class Config(MSFNConfig):
    """Everything that defines a run: Config(dataset="mosei", seed=1) has MOSEI's preset.

    Raises UserError for a value that cannot be, TypeError for an unknown field.
    """

    dataset: Literal["mosi", "mosei", "synthetic"] = option("mosi", "which data set")
    data: str | None = option(None, "its file or folder; else the one under data/; else fetched")
    labels: str | None = option(None, "CSV with the text of a file that holds none")
    modalities: str = option("avl", "subset of avl; the others become empty sequences")
    bert: str = option("google-bert/bert-base-uncased", "encoder: a folder or a hub name")
    pooling: Literal["mean", "cls"] = option("mean", "Eq. 3: one vector of BERT's last layer")
    lstm_width: int = option(64, "Eqs. 1, 2: width of each direction of the Bi-LSTM")
    learning_rate: float = option(1e-4, "r: learning rate")
    bert_learning_rate: float | None = option(None, "of BERT's weights; else r, as printed")
    batch_size: int = option(64, "segments in a batch")
    epochs: int = option(30, "epochs at most")
    patience: int = option(8, "stop after so many epochs without a better valid MAE")
    clip: float = option(1.0, "largest gradient norm of each side of the game")
    seed: int = option(0, "seed of weights, dropout and batches")
    amp: Literal["auto", "off", "bf16"] = option("auto", "bf16 in the forward pass; auto: on CUDA")
    device: str = option("auto", "cpu, cuda, mps, or the best that is there")
    test: bool = option(True, "read the test split at the end; a search must not")
    runs: str = option("runs", "folder of all runs")
    name: str | None = option(None, "this run's folder in it; else data set and seed, numbered")

    def __init__(self, **chosen):
        defaults = {field.name: field.default for field in fields(self)}
        preset = PRESETS.get(chosen.get("dataset", defaults["dataset"]), {})
        if unknown := chosen.keys() - defaults:
            raise TypeError(f"there is no option {', '.join(sorted(unknown))}")
        vars(self).update(defaults | preset | chosen)
        options.check(self)
        for name in ("d", "lstm_width", "batch_size", "epochs", "patience"):
            options.demand(self, name, lambda n: n >= 1, "at least 1")
        for name in ("learning_rate", "bert_learning_rate", "clip"):
            options.demand(self, name, lambda r: r > 0, "positive")
        for name in ("alpha", "beta", "gamma", "margin"):
            options.demand(self, name, lambda w: w >= 0, "at least 0")
        options.demand(self, "dropout", lambda p: 0 <= p < 1, "at least 0 and below 1")
        options.demand(self, "seed", lambda n: 0 <= n < 2**30, "in 0 … 2**30 − 1")
        options.demand(self, "modalities", lambda m: m and set(m) <= set("avl"), "letters of avl")
        for name in ("data", "labels", "bert"):  # absolute, so that a run resumes from any folder
            path = getattr(self, name)
            if path not in (None, encoders.SMALL) and Path(path).exists():
                setattr(self, name, str(Path(path).resolve()))


def parse(argv: list[str]) -> tuple[Config | None, str | None]:
    """What was typed: a configuration, or the run to resume. Exits with code 2 on a typo."""
    return options.parse(Config, PRESETS, "dataset", __doc__, argv)


def read_config(path: Path) -> Config:
    """The configuration of a run's folder. Raises UserError if `path` is not one."""
    try:
        return Config(**read_json(path / "config.json"))
    except (UserError, TypeError) as error:  # TypeError: other fields
        raise UserError(f"{path} is not the folder of a run: {error}") from None


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
class Trainable(Protocol):
    """What this file asks of a model, which is an nn.Module: MSFN, or what a `build` returns."""

    embeddings: (
        nn.ModuleDict
    )  # torchrun's processes share the work of these: see plumbing.processes

    def __call__(self, inputs: dict, video: Tensor) -> NamedTuple:
        """-> a NamedTuple with `prediction`, (B,), and what `losses` needs"""

    def losses(self, output: NamedTuple, y: Tensor) -> NamedTuple:
        """-> a NamedTuple of () tensors: `total`, which is minimized, and terms to log"""

    def parameter_groups(self) -> list[dict]:
        """Adam's groups, with maximize=True for the other side of a game"""


Build = Callable[[Config, dict[str, int], nn.Module], Trainable]


def build_msfn(config: Config, widths: dict[str, int], encoder: nn.Module) -> MSFN:
    """MSFN over audio, vision and language. widths: {"a": d_a, "v": d_v}, columns of a frame"""
    c = config
    embeddings = {m: LSTMs(widths[m], c.d, c.lstm_width, c.dropout) for m in data.FRAMES}
    return MSFN(c, {**embeddings, "l": BERTs(encoder, c.d, c.pooling, c.dropout)})


@dataclass
class Session:
    """What a run works with."""

    config: Config
    model: Trainable
    encoder: nn.Module  # the pre-trained part of the model
    tokenizer: PreTrainedTokenizerBase
    standardizer: data.Standardizer
    segments: dict[str, data.Segments]  # by split
    corpus: data.Corpus
    device: torch.device
    forward: Callable  # the model, its embeddings shared among processes
    optimizer: torch.optim.Optimizer


def prepare(config: Config, build: Build = build_msfn) -> Session:
    """Load the data, build the model. Raises UserError for what the user can fix."""
    device = devices.pick(config.device)
    corpus = data.load(config.dataset, config.data, config.labels)
    print(corpus.description)
    standardizer = data.Standardizer.fit(corpus["train"])
    torch.manual_seed(config.seed)
    texts = [corpus[split].text for split in data.SPLITS]
    encoder, tokenizer = encoders.pretrained(config.bert, texts)
    segments = {
        split: data.Segments(corpus[split], tokenizer, standardizer, config.modalities)
        for split in data.SPLITS
    }
    model = build(config, corpus.dims, encoder).to(device)
    forward = processes.distribute(model, device)
    optimizer = make_optimizer(config, model, encoder, device)
    return Session(
        config,
        model,
        encoder,
        tokenizer,
        standardizer,
        segments,
        corpus,
        device,
        forward,
        optimizer,
    )


def loader(segments: data.Segments, config: Config, epoch: int | None = None) -> DataLoader:
    """The batches of an epoch, shuffled by (seed, epoch); without an epoch, in order."""
    seed = None if epoch is None else (config.seed, epoch)
    plan = data.batches(segments.video, config.batch_size, config.attention == "video", seed)
    pinned = torch.cuda.is_available()
    return DataLoader(segments, batch_sampler=plan, collate_fn=segments.collate, pin_memory=pinned)


def make_optimizer(
    config: Config, model: Trainable, encoder: nn.Module, device: torch.device
) -> torch.optim.Adam:
    """Adam for both sides of the game; the encoder may have a learning rate of its own."""
    of_encoder = {id(p) for p in encoder.parameters()}
    groups = []
    for group in model.parameter_groups():
        slow = [p for p in group["params"] if id(p) in of_encoder]
        rest = [p for p in group["params"] if id(p) not in of_encoder]
        rate = config.bert_learning_rate or config.learning_rate
        groups += [{**group, "params": rest}, {**group, "params": slow, "lr": rate}]
    return torch.optim.Adam(groups, config.learning_rate, fused=device.type in ("cpu", "cuda"))


# ── A step, an epoch ──────────────────────────────────────────────────────────────────────────────
def train_step(session: Session, batch: data.Batch) -> dict[str, Tensor]:
    """One batch: forward, backward, and a step of each side -> the numbers to log."""
    batch = batch.to(session.device)
    with devices.autocast(session.config.amp, session.device):
        output = session.forward(batch.inputs, batch.video)
    output = devices.float32(output)
    losses = session.model.losses(output, batch.y)
    losses.total.backward()
    groups = session.optimizer.param_groups
    for ascends in (False, True):
        side = [p for group in groups if group["maximize"] == ascends for p in group["params"]]
        clip_grad_norm_(side, session.config.clip)
    session.optimizer.step()
    session.optimizer.zero_grad()
    logged = losses._asdict() | discriminator_means(output)
    return {name: value.detach() for name, value in logged.items()}


def discriminator_means(output: NamedTuple) -> dict[str, Tensor]:
    """The means of D_m(G_m(x_m)) and of D_m(G_k(x_k)), k ≠ m; {} without a game of two modalities."""
    logits = {
        m: present(z, output.rows)
        for m, z in getattr(output, "logits", {}).items()
        if len(output.rows[m]) > 0
    }
    if len(logits) < 2:
        return {}
    real = torch.cat([logits[m][m] for m in logits]).sigmoid().mean()
    fake = torch.cat([logits[m][k] for m in logits for k in logits if k != m]).sigmoid().mean()
    return {"d_real": real, "d_fake": fake}


@devices.flush_denormals()
def train_epoch(session: Session, epoch: int) -> dict[str, float]:
    """-> the mean over the batches of each number that `train_step` logs.

    All randomness comes from (seed, epoch), so that a resumed run draws the same numbers. Raises
    UserError, naming the term and the segments, if a loss is not finite.
    """
    train_segments = session.segments["train"]
    session.model.train()
    torch.manual_seed(session.config.seed * 1_000_003 + epoch)
    batches = loader(train_segments, session.config, epoch)
    logged = defaultdict(list)
    for batch in tqdm(batches, f"epoch {epoch}", leave=False, disable=processes.RANK > 0 or None):
        for name, value in train_step(session, batch).items():
            logged[name].append(value)
    logged = {name: torch.stack(values).cpu().tolist() for name, values in logged.items()}
    for name in sorted(logged, key=lambda name: name == "total"):  # the terms say more than L
        for value, rows in zip(logged[name], batches.batch_sampler, strict=True):
            if not math.isfinite(value):
                ids = " ".join(train_segments.split.ids[i] for i in rows)
                raise UserError(
                    f"{name} is {value} in epoch {epoch}, segments {ids}: stopped, the last "
                    "checkpoint is kept; a smaller --learning-rate may help"
                )
    return {name: statistics.fmean(values) for name, values in logged.items()}


@torch.no_grad()
@devices.flush_denormals()
def predict(session: Session, segments: data.Segments) -> tuple[np.ndarray, np.ndarray]:
    """-> ŷ and y of every segment of a split, in its order: (N,) float32 each"""
    session.model.eval()
    batches, predictions = loader(segments, session.config), []
    for batch in batches:
        batch = batch.to(session.device)
        with devices.autocast(session.config.amp, session.device):
            predictions.append(session.model(batch.inputs, batch.video).prediction.float())
    order = np.concatenate(batches.batch_sampler)
    return torch.cat(predictions).cpu().numpy()[order.argsort()], np.asarray(segments.split.y)


# ── The whole run ─────────────────────────────────────────────────────────────────────────────────
def train(
    config: Config,
    folder: RunFolder | None = None,
    build: Build = build_msfn,
    observe: Callable[[Session], dict] | None = None,
) -> dict:
    """Train, choose the epoch on valid, read test once -> the content of results.json.

    folder: the run to resume; None: a new one. build: makes the model. observe: its numbers are
    logged after each epoch. Raises UserError.
    """
    session = prepare(config, build)
    fingerprint = session.corpus.fingerprint
    if folder is None:
        folder = RunFolder.create(config.runs, config.name, f"{config.dataset}-seed{config.seed}")
        saved = asdict(config) | {"data": session.corpus.path}  # a resumed run reads the same file
        folder.describe(
            saved, session.standardizer.to_dict(), session.encoder.config, session.tokenizer
        )
    best = {"epoch": -1, "valid": dict.fromkeys(COLUMNS, math.inf)}
    start = {"epoch": 0, "best": best, "data": fingerprint}
    progress = folder.load_checkpoint(session.model, session.optimizer, start)
    if progress["data"] != fingerprint:
        raise UserError(f"{session.corpus.path} is not the file that {folder.path} was begun with")
    epoch, best = progress["epoch"], progress["best"]
    while epoch < config.epochs and epoch - best["epoch"] <= config.patience:
        began = time.perf_counter()
        losses = train_epoch(session, epoch)
        valid = metrics(*predict(session, session.segments["valid"]))
        if not math.isfinite(valid["mae"]):
            raise UserError(f"valid MAE is {valid['mae']} after epoch {epoch}: stopped")
        seconds = time.perf_counter() - began
        entry = {"epoch": epoch, "seconds": seconds, "train": losses, "valid": valid}
        if observe:
            entry["observed"] = observe(session)
        folder.log(entry)
        if valid["mae"] < best["valid"]["mae"]:
            best = {"epoch": epoch, "valid": valid}
            folder.keep_weights(session.model)
        epoch += 1
        progress = {**start, "epoch": epoch, "best": best}
        folder.save_checkpoint(session.model, session.optimizer, progress)
        print(epoch_line(config, entry), flush=True)  # last, since a console can fail
    folder.load_weights(session.model)
    results = {**best, "dataset": config.dataset, "seed": config.seed}
    if config.test:
        results["test"] = metrics(*predict(session, session.segments["test"]))
    folder.finish(results)
    show(results, folder)
    return results


def epoch_line(config: Config, entry: dict) -> str:
    terms = "  ".join(f"{name} {value:.3f}" for name, value in entry["train"].items())
    valid = f"valid MAE {entry['valid']['mae']:.3f} Corr {entry['valid']['corr']:.3f}"
    return f"epoch {entry['epoch']:2d}  {terms}  {config.dataset} {valid}  {entry['seconds']:.0f} s"


def show(results: dict, folder: RunFolder):
    """Print a finished run's metrics beside the paper's row."""
    dataset = results["dataset"]
    print(f"\n{dataset}: epoch {results['epoch']}, the best on valid; {folder.path}")
    print(table(dataset, {f"{dataset} {s}": results[s] for s in data.SPLITS if s in results}))


def main(argv: list[str], build: Build = build_msfn, observe: Callable | None = None):
    """Start a run, or resume one, or show one that is finished."""
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
