"""What a trained run predicts; nothing is fetched.

    python experiments/predict.py RUN                        # the test split of its own data
    python experiments/predict.py RUN --data FILE            # the test split of another file
    python experiments/predict.py RUN --text "I loved it"    # one segment
    python experiments/predict.py RUN --text "I loved it" --audio a.npy --vision v.npy

A test split gives the metrics, also without each modality, and RUN/predictions.csv. One segment gives
one number; it has no neighbours in a video, so Eq. 13 sees it alone. In Python:

    model = predict.load("runs/NAME")
    model("I loved it", audio=array, vision=array)    # -> float
"""

import tables  # isort: skip (first: it puts the project's folder on the path, and hears Ctrl-C)
import csv
import sys
from pathlib import Path

import numpy as np
import torch

import data
import plumbing
import train
from msfn import MSFN
from plumbing import UserError, devices, encoders, explained, regular
from plumbing.runs import RunFolder, read_json, replacing


def load(folder: str | Path) -> "Predictor":
    """The trained model of a run's folder. Raises UserError if it is none, or damaged."""
    folder = Path(folder)
    config = train.read_config(folder)
    try:
        device = devices.pick(config.device)
    except UserError:  # it was trained on another machine
        device = devices.pick("cpu")
    torch.set_flush_denormal(True)  # as in training
    content = read_json(folder / "standardizer.json")
    with explained(f"{folder / 'standardizer.json'} is damaged"):
        standardizer = data.Standardizer.from_dict(content)
    widths = {m: len(mean) for m, mean in standardizer.mean.items()}
    encoder, tokenizer = encoders.rebuild(str(folder / "bert"), device, config.amp)
    model = MSFN(config, widths, encoder)
    RunFolder(folder).load_weights(model)
    run = train.Run(model.to(device).eval(), encoder, {}, tokenizer, standardizer, device)
    return Predictor(run, config, widths)


class Predictor:
    """A trained model: called with one segment, or `split` by split. widths: {"a": d_a, "v": d_v}"""

    def __init__(self, run: train.Run, config: train.Config, widths: dict[str, int]):
        self.run, self.config, self.widths = run, config, widths

    def __call__(self, text: str | None, audio=None, vision=None) -> float:
        """Sentiment of a segment; None for what it lacks. audio, vision: (T, d) as in the data file

        Raises UserError for another shape, and for a modality that the run was not trained with.
        """
        given = {"l": text, "a": audio, "v": vision}
        kept = "".join(m for m, value in given.items() if value is not None)
        if others := [m for m in kept if m not in self.config.modalities]:
            raise UserError(f"the run was trained with {self.config.modalities}, not {others[0]}")
        part = {"id": [""], "video": None, "raw_text": [text or ""], "regression_labels": [0.0]}
        for m, key in data.FRAMES.items():
            d = self.widths[m]
            with explained(f"{key} is no array"):
                frames = np.zeros((0, d)) if given[m] is None else np.asarray(given[m])
            if frames.dtype.kind not in "fiu" or frames.shape[1:] != (d,):
                what = f"{frames.dtype} of shape {frames.shape}"
                raise UserError(f"{key} must be real numbers of shape (T, {d}), not {what}")
            part |= {key: [frames], f"{key}_lengths": [len(frames)]}
        return float(self.split(data.Split(part), kept)[0])

    def split(self, split: data.Split, modalities: str) -> np.ndarray:
        """ŷ of each segment from these modalities: (N,) float32"""
        run = self.run
        segments = data.Segments(split, run.tokenizer, run.standardizer, modalities)
        return train.predict(run, segments, self.config)[0]


def evaluate(folder: Path, path: str | None, labels: str | None):
    """Prints the metrics, also without each modality, and writes predictions.csv."""
    model = load(folder)
    config = model.config
    corpus = data.load(config.dataset, path or config.data, labels or config.labels)
    if corpus.dims != model.widths:
        what = f"has frames of widths {corpus.dims}, but {folder} was trained with {model.widths}"
        raise UserError(f"{corpus.path} {what}")
    split, all_of_them = corpus["test"], config.modalities
    columns = {"prediction": model.split(split, all_of_them)}
    for m in all_of_them:
        columns[f"without_{m}"] = model.split(split, all_of_them.replace(m, ""))
    target = folder / "predictions.csv"
    utf8 = {"newline": "", "encoding": "utf-8", "errors": "replace"}
    with replacing(target) as beside, open(beside, "w", **utf8) as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text", "label", *columns])
        lines = zip(split.ids, split.text, split.y, *columns.values(), strict=True)
        writer.writerows([*line[:2], *(f"{number:.4f}" for number in line[2:])] for line in lines)
    rows = {name: train.metrics(prediction, split.y) for name, prediction in columns.items()}
    print(corpus.description, train.table(config.dataset, rows), target, sep="\n")


def array(path: str | None) -> np.ndarray | None:
    """The content of a .npy file. Raises UserError if it holds none."""
    with explained(f"{path} is no array that numpy can read"):
        return None if path is None else np.load(regular(path), mmap_mode="r")


def main():
    parser = tables.parser(__doc__, options=False)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a trained run")
    parser.add_argument("--data", help="file or folder with a test split (the run's own)")
    parser.add_argument("--labels", help="CSV with the text of a file that holds none")
    parser.add_argument("--text", help="what is said in one segment")
    parser.add_argument("--audio", metavar="NPY", help="its audio frames, (T, d)")
    parser.add_argument("--vision", metavar="NPY", help="its visual frames, (T, d)")
    typed = parser.parse_args()
    one = typed.text, typed.audio, typed.vision
    if one == (None, None, None):
        return evaluate(typed.run, typed.data, typed.labels)
    if typed.data or typed.labels:
        parser.error("either a file's test split or one segment, not both")
    frames = array(typed.audio), array(typed.vision)
    sentiment = load(typed.run)(typed.text, *frames)
    print(f"{sentiment:+.2f}  (-3 strongly negative, +3 strongly positive)")


if __name__ == "__main__":
    sys.exit(plumbing.run(main))
