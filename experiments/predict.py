"""What a trained run predicts; nothing is fetched.

    python -m experiments.predict RUN                        # the test split of its own data
    python -m experiments.predict RUN --data FILE            # a file with a test split, or one clip
    python -m experiments.predict RUN --text "I loved it"    # one segment
    python -m experiments.predict RUN --text "I loved it" --audio a.npy --vision v.npy

A file gives predictions.csv, in RUN or where --output says, and where it has labels the metrics,
also without each modality. One clip is a dict of raw_text, audio and vision, as feature extractors
write it. One segment gives one number. It has no neighbors in a video, so Eq. 13 sees it alone. RUN
is a run of MSFN, not of a baseline. In Python:

    from experiments.predict import load
    model = load("runs/NAME")
    model("I loved it", audio=array, vision=array)    # -> float
"""

import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

import data
import plumbing
import train
from experiments import parser
from experiments.converging import build_of
from plumbing import UserError, devices, encoders, explained, regular
from plumbing.metrics import metrics, table
from plumbing.runs import RunFolder, read_json, replacing


def load(folder: str | Path) -> "Predictor":
    """The trained model of a run's folder. Raises UserError if there is none, or it is damaged."""
    folder = Path(folder)
    config = train.read_config(folder)
    try:
        device = devices.pick(config.device)
    except UserError:  # it was trained on another machine
        device = devices.pick("cpu")
    content = read_json(folder / "standardizer.json")
    with explained(f"{folder / 'standardizer.json'} is damaged"):
        standardizer = data.Standardizer.from_dict(content)
    widths = {m: len(mean) for m, mean in standardizer.mean.items()}
    encoder, tokenizer = encoders.rebuild(str(folder / "bert"), device, config.amp)
    model = build_of(folder)(config, widths, encoder).to(device)
    RunFolder(folder).load_weights(model)
    return Predictor(config, model, tokenizer, standardizer, device, widths)


@dataclass
class Predictor:
    """A trained model, with the parts of a `train.Session` that predictions need."""

    config: train.Config
    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    standardizer: data.Standardizer
    device: torch.device
    widths: dict[str, int]  # {"a": d_a, "v": d_v}, columns of a frame

    def __call__(
        self, text: str | None, audio: Sequence | None = None, vision: Sequence | None = None
    ) -> float:
        """Sentiment of a segment; None: without this modality. audio, vision: (T, d) as in the data

        Raises UserError for another shape, and for a modality that the run was not trained with.
        """
        given = {"l": text, "a": audio, "v": vision}
        modalities = "".join(m for m, value in given.items() if value is not None)
        if others := [m for m in modalities if m not in self.config.modalities]:
            raise UserError(f"the run was trained with {self.config.modalities}, not {others[0]}")
        part = {"id": [""], "video": None, "raw_text": [text or ""], "regression_labels": [0.0]}
        for m, key in data.FRAMES.items():
            d = self.widths[m]
            with explained(f"{key} is not an array"):
                frames = np.zeros((0, d)) if given[m] is None else np.asarray(given[m])
            if frames.dtype.kind not in "fiu" or frames.shape[1:] != (d,):
                form = f"{frames.dtype} of shape {frames.shape}"
                raise UserError(f"{key} must be real numbers of shape (T, {d}), not {form}")
            part |= {key: [frames], f"{key}_lengths": [len(frames)]}
        return float(self.split(data.Split(part), modalities)[0])

    def split(self, split: data.Split, modalities: str) -> np.ndarray:
        """ŷ of each segment from these modalities: (N,) float32"""
        segments = data.Segments(split, self.tokenizer, self.standardizer, modalities)
        return train.predict(self, segments)[0]


def evaluate(folder: Path, path: str | None, labels: str | None, output: Path | None) -> None:
    """Print the metrics, also without each modality, and write predictions.csv."""
    model = load(folder)
    config = model.config
    if config.dataset == "synthetic":
        corpus = data.load("synthetic", path)
    else:
        corpus = data.load_any(path or config.data, labels or config.labels)
    split = corpus["test"]
    for m, d in model.widths.items():
        if corpus.widths[m] != d and any(len(split.frames(m, i)) for i in range(len(split))):
            columns = f"{corpus.widths[m]} columns of {data.FRAMES[m]}"
            raise UserError(f"{corpus.path} has {columns}, but {folder} was trained with {d}")
    columns = {"prediction": model.split(split, config.modalities)}
    for m in config.modalities:
        columns[f"without_{m}"] = model.split(split, config.modalities.replace(m, ""))
    labeled = np.isfinite(split.y)
    print(corpus.description, f"{len(split)} segments, {labeled.sum()} of them labeled", sep="\n")
    if labeled.any():
        rows = {name: metrics(p[labeled], split.y[labeled]) for name, p in columns.items()}
        print(table(corpus.name, rows))
    write_csv(output or folder / "predictions.csv", split, columns)


def write_csv(path: Path, split: data.Split, columns: dict[str, np.ndarray]) -> None:
    """A line per segment. Raises UserError if `path` cannot be written."""
    utf8 = {"newline": "", "encoding": "utf-8", "errors": "replace"}
    with replacing(path) as temporary, open(temporary, "w", **utf8) as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text", "label", *columns])
        for line in zip(split.ids, split.text, split.y, *columns.values(), strict=True):
            numbers = (f"{number:.4f}" if np.isfinite(number) else "" for number in line[2:])
            writer.writerow([*line[:2], *numbers])
    print(path)


def array(path: str | None) -> np.ndarray | None:
    """The content of a .npy file. Raises UserError if it has none."""
    with explained(f"{path} holds no array that numpy can read"):
        return None if path is None else np.load(regular(path), mmap_mode="r")


def main(argv: list[str]) -> None:
    own = parser(__doc__)
    own.add_argument("run", type=Path, metavar="RUN", help="folder of a trained run")
    own.add_argument("--data", help="a file with a test split, or one clip (the run's own data)")
    own.add_argument("--labels", help="CSV with the text of a file that holds none")
    own.add_argument("--output", type=Path, metavar="CSV", help="(RUN/predictions.csv)")
    own.add_argument("--text", help="what is said in one segment")
    own.add_argument("--audio", metavar="NPY", help="its audio frames, (T, d)")
    own.add_argument("--vision", metavar="NPY", help="its visual frames, (T, d)")
    typed = own.parse_args(argv)
    if (typed.text, typed.audio, typed.vision) == (None, None, None):
        return evaluate(typed.run, typed.data, typed.labels, typed.output)
    if typed.data or typed.labels or typed.output:
        own.error("--data, --labels and --output belong to a file, not to one segment")
    frames = array(typed.audio), array(typed.vision)
    sentiment = load(typed.run)(typed.text, *frames)
    print(f"{sentiment:+.2f}  (-3 strongly negative, +3 strongly positive)")


if __name__ == "__main__":
    sys.exit(plumbing.run(main, sys.argv[1:]))
