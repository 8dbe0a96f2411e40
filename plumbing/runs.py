"""A run's folder. Process 0 writes its files, each of them whole or not at all.

    config.json         every option's value
    standardizer.json   the train split's means and standard deviations
    bert/               the encoder's configuration and its tokenizer
    metrics.jsonl       one line per epoch
    checkpoint.pt       after each epoch, until the run is finished: everything needed to resume
    model.safetensors   the weights of the best epoch
    results.json        metrics on valid and test, when the run is finished

These are JSON, tensors and plain containers: no code runs when they are read.
"""

import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn
from torch.optim import Optimizer

from plumbing import UserError, explained, regular
from plumbing.processes import from_first, rank, wait_for_all


# ── Files ─────────────────────────────────────────────────────────────────────────────────────────
@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write to, renamed to `path` at the end of the block. Raises UserError."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with explained(f"{path} cannot be written; the old one was kept"):  # a full disk:
            yield temporary  # torch raises RuntimeError, safetensors an Exception of its own
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: dict) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> dict:
    """Read what `write_json` wrote. Raises UserError if the file is missing or damaged."""
    with explained(f"{path} cannot be read"):
        content = json.loads(regular(path).read_bytes())
        if not isinstance(content, dict):
            raise TypeError("it holds no JSON object")
    return content


# ── A run ─────────────────────────────────────────────────────────────────────────────────────────
class RunFolder:
    """The files of one run."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.encoder, self.results = self.path / "bert", self.path / "results.json"
        self.weights, self.checkpoint = self.path / "model.safetensors", self.path / "checkpoint.pt"

    @classmethod
    def create(cls, runs: str, name: str | None, default: str) -> "RunFolder":
        """Make runs/name, or runs/default with a number if it is taken. Raises UserError."""
        made = from_first(make(Path(runs), name, default) if rank() == 0 else None)
        if isinstance(made, UserError):
            raise made
        return cls(made)

    def describe(self, standardizer: dict, *pretrained: Any) -> None:
        """Write what a later command needs beside the configuration and the weights.

        pretrained: the encoder's configuration and its tokenizer
        """
        if rank() == 0:
            with explained(f"{self.encoder} cannot be written"):
                for part in pretrained:
                    part.save_pretrained(self.encoder)
            write_json(self.path / "standardizer.json", standardizer)

    def write_config(self, config: dict) -> None:
        """Write config.json: a folder with it can be resumed, and resuming may change it."""
        if rank() == 0:
            write_json(self.path / "config.json", config)

    def log(self, entry: dict) -> None:
        """Append to metrics.jsonl. An epoch that is repeated after a crash replaces its line."""
        if rank() == 0:
            path = self.path / "metrics.jsonl"
            lines = regular(path).read_bytes().splitlines() if path.exists() else []
            lines = [*lines[: entry["epoch"]], json.dumps(entry).encode(), b""]
            with replacing(path) as temporary:
                temporary.write_bytes(b"\n".join(lines))

    def save_checkpoint(self, model: nn.Module, optimizer: Optimizer, progress: dict) -> None:
        """Save everything needed to resume. progress: plain containers of numbers and text."""
        if rank() == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()["state"]}
            with replacing(self.checkpoint) as temporary:
                torch.save({**state, "progress": progress}, temporary)

    def load_checkpoint(self, model: nn.Module, optimizer: Optimizer, start: dict) -> dict:
        """Restore model and optimizer. Returns the saved progress, or `start` without a checkpoint.

        optimizer: a new one; its options, such as the learning rates, are kept.
        start: progress before the first epoch; start["data"] is the data's fingerprint.
        Raises UserError for a checkpoint that is damaged, or of another model or data.
        """
        if not self.checkpoint.exists():
            return start
        with explained(f"{self.checkpoint} is damaged, or of another model"):
            with zipfile.ZipFile(regular(self.checkpoint)) as archive:
                if changed := archive.testzip():  # torch does not compare the checksums
                    raise ValueError(f"the checksum of {changed} is wrong")
            state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            if state["progress"]["data"] != start["data"]:
                raise UserError(
                    f"{self.path} was started with another data file: pass it to --data"
                )
            model.load_state_dict(state["model"])
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state["optimizer"]})
        return state["progress"]

    def keep_weights(self, model: nn.Module) -> None:
        """Write the weights of the best epoch so far."""
        if rank() == 0:
            # Copies: tied weights, and the weights of an LSTM on a GPU, share their memory.
            copies = {
                name: tensor.cpu().clone(memory_format=torch.contiguous_format)
                for name, tensor in model.state_dict().items()
            }
            with replacing(self.weights) as temporary:
                temporary.write_bytes(safetensors.torch.save(copies))  # save_file's mode is 0600

    def load_weights(self, model: nn.Module) -> None:
        """Load the weights of the best epoch. Raises UserError if they are missing or damaged."""
        wait_for_all()
        with explained(f"{self.weights} is missing or damaged, or of another model"):
            model.load_state_dict(safetensors.torch.load_file(regular(self.weights)))

    def finish(self, results: dict) -> None:
        """Write results.json and delete the checkpoint."""
        if rank() == 0:
            write_json(self.results, results)
            self.checkpoint.unlink(missing_ok=True)
        wait_for_all()


def make(runs: Path, name: str | None, default: str) -> Path | UserError:
    """The new folder, or the reason why it cannot be made."""
    names = [name] if name else [default, *(f"{default}-{n}" for n in range(2, 1000))]
    for each in names:
        try:
            (runs / each).mkdir(parents=True)
            return runs / each
        except FileExistsError:
            continue
        except (OSError, ValueError) as error:  # ValueError: a name with a surrogate or a NUL
            return UserError(f"{runs / each} cannot be created: {error}")
    return UserError(f"{runs / names[0]} exists already; choose another --name")
