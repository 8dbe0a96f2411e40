"""data.py: standardize, tokenize, batch; the synthetic corpus; the command."""

import itertools
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import data
from plumbing import UserError, run
from plumbing.test_formats import mmsa
from plumbing.test_pickles import write


class Words:
    """A tokenizer of words, without the tokenizers library."""

    pad_token_id, unk_token_id, all_special_ids, model_max_length = 9, None, [], 512

    def __call__(self, texts: list[str], truncation: bool, max_length: int) -> dict:
        return {"input_ids": [[1, *range(10, 10 + len(t.split())), 2][:max_length] for t in texts]}


def segments(split: data.Split, modalities: str = "avl") -> data.Segments:
    return data.Segments(split, Words(), data.Standardizer.fit(split), modalities)


def split_of(x: np.ndarray, lengths: np.ndarray | None = None) -> data.Split:
    """A split with the frames x as its audio and with no vision."""
    n = len(x)
    lengths = np.full(n, math.nan) if lengths is None else np.array(lengths, float)
    part = {"id": [str(i) for i in range(n)], "video": None, "raw_text": [""] * n}
    part |= {"audio": x, "audio_lengths": lengths, "regression_labels": np.zeros(n, np.float32)}
    return data.Split(part | {"vision": np.zeros((n, 1, 1)), "vision_lengths": np.zeros(n)})


@given(st.integers(0, 2**32 - 1))
def test_standardizer_against_loops(seed: int):
    rng = np.random.default_rng(seed)
    x = rng.normal(1e4, 3, (7, 5, 4)).astype(np.float32)
    x[rng.random(x.shape) < 0.2] = rng.choice([np.nan, np.inf, -np.inf])
    x[..., 2] = 0.1
    split = split_of(x, rng.integers(0, 6, 7))
    scale, frames = data.Standardizer.fit(split), [split.frames("a", i) for i in range(7)]
    for column in range(4):
        seen = [float(v) for rows in frames for v in rows[:, column] if math.isfinite(v)]
        if not seen:
            continue
        mean = math.fsum(seen) / len(seen)
        std = math.sqrt(math.fsum((v - mean) ** 2 for v in seen) / len(seen))
        assert scale.mean["a"][column] == pytest.approx(mean)
        assert scale.std["a"][column] == pytest.approx(0 if column == 2 else std, abs=1e-9)
        for rows in frames:
            for v, w in zip(rows[:, column], scale("a", rows)[:, column], strict=True):
                dead = std < 1e-6 or not math.isfinite(v)
                assert w == pytest.approx(0 if dead else (v - mean) / std, abs=1e-3)


def test_standardizer_sample_is_bounded_and_seeded():
    x = np.random.default_rng(0).normal(size=(50, 3, 2))
    split = split_of(x)
    first = data.Standardizer.fit(split, seed=1, sample=10)
    assert data.Standardizer.fit(split, seed=1, sample=10).to_dict() == first.to_dict()
    assert data.Standardizer.fit(split, seed=2, sample=10).to_dict() != first.to_dict()
    again = data.Standardizer.from_dict(json.loads(json.dumps(first.to_dict())))
    np.testing.assert_array_equal(again("a", x[0]), first("a", x[0]))
    assert first("a", np.empty((0, 7))).shape == (0, 2)  # as a file without audio can have it


def test_what_is_no_value_is_missing():
    """Infinities, what they become by nan_to_num alone, and what float32 cannot hold."""
    x = np.array([[[1.0], [2.0], [3.0], [-np.inf], [np.nan], [-3.4028235e38], [1e300]]])
    scale = data.Standardizer.fit(split_of(x))
    assert scale.mean["a"] == 2
    np.testing.assert_allclose(scale("a", x[0])[:, 0], [-(1.5**0.5), 0, 1.5**0.5, 0, 0, 0, 0])
    for std in (1e-30, 1e-310, 1.0):
        scale = data.Standardizer.fit(split_of(np.array([[[-std], [std]]])))
        with np.errstate(all="raise"):
            assert np.isfinite(scale("a", np.array([[1e38], [-1e38], [std], [0.0]]))).all()


VALID = data.load("synthetic")["valid"]


@given(st.integers(0, 2**32 - 1), st.sampled_from(["avl", "l", "av", "a", "v"]))
def test_collate_pads_on_the_right_and_only_as_needed(seed: int, modalities: str):
    rng = np.random.default_rng(seed)
    made = segments(VALID, modalities)
    rows = rng.integers(0, len(VALID), 5).tolist()
    batch = made.collate([made[i] for i in rows])
    moved = batch.to(torch.device("meta"))
    assert batch.y.dtype == torch.float32 and batch.ids == [VALID.ids[i] for i in rows]
    assert batch.y.tolist() == VALID.y[rows].tolist()
    assert all(lengths.device.type == "cpu" for _, lengths in moved.inputs.values())
    assert all(x.is_meta for x in (moved.y, moved.video, *(x for x, _ in moved.inputs.values())))
    for m, (x, lengths) in batch.inputs.items():
        assert x.dtype == (torch.int64 if m == "l" else torch.float32)
        assert lengths.dtype == torch.int64 and x.shape[1] == max(lengths.max(), 1)
        for row, i, n in zip(x, rows, lengths.tolist(), strict=True):
            item = made[i][0][m]
            assert n == len(item) and (n == 0 or m in modalities)
            assert torch.equal(row[:n], item) and (row[n:] == (9 if m == "l" else 0)).all()


videos = st.lists(st.integers(-1, 9), min_size=1, max_size=80)


@given(videos, st.integers(1, 9), st.booleans(), st.none() | st.integers(0, 5))
def test_batches_hold_every_segment_once(video: list, size: int, whole: bool, seed: int | None):
    plan = data.batches(video, size, whole, seed)
    assert sorted(i for batch in plan for i in batch) == list(range(len(video))) and all(plan)
    for batch in plan:
        videos = {video[i] for i in batch}
        assert len(batch) <= size or (whole and len(videos) == 1 and videos != {-1})
        if whole:
            assert all(i in batch for i, v in enumerate(video) if v in videos - {-1})
    if not whole:
        assert all(len(batch) == size for batch in plan[:-1])
        assert seed is not None or list(itertools.chain(*plan)) == list(range(len(video)))
    assert data.batches(video, size, whole, seed) == plan


def test_batches_are_full_and_differ_between_epochs_and_seeds():
    video = [v for v, n in enumerate((5, 4, 3, 3, 9, 1)) for _ in range(n)]
    assert sorted(map(len, data.batches(video, 8, True))) == [8, 8, 9]
    video = [i // 7 for i in range(300)]
    for whole in (True, False):
        plans = [data.batches(video, 32, whole, key) for key in ((0, 0), (0, 1), (1, 0))]
        assert plans[0] != plans[1] != plans[2] != plans[0]


def test_synthetic_data_are_like_real_ones(capsys):
    corpus, again = data.load("synthetic"), data.load("synthetic")
    data.Standardizer.fit(corpus["train"])
    assert capsys.readouterr().out == ""  # its constant columns are there by design
    assert not set.intersection(*[set(corpus[name].video) for name in data.SPLITS])
    for name in data.SPLITS:
        split = corpus[name]
        assert split.text == again[name].text and np.abs(split.y).max() <= 3
        for m in "av":
            frames = [split.frames(m, i) for i in range(len(split))]
            assert {0} < {len(x) for x in frames} and any(np.isneginf(x).any() for x in frames)
            assert all(np.array_equal(x, again[name].frames(m, i)) for i, x in enumerate(frames))
    for chosen in ({"path": "f"}, {"labels": "f"}):
        with pytest.raises(UserError, match="takes no file, but got f"):
            data.load("synthetic", **chosen)


def test_the_command_explains(tmp_path: Path, capsys, monkeypatch):
    content = mmsa()
    content["test"]["id"] = content["train"]["id"]
    path = write(tmp_path / "f", content)
    monkeypatch.setattr(sys, "argv", ["data.py", str(path)])
    assert run(data.main) == 0
    said = capsys.readouterr().out
    for words in ("(6, 4, 3) float32", "6 segments, 2 videos", "0 to 4 frames", "LEAK"):
        assert words in said, words
    assert "3 columns of audio, 2 columns of vision" in said.splitlines()[0]  # the summary
