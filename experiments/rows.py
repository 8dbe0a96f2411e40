"""The rows of all tables, and one row at a time: what is built, and its own options.

    python -m experiments.rows "TFN (B)" --dataset mosi --data FILE --bert FOLDER
    python -m experiments.rows "TFN (static)" --dataset mosi --data FILE --vectors GLOVE
    python -m experiments.rows "TFN (B)" --resume RUN
    python -m experiments.rows                                           # list the rows

After the row's name come train.py's options, which win over the row's own. --help's group "losses"
changes MSFN's rows only. "(B)": the encoder is fine-tuned, as in MSFN.
"(static)": its frozen input embeddings replace the originals' GloVe vectors; --vectors loads
GloVe's text format. Seeds, batches, epochs, the choice of the epoch and the metrics are train.py's
in every row. MSFN's rows log what `similarity.py` measures after each epoch. No row claims to
reproduce the printed one: README.md says what it claims.
"""

import re
import sys
from pathlib import Path
from typing import NamedTuple

from torch import nn

import plumbing
import train
from experiments.baselines import ARGF, ICCN, LMF, MFN, MISA, TFN, Baseline
from experiments.converging import Averaged, CMDInstead, Converging, build
from experiments.similarity import similarity
from experiments.word_vectors import rebuild, static, word_vectors
from plumbing import UserError, encoders, processes


class Row(NamedTuple):
    """How one row is trained."""

    options: str = ""  # of train.py
    build: train.Build = train.build_msfn
    static: bool = False  # the encoder's frozen input embeddings replace the encoder

    @property
    def is_msfn(self) -> bool:
        return not (isinstance(self.build, type) and issubclass(self.build, Baseline))

    def model(
        self, config: train.Config, widths: dict[str, int], encoder: nn.Module
    ) -> train.Trainable:
        """Build the row's model."""
        encoder = static(encoder) if self.static else encoder
        return self.build(config, widths, encoder)

    def pretrained(self, name: str, texts: list[list[str]], *settings) -> tuple:
        """An encoder and its tokenizer; static rows also take a file of word vectors."""
        if self.static and Path(name).is_file():
            return word_vectors(name, [text for split in texts for text in split])
        return encoders.pretrained(name, texts, *settings)

    def rebuild(self, folder: str, *settings) -> tuple:
        """The same for a run that is resumed."""
        return rebuild(folder) if self.static else encoders.rebuild(folder, *settings)


# Rows without Eq. 13 train on batches of segments. Batches of whole videos hold two or three
# videos, and BatchNorm, CMD and CCA are statistics of a batch. Text alone, too: over the segment
# Eq. 13 does nothing, which leaves a plain text model, the bar for all others.
SEGMENTS = "--attention segment"
TASK = "--alpha 0 --beta 0 --gamma 0"
FAST = "--learning-rate 1e-3 --bert-learning-rate 1e-4"
LONG = f"{FAST} --patience 30"
mean = build(Averaged, decay=0.99)
game = build(Converging, decay=0.99, rho=10.0)
cmd = build(CMDInstead, decay=0.99)

ROWS = {
    "MSFN": Row(),
    # Tables 2 and 3. Rates and dropout are the best on MOSI's valid split (`tables.py rates`).
    "MFN (static)": Row(f"{SEGMENTS} --learning-rate 1e-2 --dropout 0.3", MFN, True),
    "LMF (static)": Row(f"{SEGMENTS} --learning-rate 1e-2", LMF, True),
    "TFN (static)": Row(f"{SEGMENTS} --learning-rate 1e-2 --dropout 0.3", TFN, True),
    "TFN (B)": Row(f"{SEGMENTS} --learning-rate 1e-3 --bert-learning-rate 1e-4", TFN),
    "LMF (B)": Row(f"{SEGMENTS} --learning-rate 3e-4 --bert-learning-rate 1e-4", LMF),
    "ICCN (B)": Row(f"{SEGMENTS} --learning-rate 3e-4 --bert-learning-rate 1e-4", ICCN),
    "ARGF (B)": Row(f"{SEGMENTS} --learning-rate 1e-4 --bert-learning-rate 1e-4", ARGF),
    "MISA (B)": Row(f"{SEGMENTS} --learning-rate 1e-3 --bert-learning-rate 1e-4", MISA),
    "MSFN, segment": Row(SEGMENTS),
    "text only": Row(f"{SEGMENTS} --modalities l {TASK}"),
    # Table 4, then a row that the paper lacks
    "without L^a": Row("--alpha 0"),
    "without L^d": Row("--beta 0"),
    "without L^rl": Row("--gamma 0"),
    "task loss only": Row(TASK),
    # Readings of ambiguous equations: each changes one option of MSFN
    "as printed": Row("--adversarial literal"),  # Eqs. 5–7: −log D(fake)
    "sign": Row("--classes sign"),  # Eq. 9
    "features-x": Row("--triplet-features x"),  # Eq. 9: distances between x_m
    "margin-0.5": Row("--margin 0.5"),  # Eq. 9
    "sum": Row("--reduction sum"),  # Eqs. 9, 12, 15: sums, as printed
    "detached": Row("--detach-target"),  # Eq. 12
    "batch": Row("--attention batch"),  # Eq. 13
    "cls": Row("--pooling cls"),  # Eq. 3
    "rest-1e-3": Row(FAST),  # 1e-3 for all but BERT
    "alpha-5": Row("--alpha 5"),
    # Alike modalities: the mean of the weights over 30 epochs, then also ρ = 10, or CMD for L^a
    "long-0": Row(f"{LONG} --alpha 0", mean),
    "alike": Row(f"{LONG} --alpha 1", game),
    "alike 0.2": Row(f"{LONG} --alpha 0.2", game),
    "alike 5": Row(f"{LONG} --alpha 5", game),
    "CMD 0.1": Row(f"{LONG} --alpha 0.1", cmd),
    "CMD 1": Row(f"{LONG} --alpha 1", cmd),
}


def main(argv: list[str]) -> None:
    """Train one row. Raises UserError for an unknown row."""
    if not argv or argv[0] in ("-h", "--help"):
        return print(__doc__, "\nRows:", *ROWS, sep="\n    ")
    name, *typed = argv
    if name not in ROWS:
        raise UserError(f"there is no row {name!r}; python -m experiments.rows lists the rows")
    row = ROWS[name]
    processes.start()
    if processes.world_size() > 1 and not row.is_msfn:
        raise UserError("a baseline trains in one process: start it without torchrun")
    typed = [re.sub("^--vectors", "--bert", word) for word in typed]
    if not any(word.startswith("--resume") for word in typed):
        runs = f"runs/{name.replace(' ', '_')}"  # config.json does not name the row
        typed = ["--runs", runs, *row.options.split(), *typed]
    observe = similarity if row.is_msfn else None
    train.main(typed, build=row.model, observe=observe, loaders=row)


if __name__ == "__main__":
    sys.exit(plumbing.run(main, sys.argv[1:]))
