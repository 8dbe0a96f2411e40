"""A run's folder: each file in it is written whole or not at all, by process 0 alone.

    config.json         what was typed, over presets and defaults
    standardizer.json   the train split's means and standard deviations
    bert/               the encoder's configuration and its tokeniser
    metrics.jsonl       a line an epoch
    checkpoint.pt       after each epoch, until the run is finished: all that going on takes
    model.safetensors   the best epoch's weights
    results.json        valid and test, when the run is finished

JSON, tensors and plain containers: to read them back runs no code.
"""

import json
import shutil
import zipfile
from contextlib import contextmanager
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from plumbing import UserError, explained, regular
from plumbing.processes import RANK, from_first, wait_for_all


@contextmanager
def replacing(path: Path):
    """A temporary name to write to; renamed to `path` when it is whole. Raises UserError."""
    beside = path.with_name(path.name + ".tmp")
    _remove(beside)  # what a killed run left
    try:
        with explained(f"{path} cannot be written, what was there is kept"):  # of a full disk
            yield beside  # torch says RuntimeError, tokenizers Exception
            beside.replace(path)
    finally:
        _remove(beside)


def _remove(path: Path):
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write(path: Path, content: bytes):
    with replacing(path) as beside:
        beside.write_bytes(content)


def write_json(path: Path, content: dict):
    write(path, (json.dumps(content, indent=2) + "\n").encode())


def read_json(path: Path) -> dict:
    """What `write_json` wrote. Raises UserError for a file that is missing or no JSON object."""
    with explained(f"{path} cannot be read"):
        content = json.loads(regular(path).read_bytes())
        if not isinstance(content, dict):
            raise TypeError("it holds no JSON object")
    return content


class RunFolder:
    """The files of one run."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.weights, self.checkpoint = self.path / "model.safetensors", self.path / "checkpoint.pt"
        self.results = self.path / "results.json"

    @classmethod
    def create(cls, runs: str, name: str | None, default: str) -> "RunFolder":
        """Make runs/name; without a name runs/default, numbered if it is taken. Raises UserError."""
        made = _make(Path(runs), name, default) if RANK == 0 else None
        made = from_first(made)
        if isinstance(made, UserError):
            raise made
        return cls(made)

    def describe(self, config: dict, standardizer: dict, *pretrained):
        """What a later command needs beside the weights. pretrained: what has save_pretrained."""
        if RANK == 0:
            with replacing(self.path / "bert") as beside:
                for part in pretrained:
                    part.save_pretrained(beside)
            write_json(self.path / "standardizer.json", standardizer)
            write_json(self.path / "config.json", config)

    def log(self, entry: dict):
        """Append to metrics.jsonl; an epoch that is done again after a crash stands there once."""
        if RANK == 0:
            path = self.path / "metrics.jsonl"
            lines = regular(path).read_bytes().splitlines() if path.exists() else []
            lines = [*lines[: entry["epoch"]], json.dumps(entry).encode()]
            write(path, b"\n".join(lines) + b"\n")

    def save_checkpoint(self, model, optimizer, progress: dict):
        """All that going on takes. progress: plain containers of numbers and text."""
        if RANK == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()["state"]}
            with replacing(self.checkpoint) as beside:
                torch.save({**state, "progress": progress}, beside)

    def load_checkpoint(self, model, optimizer, start: dict) -> dict:
        """Puts model and optimiser where the checkpoint left them -> its progress; `start` of none.

        Raises UserError for a checkpoint that is damaged, or of another model.
        """
        if not self.checkpoint.exists():
            return start
        with explained(f"{self.checkpoint} is damaged, or of another model or data"):
            with zipfile.ZipFile(regular(self.checkpoint)) as archive:
                if changed := archive.testzip():  # torch does not look at the sums of its parts
                    raise ValueError(f"{changed} has other bytes than were written")
            state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            alike(state["progress"], start)
            alike(state["model"], model.state_dict())
            model.load_state_dict(state["model"])
            now = optimizer.state_dict()  # its rates are the configuration's
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            for number, moments in state["optimizer"].items():
                p = parameters[number]
                alike(moments, {"step": torch.tensor(0.0), "exp_avg": p, "exp_avg_sq": p})
            optimizer.load_state_dict({**now, "state": state["optimizer"]})
            return state["progress"]

    def keep_weights(self, model):
        if RANK == 0:
            weights = {k: v.cpu().contiguous() for k, v in model.state_dict().items()}
            write(self.weights, safetensors.torch.save(weights))  # save_file's mode is 0600

    def load_weights(self, model):
        """The best epoch's weights, by all processes. Raises UserError if they are not there."""
        wait_for_all()
        with explained(f"{self.weights} is missing or damaged, or of another model"):
            weights = safetensors.torch.load_file(regular(self.weights))
            alike(weights, model.state_dict())
            model.load_state_dict(weights)

    def finish(self, results: dict):
        if RANK == 0:
            write_json(self.results, results)
            self.checkpoint.unlink(missing_ok=True)
        wait_for_all()


def alike(found, expected):
    """Raises ValueError unless both have the same keys, types, shapes and dtypes, all the way down."""
    if isinstance(expected, dict) and isinstance(found, dict) and found.keys() == expected.keys():
        for key in expected:
            alike(found[key], expected[key])
    elif isinstance(expected, Tensor) and isinstance(found, Tensor):
        same = found.shape == expected.shape and found.dtype == expected.dtype
        if not same or found.is_contiguous() < expected.is_contiguous():
            raise ValueError(
                f"it has {found.dtype} of shape {list(found.shape)} in another's place"
            )
    elif isinstance(expected, dict) or type(found) is not type(expected):
        raise ValueError(f"it has a {type(found).__name__} that does not belong there")


def _make(runs: Path, name: str | None, default: str) -> Path | UserError:
    """The new folder, or why there is none."""
    names = [name] if name else [default, *(f"{default}-{n}" for n in range(2, 1000))]
    for each in names:
        try:
            (runs / each).mkdir(parents=True)
            return runs / each
        except FileExistsError:
            continue
        except (OSError, ValueError) as error:  # ValueError: a name with a surrogate or a NUL
            return UserError(f"{runs / each} cannot be made: {error}")
    return UserError(f"{runs / names[0]} exists already; choose another --name")
