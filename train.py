"""Train MSFN and print its metrics beside the paper's row.

    python train.py --dataset synthetic                         # no data, no hub, no GPU: 30 s
    python train.py --dataset mosi                              # fetches MMSA's file if need be
    python train.py --dataset mosi --data FILE --bert FOLDER    # your file, your BERT
    torchrun --nproc_per_node=2 -- train.py --dataset mosi      # two GPUs, or two processes
    python train.py --resume runs/synthetic-seed0               # after Ctrl-C or a crash

The valid split's MAE alone chooses the epoch; the test split is evaluated once, after that. Each
epoch has a line on the screen and in metrics.jsonl: means over the batches of L (total) and of its
unweighted terms, of D_m(G_m(x_m)) (d_real) and of D_m(G_k(x_k)), k ≠ m (d_fake); valid metrics.
"""

import math
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader
from tqdm import tqdm

import data
import plumbing
from msfn import MSFN, BERTs, LSTMs, MSFNConfig
from plumbing import UserError, devices, encoders, explained, options, processes
from plumbing.metrics import COLUMNS, epoch_line, metrics, print_results
from plumbing.runs import RunFolder, read_json

# ── Configuration: defaults < the data set's preset < what the user chose ─────────────────────────
PRESETS = {  # the defaults are Table 1's MOSI column; an untrained BERT needs larger steps
    "mosi": {},
    "mosei": {"d": 256, "alpha": 0.4, "beta": 0.3, "gamma": 0.1, "batch_size": 16},
    "synthetic": {"d": 64, "learning_rate": 1e-3, "bert": encoders.SMALL},
}
GROUPS = {  # of --help, which shows the comment beside each field
    "data": "dataset data labels modalities",
    "model": "d bert pooling lstm_width dropout attention reduction",
    "losses": "alpha beta gamma adversarial triplet_features margin classes detach_target",
    "training": "learning_rate bert_learning_rate batch_size epochs patience clip seed amp device",
    "run": "test runs name",
}
RANGES = {
    "at least 1": (lambda n: n >= 1, "d lstm_width batch_size epochs patience"),
    "positive": (lambda r: r > 0, "learning_rate bert_learning_rate clip"),
    "at least 0": (lambda w: w >= 0, "alpha beta gamma margin"),
    "at least 0 and below 1": (lambda p: 0 <= p < 1, "dropout"),
    "in 0 … 2**30 − 1": (lambda n: 0 <= n < 2**30, "seed"),
    "letters of avl": (lambda m: set(m) <= set("avl"), "modalities"),
}


@dataclass(init=False)
class Config(MSFNConfig):
    """Everything that defines a run: Config(dataset="mosei", seed=1) has MOSEI's preset.

    Raises UserError for an illegal value (instead of MSFNConfig's ValueError), TypeError for an
    unknown field.
    """

    dataset: Literal["mosi", "mosei", "synthetic"] = "mosi"  # it also sets defaults
    data: str | None = None  # its file or folder; otherwise the one under data/, or else fetched
    labels: str | None = None  # CSV with the texts, for a file without them
    modalities: str = "avl"  # a subset of avl; the others become empty sequences
    bert: str = "google-bert/bert-base-uncased"  # encoder: a folder, a name on the hub, or small
    pooling: Literal["mean", "cls"] = "mean"  # Eq. 3: the mean over the tokens, or the first token
    lstm_width: int = 64  # Eqs. 1, 2: width of each direction of the Bi-LSTM
    learning_rate: float = 1e-4  # Table 1's r: learning rate
    bert_learning_rate: float | None = None  # learning rate of the encoder; otherwise r, as printed
    batch_size: int = 64  # segments in a batch at most; a longer video is a batch alone
    epochs: int = 30  # epochs at most
    patience: int = 8  # stop after this many epochs without a better valid MAE
    clip: float = 1.0  # largest gradient norm of each side of the game
    seed: int = 0  # seeds weights, dropout and batches
    amp: Literal["auto", "off", "bf16"] = "auto"  # forward pass; auto: bf16 on a GPU that has it
    device: str = "auto"  # cpu, cuda, mps, or auto: an accelerator if there is one
    test: bool = True  # evaluate the test split; turn off in a search for hyper-parameters
    runs: str = "runs"  # folder of all runs
    name: str | None = None  # folder of this run in it; otherwise data set and seed, numbered

    def __init__(self, **chosen):
        defaults = {field.name: field.default for field in fields(self)}
        if unknown := chosen.keys() - defaults:
            raise TypeError(f"there is no option {', '.join(sorted(unknown))}")
        preset = PRESETS.get(str(chosen.get("dataset", self.dataset)), {})
        vars(self).update(defaults | preset | chosen)
        options.check(self, RANGES)
        for name in ("data", "labels", "bert"):  # absolute, so that a run resumes from any folder
            path = getattr(self, name)
            if path not in (None, encoders.SMALL) and os.path.exists(path):
                setattr(self, name, os.path.abspath(path))


def parse(argv: list[str]) -> dict[str, Any]:
    """What was typed, by field; "resume" is RUN of --resume. Exits with code 2 after a typo."""
    return options.parse(Config, argv, __doc__, PRESETS, GROUPS)


def read_config(path: Path, changes: dict | None = None) -> Config:
    """The configuration of a run's folder, with changes. Raises UserError if `path` is not one."""
    try:
        saved = vars(Config(**read_json(path / "config.json")))
    except (UserError, TypeError) as error:  # TypeError: other fields
        raise UserError(f"{path} is not the folder of a run: {error}") from None
    return Config(**saved | (changes or {}))  # a bad change is not blamed on the folder


# ── Preparation ───────────────────────────────────────────────────────────────────────────────────
class Trainable(Protocol):
    """The interface that `build` must return, such as an MSFN: an nn.Module with these."""

    embeddings: nn.ModuleDict  # torchrun's processes divide their work

    def __call__(self, inputs: dict, video: Tensor) -> NamedTuple: ...  # its prediction: (B,)

    def losses(self, output: NamedTuple, y: Tensor) -> NamedTuple: ...  # its total is minimized

    def parameter_groups(self) -> list[dict]: ...  # of an optimizer


Build = Callable[[Config, dict[str, int], nn.Module], Trainable]


def build_msfn(config: Config, widths: dict, encoder: nn.Module, kind: Callable = MSFN) -> MSFN:
    """MSFN, or a subclass, over audio, vision and language. widths: {m: columns of a frame}"""
    c = config
    embeddings = {m: LSTMs(widths[m], c.d, c.lstm_width, c.dropout) for m in data.FRAMES}
    return kind(c, {**embeddings, "l": BERTs(encoder, c.d, c.pooling, c.dropout)})


class Session:
    """Data, model and optimizer of a run. Raises UserError for what the user can fix.

    build: makes the model. folder: the run to resume; its checkpoint holds the encoder's weights
    loaders: has `pretrained` and `rebuild`, as plumbing.encoders does
    corpus: the data; None: what the configuration names
    """

    def __init__(
        self,
        config: Config,
        build: Build = build_msfn,
        folder: RunFolder | None = None,
        loaders: Any = encoders,
        corpus: data.Corpus | None = None,
    ):
        self.config, self.device = config, devices.pick(config.device)
        self.corpus = corpus or data.load(config.dataset, config.data, config.labels)
        print(self.corpus.description)
        self.standardizer = data.Standardizer.fit(self.corpus["train"])
        torch.manual_seed(config.seed)
        if folder and folder.checkpoint.exists():
            loaded = loaders.rebuild(str(folder.encoder), self.device, config.amp)
        else:
            texts = [self.corpus[split].text for split in data.SPLITS]
            loaded = loaders.pretrained(config.bert, texts, self.device, config.amp, config.pooling)
        self.encoder, self.tokenizer = loaded
        preparation = self.tokenizer, self.standardizer, config.modalities
        self.segments = {s: data.Segments(self.corpus[s], *preparation) for s in data.SPLITS}
        self.model: Trainable = build(config, self.corpus.widths, self.encoder).to(self.device)
        self.forward = processes.distribute(self.model, self.device)
        self.optimizer = self.adam()

    def adam(self) -> torch.optim.Adam:
        """Adam (the paper names no optimizer) for both sides; the encoder may have its own rate."""
        rate, encoder = self.config.learning_rate, {id(p) for p in self.encoder.parameters()}
        groups = []
        for group in self.model.parameter_groups():
            bert = [p for p in group["params"] if id(p) in encoder]
            rest = [p for p in group["params"] if id(p) not in encoder]
            bert_group = {"params": bert, "lr": self.config.bert_learning_rate or rate}
            groups += [{**group, "params": rest}, {**group, **bert_group}]
        return torch.optim.Adam(groups, rate, fused=self.device.type in ("cpu", "cuda"))


def loader(segments: data.Segments, config: Config, epoch: int | None = None) -> DataLoader:
    """The batches of an epoch, shuffled by (seed, epoch); without an epoch, unshuffled."""
    seed = None if epoch is None else (config.seed, epoch)
    plan = data.batches(segments.video, config.batch_size, config.attention == "video", seed)
    pinned = torch.cuda.is_available()
    return DataLoader(segments, batch_sampler=plan, collate_fn=segments.collate, pin_memory=pinned)


# ── A step, an epoch ──────────────────────────────────────────────────────────────────────────────
def train_step(session: Session, batch: data.Batch) -> dict[str, Tensor]:
    """Forward, backward, and one step of both sides of the game -> the numbers to log."""
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
    """The means of D_m(G_m(x_m)) and of D_m(G_k(x_k)), k ≠ m.

    {} for fewer than two modalities, and for a model without discriminators
    """
    logits = getattr(output, "logits", {})
    names = [m for m in logits if len(output.rows[m]) > 0]
    if len(names) < 2:
        return {}
    rows = output.rows
    real = torch.cat([logits[m][m][rows[m]] for m in names])
    fake = torch.cat([logits[m][k][rows[k]] for m in names for k in names if k != m])
    return {"d_real": real.sigmoid().mean(), "d_fake": fake.sigmoid().mean()}


def train_epoch(session: Session, epoch: int) -> dict[str, float]:
    """-> the mean over the batches of each number that `train_step` logs.

    All randomness comes from (seed, epoch), so that a resumed run draws the same numbers. If a
    number was not finite, raises UserError that names it and the segments of the first such batch.
    """
    session.model.train()
    torch.manual_seed(session.config.seed * 1_000_003 + epoch)
    batches = loader(session.segments["train"], session.config, epoch)
    logged = defaultdict(list)
    for batch in tqdm(batches, f"epoch {epoch}", leave=False, disable=processes.rank() > 0 or None):
        for name, value in train_step(session, batch).items():
            logged[name].append(value)
    logged = {name: torch.stack(values).cpu() for name, values in logged.items()}
    for k, rows in enumerate(batches.batch_sampler):
        if broken := [name for name in logged if not logged[name][k].isfinite()]:
            ids = " ".join(session.segments["train"].split.ids[i] for i in rows)
            raise UserError(
                f"{', '.join(broken)} not finite in epoch {epoch}, segments {ids}: stopped, the "
                "last checkpoint is kept; a smaller --learning-rate may help"
            )
    return {name: statistics.fmean(values.tolist()) for name, values in logged.items()}


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
@devices.flush_denormals()
def train(
    config: Config,
    folder: RunFolder | None = None,
    build: Build = build_msfn,
    observe: Callable[[Session], dict[str, float]] | None = None,
    loaders: Any = encoders,
    corpus: data.Corpus | None = None,
) -> dict:
    """Train, choose the epoch on valid, read test once -> the content of results.json.

    folder: the run to resume; None: a new one. observe: its numbers are logged after each epoch.
    build, loaders, corpus: see Session. Raises UserError.
    """
    run_began = time.perf_counter()
    session = Session(config, build, folder, loaders, corpus)
    name = session.corpus.name
    if folder is None:
        folder = RunFolder.create(config.runs, config.name, f"{name}-seed{config.seed}")
    print(summary(session), flush=True)
    best = {"epoch": -1, "valid": dict.fromkeys(COLUMNS, math.inf)}
    fresh = {"epoch": 0, "best": best, "data": session.corpus.fingerprint}
    progress = folder.load_checkpoint(session.model, session.optimizer, fresh)
    folder.write_config(asdict(config) | {"data": session.corpus.path})  # with --resume's changes
    if not folder.checkpoint.exists():
        folder.describe(session.standardizer.to_dict(), session.encoder.config, session.tokenizer)
    best = progress["best"]
    for epoch in range(progress["epoch"], config.epochs):
        if epoch - best["epoch"] > config.patience:
            break
        epoch_began = time.perf_counter()
        losses = train_epoch(session, epoch)
        valid = metrics(*predict(session, session.segments["valid"]))
        if not math.isfinite(valid["mae"]):
            raise UserError(f"valid MAE is {valid['mae']} after epoch {epoch}: stopped")
        seconds = time.perf_counter() - epoch_began
        entry = {"epoch": epoch, "seconds": seconds, "train": losses, "valid": valid}
        if observe:
            entry["observed"] = observe(session)
        folder.log(entry)
        if valid["mae"] < best["valid"]["mae"]:
            best = {"epoch": epoch, "valid": valid}
            folder.keep_weights(session.model)
        reached = {**fresh, "epoch": epoch + 1, "best": best}
        folder.save_checkpoint(session.model, session.optimizer, reached)
        line = epoch_line(entry, with_header=epoch == progress["epoch"])
        print(line, flush=True)  # last, since a console can fail
    folder.load_weights(session.model)
    results = {**best, "dataset": name, "seed": config.seed}
    if config.test:
        results["test"] = metrics(*predict(session, session.segments["test"]))
    folder.finish(results)
    print_results(results, folder.path)
    print(f"{time.perf_counter() - run_began:.0f} seconds")
    return results


def summary(session: Session) -> str:
    """The device, the encoder, and how it is trained, in two lines."""
    c, sizes = session.config, [p.numel() for p in session.model.parameters() if p.requires_grad]
    rates = f"{c.learning_rate:g}, of the encoder {c.bert_learning_rate or c.learning_rate:g}"
    return (
        f"{session.device}, encoder {c.bert}, {sum(sizes) / 1e6:.1f} million trainable parameters\n"
        f"at most {c.epochs} epochs, batches of {c.batch_size}, learning rate {rates}"
    )


def main(argv: list[str], **parts: Any) -> None:
    """Start, resume or show a run. parts: build, observe, loaders of `train`. Raises UserError."""
    typed = parse(argv)
    resumed = typed.pop("resume", None)
    folder = None if resumed is None else RunFolder(resumed)
    processes.start()
    config = read_config(folder.path, typed) if folder else Config(**typed)
    if folder is None or not folder.results.exists():
        train(config, folder, **parts)
    elif typed:
        raise UserError(f"{resumed} is finished: start a new run to train it with other options")
    else:
        with explained(f"{folder.results} is damaged"):
            print_results(read_json(folder.results), resumed)


if __name__ == "__main__":
    sys.exit(plumbing.run(main, sys.argv[1:]))
