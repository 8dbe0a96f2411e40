"""The three families of files, what is wrong with them, and data.py, which makes a corpus of them."""

import csv
import itertools
import json
import math
import os
import pickle
import random
import resource
import struct
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import data
from plumbing import UserError, encoders, formats, run
from plumbing.test_pickles import array, file_of, in_child, write

MOSI = os.environ.get("MSFN_MOSI", "")  # a folder with real files, which are no part of the project
needs_mosi = pytest.mark.skipif(not MOSI, reason="MSFN_MOSI names no folder with real MOSI")


def mmsa_split(n=6, t=4, d=(3, 2), seed=0, prefix="video"):
    """MMSA's keys; padding on the right, lengths 0..t, segment i is clip i of video i // 3."""
    rng = np.random.default_rng(seed)
    part = {
        "raw_text": np.array([f"SENTENCE NUMBER {i}" for i in range(n)]),
        "id": np.array([f"{prefix}{i // 3}$_${i}" for i in range(n)]),
        "regression_labels": rng.uniform(-3, 3, n).astype(np.float32),
        "annotations": ["Neutral"] * n,
    }
    for key, width in zip(("audio", "vision"), d, strict=True):
        lengths = [(i * 2 + len(key)) % (t + 1) for i in range(n)]
        x = rng.normal(size=(n, t, width)).astype(np.float32) + 5
        for i, length in enumerate(lengths):
            x[i, length:] = 0
        part[key], part[f"{key}_lengths"] = x, lengths
    return part


def mmsa(**changes):
    """A file of MMSA's family; each split's videos have their own names."""
    return {s: mmsa_split(seed=k, prefix=s) | changes for k, s in enumerate(data.SPLITS)}


def mult_split(n=6, seed=0, ids=None):
    part = mmsa_split(n, seed=seed)
    return {
        "vision": part["vision"].astype(np.float64),
        "audio": np.asfortranarray(part["audio"]),
        "text": np.zeros((n, 4, 5)),
        "labels": part["regression_labels"].reshape(n, 1, 1),
        "id": np.array([f"v{i // 3}[{i}]".encode() for i in range(n)]) if ids is None else ids,
    }


def misa_split(n=6, seed=0, actual=False):
    part, samples = mmsa_split(n, seed=seed), []
    for i in range(n):
        words = part["raw_text"][i].split()
        inputs = (words, np.ones((len(words), 47)), np.ones((len(words), 74)))
        if actual:
            inputs = (np.arange(len(words)), *inputs[1:], words)
        samples.append((inputs, part["regression_labels"][i].reshape(1, 1), f"v{i // 3}[{i}]"))
    return samples


def train_part(tmp_path, content):
    return formats.read(write(tmp_path / "f", content))["train"]


def lengths_of(split, m):
    return [len(split.frames(m, i)) for i in range(len(split))]


# ── Every family ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("protocol", (0, 2, 5))
def test_mmsa(tmp_path, protocol):
    content = mmsa()
    corpus = data.load("mosi", write(tmp_path / "any.name", content, protocol))
    assert corpus.dims == {"a": 3, "v": 2} and corpus.path == str(tmp_path / "any.name")
    for name in data.SPLITS:
        split, part = corpus[name], content[name]
        assert split.text == part["raw_text"].tolist() and split.ids == part["id"].tolist()
        assert split.video == [f"{name}{i // 3}" for i in range(6)]
        np.testing.assert_array_equal(split.y, part["regression_labels"])
        for m, key in data.FRAMES.items():
            for i, n in enumerate(part[f"{key}_lengths"]):
                np.testing.assert_array_equal(split.frames(m, i), part[key][i, :n])


def label_csv(path, part, video=lambda i: f"v{i // 3}", clip=lambda i: i, encoding="utf-8"):
    with open(path, "w", newline="", encoding=encoding) as file:
        table = csv.writer(file)
        table.writerow(["video_id", "clip_id", "text", "label", "start"])
        for i, y in enumerate(np.ravel(part["labels"])):
            table.writerow([video(i), clip(i), f"text {i}", y, 10.25 * i])
    return path


TRIPLES = np.array([[f"v{i // 3}", f"{10.25 * i}", "99"] for i in range(6)])


@pytest.mark.parametrize("encoding", ("utf-8", "utf-8-sig"))
@pytest.mark.parametrize("first_clip", (0, 1))
@pytest.mark.parametrize("ids", (None, TRIPLES, TRIPLES.astype("S")))
def test_mult_takes_its_text_from_a_csv(tmp_path, capsys, ids, first_clip, encoding):
    part = mult_split(ids=ids)
    path = write(tmp_path / "f.pkl", dict.fromkeys(data.SPLITS, part))
    table = tmp_path / "mosi_label.csv"
    label_csv(table, part, clip=lambda i: i + first_clip, encoding=encoding)
    corpus = data.load("mosi", path)
    assert corpus["valid"].text == [f"text {i}" for i in range(6)]
    assert corpus["valid"].video == [f"v{i // 3}" for i in range(6)]
    np.testing.assert_allclose(corpus["valid"].y, part["labels"].ravel())
    assert f"the text of train, valid, test comes from {table}" in capsys.readouterr().out


def test_mult_without_its_text(tmp_path):
    part = mult_split()
    path, table = write(tmp_path / "f.pkl", dict.fromkeys(data.SPLITS, part)), tmp_path / "l.csv"
    with pytest.raises(UserError, match=r"'train' has no text: name a CSV of video_id, clip_id"):
        data.load("mosi", path)
    for wrong in ({"video": lambda i: f"w{i}"}, {"clip": lambda i: i + 2}):
        with pytest.raises(UserError, match=r"l.csv: their ids or labels differ, as at v0\[0\]"):
            data.load("mosi", path, label_csv(table, part, **wrong))
    with pytest.raises(UserError, match="labels differ"):
        data.load("mosi", path, label_csv(table, {"labels": -part["labels"]}))
    head = b"video_id,clip_id,text,label\n"
    for text in (
        b"no,such,columns\n1,2,3\n",
        head + b"v,1\n",
        head + b"v,1,\xff,1\n",
        head + b"\0",
    ):
        with pytest.raises(UserError, match="l.csv is no CSV"):
            data.load("mosi", path, write(table, text))


@pytest.mark.parametrize("actual", (True, False))
@pytest.mark.parametrize("folder", (True, False))
def test_misa(tmp_path, folder, actual):
    parts = {s: misa_split(seed=k, actual=actual) for k, s in enumerate(("train", "dev", "test"))}
    path = tmp_path if folder else write(tmp_path / "f", parts)
    for name, part in parts.items():
        write(tmp_path / f"{name}.pkl", part)
    corpus = data.load("mosi", path)
    assert corpus.dims == {"a": 74, "v": 47} and corpus["valid"].video[3] == "v1"
    assert corpus["valid"].text[2] == "SENTENCE NUMBER 2"
    np.testing.assert_allclose(corpus["valid"].y, [label.item() for _, label, _ in parts["dev"]])
    assert lengths_of(corpus["valid"], "a") == [3] * 6


def test_words_given_as_one_string_are_a_sentence(tmp_path):
    part = [(("so good", *x[1:]), label, id) for x, label, id in misa_split()]
    assert train_part(tmp_path, {"train": part})["raw_text"] == ["so good"] * 6


def test_mosei_sentiment_comes_first(tmp_path):
    part = [(x, np.array([[1.5, 9, 9, 9, 9, 9, 9]]), i) for x, _, i in misa_split()]
    assert train_part(tmp_path, {"train": part})["regression_labels"].tolist() == [1.5] * 6


@pytest.mark.parametrize(
    ("id", "video"),
    [
        ("03bSnISJMiM$_$11", "03bSnISJMiM"),
        ("_0efYOjQYRc[3]", "_0efYOjQYRc"),
        ("6_0THN4chvY_12", "6_0THN4chvY"),
        ("abcdefgh_12", "abcdefgh_12"),  # eleven characters: a video of YouTube, with no clip
        ("03bSnISJMiM[1.5:20.25]", "03bSnISJMiM"),
        ("-HwX2H8Z4hY", "-HwX2H8Z4hY"),
        ("a$_$b[1]$_$2", "a$_$b[1]"),
    ],
)
def test_the_video_in_an_id(id, video):
    assert formats.video_and_clip(id)[0] == video


@given(
    st.integers(0, 5),
    st.integers(0, 2**32 - 1),
    st.sampled_from([math.nan, 0, 2, 5, 6, 99, -1, 1e300]),
    st.booleans(),
)
def test_true_length(n, seed, given_length, left):
    """Against a loop: cut to the length given, or else trim zeros from the side that has more."""
    x = np.zeros((6, 5, 2))
    x[:, 5 - n if left else 0 : 5 if left else n] = np.random.default_rng(seed).normal(size=(n, 2))
    content = pickle.dumps(
        {"train": mmsa_split() | {"audio": x, "audio_lengths": [given_length] * 6}}
    )
    split = formats.checked(pickle.loads(content)["train"], "here")
    found = formats.without_padding(x[0], split["audio_lengths"][0])
    want = min(n, given_length) if n and 0 <= given_length <= 5 else n
    want = given_length if n and n <= given_length <= 5 else want
    assert len(found) == want
    if 0 < want <= n:
        start = 5 - want if left and n < 5 else 0
        np.testing.assert_array_equal(found, x[0, start : start + want])


def test_zeros_and_missing_values_inside():
    x = np.array([[0.0], [0], [1], [1], [0]])
    np.testing.assert_array_equal(formats.without_padding(x, 4), x[:4])  # as the file says
    x = np.array([[0.0, 0], [math.nan, 0], [1, 1], [0, -math.inf]])
    np.testing.assert_array_equal(formats.without_padding(x, math.nan), x[2:])


# ── One sentence on what is wrong ─────────────────────────────────────────────────────────────────


def broken(**changes):
    content = mmsa()
    content["valid"] |= changes
    return content


def without(*keys):
    content = mmsa()
    for key in keys:
        del content["valid"][key]
    return content


def objects(*items):
    x = np.empty(len(items), object)
    x[:] = items
    return x


LABELS = np.array([0, 1, np.nan, 0, 0, 0])
FRAMES = [np.ones((2, 3))] * 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
        (b"PK\x03\x04...", "zip"),
        (b"\x1f\x8b...", "gzip"),
        (b"\x89HDF\r\n...", "HDF5"),
        (b"hello", "damaged or no pickle"),
        (pickle.dumps(mmsa())[:-900], "cut short"),
        ([1, 2], "has no splits train, valid and test"),
        ({"a": 1}, r"has no splits.*\['a'\]"),
        (mmsa() | {"dev": mmsa_split()}, "has valid and dev: which of them"),
        ({"train": mmsa_split(), "test": mmsa_split()}, "no split 'valid', only train, test"),
        (mmsa() | {"train": mmsa_split(0)}, r"split 'train'.*at least 1.*'audio': 0"),
        (mmsa() | {"train": []}, "split 'train'.*at least 1"),
        (mmsa() | {"train": 3}, "split 'train' is not as any family has it"),
        (mmsa() | {"test": [((1, 2), 3)]}, "split 'test' is not as any family has it"),
        (without("audio"), "split 'valid' has no key 'audio', only raw_text"),
        (without("regression_labels"), "split 'valid' has no key 'regression_labels'"),
        (without("raw_text"), "split 'valid' has no text"),
        (broken(labels=[0.0] * 6), "labels and regression_labels: which of them"),
        (broken(vision=np.zeros((5, 4, 2))), r"split 'valid'.*same N.*'vision': 5"),
        (broken(audio_lengths=[1]), r"same N.*'audio_lengths': 1"),
        (broken(audio_lengths="123456"), "key 'audio_lengths': a str, not N values"),
        (broken(audio_lengths=["1"] * 6), "segment 0 has no number, but a str"),
        (broken(regression_labels=LABELS), "key 'regression_labels': segment 2 has nan"),
        (broken(regression_labels=LABELS - 8), r"segment 0 has -8.0, outside \[-3, 3\]"),
        (broken(regression_labels=["a"] * 6), "segment 0 has no number, but a str"),
        (broken(regression_labels=np.zeros((6, 50))), "segment 0 has no number, but a ndarray"),
        (broken(raw_text="abcdef"), "key 'raw_text': a str, not N values"),
        (broken(raw_text=["a"] * 5 + [None]), "segment 5 is no text: .*NoneType"),
        (broken(raw_text=["a"] * 5 + [2.5]), "segment 5 is no text: .*float"),
        (broken(raw_text=[["a"]] * 5 + [["a", None]]), "segment 5 is no text: .*NoneType"),
        (broken(raw_text=[b"a"] * 5 + [b"\xff"]), "segment 5 is no text"),
        (broken(id=["a"] * 5 + [b"\xff\xff"]), "split 'valid'.*utf-8"),
        (broken(id=["a"] * 5 + [None]), "split 'valid'.*NoneType"),
        (broken(id=["a"] * 5 + [("a", "b")]), "neither text nor a row"),
        (broken(audio=np.zeros((6, 4))), r"split 'valid', key 'audio'"),
        (broken(audio=np.full((6, 4, 3), "x")), "key 'audio': segment 0 is not of numbers"),
        (broken(audio=objects(*FRAMES, None)), "key 'audio': segment 5 is no array"),
        (broken(audio=objects(*FRAMES, np.array([["a"]]))), "segment 5 is not of numbers"),
        (broken(audio=[*FRAMES, np.ones((2, 7))]), r"columns.*'audio', 3.*'audio', 7"),
        (broken(audio=np.zeros((6, 4, 7))), r"columns.*'audio', 3.*'audio', 7"),
    ],
)
def test_each_fault_has_its_own_sentence(tmp_path, content, message):
    path = write(tmp_path / "f", content)
    with pytest.raises(UserError, match=message) as caught:
        data.load("mosi", path)
    assert str(path) in str(caught.value) and str(caught.value).isprintable()


def test_the_wrong_data_set(tmp_path):
    sizes = {"train": 1284, "valid": 229, "test": 686}
    path = write(tmp_path / "f", {s: mmsa_split(n, 1, prefix=s) for s, n in sizes.items()})
    assert "MOSI, 1,284 / 229 / 686" in data.load("mosi", path).description
    with pytest.raises(UserError, match="--dataset mosei.*MOSI, 1,284 / 229 / 686"):
        data.load("mosei", path)


def test_what_is_odd_is_said_and_trained(tmp_path, capsys):
    content = mmsa(vision=np.zeros((6, 4, 20)), vision_lengths=[0] * 6)
    content["train"]["raw_text"] = np.array([""] * 6)
    content["train"]["audio"][..., 1] = 4.0
    content["test"]["id"] = content["train"]["id"]
    del content["valid"]["id"]
    corpus = data.load("mosi", write(tmp_path / "f", content))
    formats.read(tmp_path / "f", tmp_path / "l.csv")  # which is not even there
    train = segments(corpus["train"])
    said = capsys.readouterr().out
    for words in (
        "6 of 6 texts are empty",
        "LEAK: 2 videos are in train and",
        "valid: no ids",
        "has its own text, so",
    ):
        assert words in said, words
    assert "1 of 3 columns of audio" in said and "columns of vision" not in said
    assert "3 columns of audio, no vision" in corpus.description  # and not 20 of FACET's 47
    batch = train.collate([train[i] for i in range(6)])
    assert batch.inputs["v"][1].tolist() == [0] * 6 and batch.inputs["v"][0].shape == (6, 1, 20)
    assert segments(corpus["valid"]).video == [-1] * 6 and train.video == [0, 0, 0, 1, 1, 1]


def test_the_fingerprint_follows_the_content(tmp_path):
    first = data.load("mosi", write(tmp_path / "a", mmsa())).fingerprint
    again = data.load("mosi", write(tmp_path / "b", mmsa(), protocol=2)).fingerprint
    changes = [{"raw_text": ["x"] * 6}, {"id": ["x"] * 6}, {"regression_labels": [0.5] * 6}]
    changes += [{"audio": np.ones((6, 4, 3))}, {"audio_lengths": [3] * 6}]
    others = [data.load("mosi", write(tmp_path / "c", mmsa(**x))).fingerprint for x in changes]
    assert first == again and len({first, *others}) == 6


# ── Damaged and large files ───────────────────────────────────────────────────────────────────────


def try_damaged(count, path):
    """Loads `count` files that are cut or have a few other bytes, half of them where the structure
    is: at the start. Anything but success or a UserError escapes."""
    rng, counts, slowest = random.Random(0), {"loaded": 0, "refused": 0}, 0.0
    label_csv(path.parent / "labels.csv", mult_split())
    mult, misa = (dict.fromkeys(data.SPLITS, part()) for part in (mult_split, misa_split))
    files = [pickle.dumps(x, p) for p in (0, 2, 3, 5) for x in (mmsa(), mult, misa)]
    tokenizer = encoders.word_tokenizer(["sentence number text"], 64)
    for k in range(count):
        content = bytearray(files[k % len(files)])
        if rng.random() < 0.2:
            del content[rng.randrange(len(content)) :]
        for _ in range(rng.randint(1, 6) if content else 0):
            content[rng.randrange(min(rng.choice((400, 9999)), len(content)))] = rng.randrange(256)
        start = time.process_time()
        try:
            corpus = data.load("mosi", write(path, bytes(content)))
            train = segments(corpus["train"], tokenizer=tokenizer)
            batch = train.collate([train[i] for i in range(len(train))])
            assert all(torch.isfinite(batch.inputs[m][0]).all() for m in "av")
            counts["loaded"] += 1
        except UserError as error:
            assert str(error).isprintable()
            counts["refused"] += 1
        slowest = max(slowest, time.process_time() - start)
    return counts, slowest


def test_four_hundred_damaged_files(tmp_path):
    """Each loads or is a UserError, soon, in a process that may not grow by more than 500 MB."""
    counts, slowest = in_child(try_damaged, 400, tmp_path / "f")
    assert sum(counts.values()) == 400 and min(counts.values()) > 40 and slowest < 2


def test_a_large_file_is_mapped_and_not_read(tmp_path):
    """2 GB of audio (a sparse file) open in well under a second within 200 MB."""
    n = 2000
    part = {key: b"(" + b"Va\n" * n + b"l" for key in ("raw_text", "id")}
    part |= {key: b"(" + b"I1\n" * n + b"l" for key in ("regression_labels", "audio_lengths")}
    part["vision"] = array(b"(I%d\nI1\nI1\nt" % n, b"u1", b"B" + struct.pack("<I", n) + bytes(n))
    part["audio"] = array(b"(I%d\nI1000\nI256\nt" % n, b"f4", b"HOLE")
    before, after = file_of(**part).split(b"HOLE")
    with open(tmp_path / "f", "wb") as file:
        file.write(before + b"\x8e" + struct.pack("<Q", n * 1000 * 256 * 4))
        file.seek(n * 1000 * 256 * 4, 1)
        file.write(after)
    took, kilobytes, width = in_child(open_large, tmp_path / "f", megabytes=2500)
    assert width == 256 and took < 1 and kilobytes < 200_000


def open_large(path):
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    part = formats.read(path)["train"]
    formats.describe({"train": part}, path), formats.fingerprint({"train": part})
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return time.process_time() - start, grown, part["audio"].shape[2]


# ── data.py: from the corpus to the model ─────────────────────────────────────────────────────────


class Words:
    """A tokeniser of words, without the tokenizers library."""

    pad_token_id, model_max_length = 9, 512

    def __call__(self, texts, truncation, max_length):
        return {"input_ids": [[1, *range(10, 10 + len(t.split())), 2][:max_length] for t in texts]}


def segments(split, modalities="avl", tokenizer=None):
    return data.Segments(split, tokenizer or Words(), data.Standardizer.fit(split), modalities)


def split_of(x, lengths=None, text=None):
    """A split with the frames x as its audio and with no vision."""
    n = len(x)
    lengths = np.full(n, math.nan) if lengths is None else np.array(lengths, float)
    part = {"id": [str(i) for i in range(n)], "video": None, "raw_text": text or [""] * n}
    part |= {"audio": x, "audio_lengths": lengths, "regression_labels": np.zeros(n, np.float32)}
    return data.Split(part | {"vision": np.zeros((n, 1, 1)), "vision_lengths": np.zeros(n)})


@given(st.integers(0, 2**32 - 1))
def test_standardizer_against_loops(seed):
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
    split, asked = split_of(x), []
    whole = split.frames
    split.frames = lambda m, i: asked.append(int(i)) or whole(m, i)
    first = data.Standardizer.fit(split, seed=1, sample=10)
    assert len(set(asked)) == 10
    assert data.Standardizer.fit(split, seed=1, sample=10).to_dict() == first.to_dict()
    assert data.Standardizer.fit(split, seed=2, sample=10).to_dict() != first.to_dict()
    again = data.Standardizer.from_dict(json.loads(json.dumps(first.to_dict())))
    np.testing.assert_array_equal(again("a", x[0]), first("a", x[0]))


def test_what_is_no_value_is_missing():
    """Infinities, what they become by nan_to_num alone, and what float32 cannot hold."""
    x = np.array([[[1.0], [2.0], [3.0], [-np.inf], [np.nan], [-3.4028235e38], [1e300]]])
    scale = data.Standardizer.fit(split_of(x))
    assert scale.mean["a"] == 2
    np.testing.assert_allclose(scale("a", x[0])[:, 0], [-(1.5**0.5), 0, 1.5**0.5, 0, 0, 0, 0])


@pytest.mark.parametrize("std", (1e-30, 1e-310, 1.0))
def test_what_is_standardised_is_finite(std):
    x = np.array([[[-std], [std], [-std], [std]]])
    scale = data.Standardizer.fit(split_of(x))
    with np.errstate(all="raise"):
        assert np.isfinite(scale("a", np.array([[1e38], [-1e38], [std], [0.0]]))).all()


SYNTHETIC = data.synthetic()


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["avl", "l", "av", "a", "v"]))
def test_collate_pads_on_the_right_and_only_as_needed(seed, modalities):
    rng = np.random.default_rng(seed)
    split = SYNTHETIC["valid"]
    made = segments(split, modalities)
    rows = rng.integers(0, len(split), 5).tolist()
    batch = made.collate([made[i] for i in rows])
    assert batch.y.dtype == torch.float32 and batch.ids == [split.ids[i] for i in rows]
    assert batch.y.tolist() == split.y[rows].tolist()
    for m, (x, lengths) in batch.inputs.items():
        assert x.dtype == (torch.int64 if m == "l" else torch.float32)
        assert lengths.dtype == torch.int64 and x.shape[1] == max(lengths.max(), 1)
        for row, i, n in zip(x, rows, lengths.tolist(), strict=True):
            item = made[i][0][m]
            assert n == len(item) and (n > 0 or m not in modalities or m != "l")
            assert torch.equal(row[:n], item) and (row[n:] == (9 if m == "l" else 0)).all()
            assert n == 0 or m in modalities


def test_a_text_that_is_cut_is_said(capsys):
    words = Words()
    words.model_max_length = 5
    split = split_of(np.ones((3, 1, 1)), text=["a b c d", "a", "a b c d e f g"])
    made = segments(split, tokenizer=words)
    assert [len(ids) for ids in made.tokens] == [5, 3, 5]
    assert "note: 2 texts " in capsys.readouterr().err
    segments(split)
    assert not capsys.readouterr().err


drawn = st.integers(1, 80).flatmap(
    lambda n: st.lists(st.integers(-1, n // 8), min_size=n, max_size=n)
)


@given(drawn, st.integers(1, 9), st.booleans(), st.none() | st.integers(0, 5))
def test_batches_hold_every_segment_once(video, size, whole, seed):
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


@needs_mosi
def test_real_files_and_labels():
    part = formats.read(Path(MOSI) / "mosi_word_valid229.pkl")["valid"]
    split, table = data.Split(part), formats.rows_of(Path(MOSI) / "mosi_label.csv")
    assert np.mean(lengths_of(split, "a")) == pytest.approx(11, abs=0.5)
    assert max(lengths_of(split, "v")) == 44
    found, letters = formats.captions(table, part), str.maketrans("", "", " .,'?!-")
    pairs = [
        [t.lower().translate(letters) for t in two] for two in zip(found, split.text, strict=True)
    ]
    assert np.mean([a == b for a, b in pairs]) > 0.8
    clips = [formats.video_and_clip(id) for id in split.ids]
    shifted = [f"{video}[{int(clip) - 1}]" for video, clip in clips]  # MISA's count from 0
    assert formats.captions(table, part | {"id": shifted}) == found


# ── data.py: synthetic data, and the command ──────────────────────────────────────────────────────


def test_synthetic_data_are_like_real_ones(capsys):
    corpus, again = data.load("synthetic"), SYNTHETIC
    assert "SYNTHETIC" in corpus.description and corpus.path is None
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
    with pytest.raises(UserError, match="takes no file"):
        data.load("synthetic", "f")


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["data.py", *map(str, arguments)])
    return run(data.main)


def test_the_command_explains(tmp_path, capsys, monkeypatch):
    content = mmsa()
    content["train"]["audio"][1, 0, 0] = -np.inf
    content["test"]["id"] = content["train"]["id"]
    path = write(tmp_path / "f", content)
    assert command(monkeypatch, path) == 0
    said = capsys.readouterr().out
    for words in ("(6, 4, 3) float32", "6 segments, 2 videos", "1 -inf", "0 to 4 frames", "LEAK"):
        assert words in said, words
    assert "3 columns of audio, 2 columns of vision" in said
