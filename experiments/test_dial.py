"""dial.py, and the corpora that it turns."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import data
import plumbing
import train
from experiments import dial
from plumbing import UserError

ROWS = ("all, as printed", "without L^a")


def explained_variance(modalities: str, own: float, noise: float) -> float:
    """R² of a linear regression from these modalities to y, on segments that have frames."""
    split = data.synthetic(own=own, noise=dict.fromkeys("avl", noise))["train"]
    grades = {word: grade for grade, words in data.GRADES.items() for word in words.split()}
    X, y = [], []
    for i, text in enumerate(split.text):
        shown = {m: np.nan_to_num(split.frames(m, i), neginf=0) for m in "av"}
        shown["l"] = np.array([[grades[word]] for word in text.split() if word in grades])
        if all(map(len, shown.values())):
            X.append(np.hstack([1, *(shown[m].mean(0) for m in modalities)]))
            y.append(split.y[i])
    return 1 - (y - X @ np.linalg.lstsq(X, y)[0]).var() / np.var(y)


def test_own_parts_are_told_by_all_together_and_noise_by_none():
    for m in "avl":
        assert explained_variance(m, own=0, noise=0) > 0.85
        assert explained_variance(m, own=1, noise=0) < 0.75
    assert explained_variance("avl", own=1, noise=0) > 0.9
    assert explained_variance("avl", own=0, noise=1) < 0.8


@pytest.fixture
def quick(monkeypatch):
    """One epoch on ten segments, of one loss at two positions."""
    monkeypatch.setitem(train.PRESETS["synthetic"], "epochs", 1)
    monkeypatch.setattr(dial, "DIALS", {"own": (0.0, 1.0), "train": (10,)})
    monkeypatch.setattr(dial, "TRAINED", {row: dial.TRAINED[row] for row in ROWS})


def test_a_run_has_its_own_corpus_and_options(quick):
    first = dial.run(0.0, 10, 0.5, ROWS[0], 3)
    assert list(first) == ["valid", "test", "no a", "no v", "no l"]
    assert dial.run(0.0, 10, 0.5, ROWS[0], 3) == first
    for change in ((1.0, 10, 0.5, ROWS[0], 3), (0.0, 9, 0.5, ROWS[0], 3), (0.0, 10, 2, ROWS[0], 3)):
        assert dial.run(*change) != first
    assert dial.run(0.0, 10, 0.5, ROWS[0], 4) != first != dial.run(0.0, 10, 0.5, ROWS[1], 3)


def test_a_sweep_continues_where_it_stopped(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(dial, "ProcessPoolExecutor", lambda *_: ThreadPoolExecutor(1))
    ran = []

    def run(*one):
        ran.append(one)
        if len(ran) == 3:
            raise UserError("stopped")
        return {"test": len(ran)}

    monkeypatch.setattr(dial, "run", run)
    arguments = tmp_path / "dial.jsonl", ["own"], range(2), 1
    with pytest.raises(UserError, match="stopped"):
        dial.sweep(*arguments)
    saved, first = set(dial.read(arguments[0])), len(ran)
    dial.sweep(*arguments)
    assert len(dial.read(arguments[0])) == 8  # two positions, two seeds, two rows
    assert len(ran) - first == 8 - len(saved) and not saved & set(ran[first:])


def test_effects_are_paired_and_finished_runs_are_not_run_again(quick, tmp_path, capsys):
    path, lines = tmp_path / "dial.jsonl", []
    for own, seed in ((own, seed) for own in (0.0, 1.0) for seed in (0, 1, 7)):
        for row, mae in (("all, as printed", 0.5 + own / 10), ("without L^a", 0.4 + seed / 100)):
            maes = {"test": mae, "no a": mae, "no v": mae, "no l": mae + 3}
            lines.append(json.dumps([[own, 900, 0.5, row, seed], maes]))
    path.write_text("\n".join(lines) + "\n")
    arguments = ["own", "--seeds", "2", "--results", str(path)]
    assert plumbing.run(dial.main, arguments) == 0
    assert path.read_text() == "\n".join(lines) + "\n"
    printed = capsys.readouterr().out
    half = 12.706 * 0.01 * 0.5**0.5 / 2**0.5
    assert f"| L^a, as printed | +0.095 ± {half:.3f} | +0.195 ± {half:.3f} |" in printed
    assert printed.count("| L^rl | – | – |") == 2
    for wrong in (["noise", "x"], ["--jobs", "0"]):
        with pytest.raises(SystemExit):
            dial.main(wrong)
    path.write_text("[1, 2]\n")
    assert plumbing.run(dial.main, arguments) == 2
    assert "does not hold results" in capsys.readouterr().err


def test_the_picture_is_drawn_from_finished_runs(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    results = {
        (*place, row, seed): {"test": seed + number}
        for place in dial.positions("own")
        for number, row in enumerate(dial.TRAINED)
        for seed in range(2)
    }
    dial.draw(results, tmp_path / "dial.png")
    assert (tmp_path / "dial.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(UserError, match="needs two finished seeds"):
        dial.draw({}, tmp_path / "dial.png")
