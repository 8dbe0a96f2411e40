"""The families of files that people bring, and one sentence on what is wrong with one."""

import math
import pickle
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import decoders, models
from transformers import PreTrainedTokenizerBase

import data
from plumbing import UserError, captions, encoders, formats
from plumbing.test_pickles import limits, needs_limits, write


def mmsa_split(n: int = 6, prefix: str = "video") -> dict:
    """MMSA's keys; padding on the right, lengths 0..4, segment i is a clip of one of two videos."""
    rng = np.random.default_rng(len(prefix))
    part = {
        "raw_text": np.array([f"SENTENCE NUMBER {i}" for i in range(n)]),
        "id": np.array([f"{prefix}{i * 2 // n}$_${i}" for i in range(n)]),
        "regression_labels": rng.uniform(-3, 3, n).astype(np.float32),
        "annotations": ["Neutral"] * n,
    }
    for key, width in (("audio", 3), ("vision", 2)):
        lengths = (np.arange(n) * 2 + width) % 5
        part[key] = rng.normal(size=(n, 4, width)).astype(np.float32) + 5
        part[key][np.arange(4) >= lengths[:, None]] = 0
        part[f"{key}_lengths"] = lengths.tolist()
    return part


def mmsa(**changes: Any) -> dict:
    """A file of MMSA's family; each split's videos have their own names."""
    return {name: mmsa_split(prefix=name) | changes for name in data.SPLITS}


Y = np.array([1.2, -0.4, 3, 0, -2.2, 1.8])


def table(first: int = 0) -> str:
    """A CSV with the text of `mult_split`; its clips count from `first`."""
    rows = [f"v{i // 3},{i + first},text {i},{y},{10 + 10.25 * i}" for i, y in enumerate(Y)]
    return "\n".join(["video_id,clip_id,text,label,start", *rows, ""])


def mult_split(ids: list | np.ndarray | None = None) -> dict:
    part = mmsa_split()
    return {
        "vision": part["vision"].astype(np.float64),
        "audio": np.asfortranarray(part["audio"]),
        "text": np.zeros((6, 4, 5)),
        "labels": Y.reshape(6, 1, 1),
        "id": [f"v{i // 3}[{i}]".encode() for i in range(6)] if ids is None else ids,
    }


def misa_split(actual_words: bool = False) -> list:
    samples = []
    for i, y in enumerate(Y):
        words = f"SENTENCE NUMBER {i}".split()
        inputs = (words, np.ones((3, 47)), np.ones((3, 74)))
        if actual_words:
            inputs = (np.arange(3), *inputs[1:], words)
        samples.append((inputs, y.reshape(1, 1), f"v{i // 3}[{i}]"))
    return samples


def lengths_of(split: data.Split, m: str) -> list[int]:
    return [len(split.frames(m, i)) for i in range(len(split))]


# ── Every family ──────────────────────────────────────────────────────────────────────────────────


def test_mmsa(tmp_path: Path):
    content = mmsa()
    corpus = data.load("mosi", write(tmp_path / "any.name", content))
    assert corpus.widths == {"a": 3, "v": 2} and corpus.path == str(tmp_path / "any.name")
    for name in data.SPLITS:
        split, part = corpus[name], content[name]
        assert split.text == part["raw_text"].tolist() and split.ids == part["id"].tolist()
        assert split.video == [f"{name}{i // 3}" for i in range(6)]
        np.testing.assert_array_equal(split.y, part["regression_labels"])
        for m, key in data.FRAMES.items():
            for i, n in enumerate(part[f"{key}_lengths"]):
                np.testing.assert_array_equal(split.frames(m, i), part[key][i, :n])


TRIPLES = np.array([[f"v{i // 3}", f"{10 + 10.25 * i}", "99"] for i in range(6)])


@pytest.mark.parametrize("first", (0, 1))
@pytest.mark.parametrize("ids", (None, TRIPLES, TRIPLES.astype("S")))
def test_mult_takes_its_text_from_a_csv(tmp_path: Path, capsys, ids: np.ndarray, first: int):
    path = write(tmp_path / "f.pkl", dict.fromkeys(data.SPLITS, mult_split(ids)))
    (tmp_path / "._label.csv").write_bytes(b"\0")  # macOS writes such files
    (tmp_path / "MOSI Label.CSV").write_text(table(first))
    split = data.load("mosi", path)["valid"]
    assert split.text == [f"text {i}" for i in range(6)]
    assert split.video == [f"v{i // 3}" for i in range(6)]
    np.testing.assert_allclose(split.y, Y, rtol=1e-6)
    assert "train, valid, test: the text comes from" in capsys.readouterr().out


@pytest.mark.parametrize("folder", (True, False))
def test_misa(tmp_path: Path, folder: bool):
    """Words are a list, or one string, or stand last."""
    parts = {"train": misa_split(), "dev": misa_split(), "test": misa_split(actual_words=True)}
    parts["train"] = [(("so good", *x[1:]), label, id) for x, label, id in parts["train"]]
    path = tmp_path if folder else write(tmp_path / "f", parts)
    for name, part in parts.items():
        write(tmp_path / f"{name}.{'Pickle' if name == 'dev' else 'pkl'}", part)
    corpus = data.load("mosi", path)
    assert corpus.widths == {"a": 74, "v": 47} and corpus["valid"].video[3] == "v1"
    assert [corpus[s].text[2] for s in data.SPLITS] == ["so good", *["SENTENCE NUMBER 2"] * 2]
    np.testing.assert_allclose(corpus["valid"].y, Y, rtol=1e-6)
    assert lengths_of(corpus["valid"], "a") == [3] * 6


VECTORS, NESTED = np.ones((6, 3)), np.ones((6, 4, 3)).tolist()


@pytest.mark.parametrize(("audio", "steps"), [(VECTORS, 1), ([*VECTORS], 1), (NESTED, 4)])
def test_a_vector_is_one_frame(audio: Any, steps: int):
    part = formats.checked(mmsa_split() | {"audio": audio}, "here")
    assert [x.shape for x in part["audio"]] == [(steps, 3)] * 6


@pytest.mark.parametrize("keys", (["audio"], ["vision", "vision_lengths"], ["audio", "vision"]))
def test_a_modality_that_no_split_has_is_empty(tmp_path: Path, capsys, keys: list[str]):
    content = {s: {k: v for k, v in part.items() if k not in keys} for s, part in mmsa().items()}
    corpus = data.load("mosi", write(tmp_path / "f", content))
    for m, key in data.FRAMES.items():
        assert (lengths_of(corpus["test"], m) == [0] * 6) == (key in keys)
        assert (f"no {key}" in corpus.description) == (key in keys)
    assert f"train, valid, test: no key {keys[0]!r}" in capsys.readouterr().out
    scale = data.Standardizer.fit(data.Split(mmsa_split() | {"video": None}))  # of a run with both
    x, *_ = data.Segments(corpus["test"], encoders.word_tokenizer(["so"], 64), scale)[1]
    assert x["a"].shape[1] == 3 and x["v"].shape[1] == 2


def word_pieces(words: str) -> PreTrainedTokenizerBase:
    tokenizer = encoders.word_tokenizer([words], 64)
    ids = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words.split()])}
    tokenizer.backend_tokenizer.model = models.WordPiece(ids, unk_token="[UNK]")
    tokenizer.backend_tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def test_token_ids_without_text(tmp_path: Path, capsys):
    """They are used if the tokenizer has their vocabulary: then they survive decoding."""
    content = {name: mmsa_split(30, name) for name in data.SPLITS}
    words = " ".join(["sen ##ten ##ce num ##ber", *map(str, range(29))])  # 29 is unknown
    tokenizer = word_pieces(words)
    for part in content.values():
        texts = [text.lower() for text in part.pop("raw_text")]
        padded = tokenizer(texts, padding="max_length", max_length=9)
        rows = [padded["input_ids"], padded["attention_mask"], padded["attention_mask"]]
        part["text_bert"] = np.array(rows, np.float32).transpose(1, 0, 2)  # (N, 3, L)
    corpus = data.load("mosi", write(tmp_path / "f", content))
    split, scale = corpus["test"], data.Standardizer.fit(corpus["test"])
    assert data.Segments(split, tokenizer, scale).tokens == tokenizer(texts)["input_ids"]
    assert "token ids of text_bert" in capsys.readouterr().out
    for other in ("sen", f"{words} senten"):
        with pytest.raises(UserError, match="another vocabulary: only 0%"):
            data.Segments(split, word_pieces(other), scale)
    assert data.Segments(split, word_pieces("sen"), scale, "av").tokens == [[]] * 30
    content["test"]["text_bert"][0, 0, 1] = 99  # beyond the vocabulary, in one of 30 sentences
    other = data.load("mosi", write(tmp_path / "f", content))
    assert other.fingerprint != corpus.fingerprint
    with pytest.raises(UserError, match="another vocabulary"):
        data.Segments(other["test"], tokenizer, scale)
    content["test"]["text_bert"][0, 0, 1] = math.nan
    with pytest.raises(UserError, match="'test', key 'text_bert', segment 0: not ids, mask and"):
        data.load("mosi", write(tmp_path / "f", content))


def test_labels_of_seven_numbers(tmp_path):
    """Sentiment and six emotions; not classes, probabilities, nor seven emotions."""
    emotions = np.array([[0, 1 / 3, 2, 0, 0, 3]] * 6)
    labels = np.column_stack([Y, emotions])
    file = write(tmp_path / "f.pkl", mmsa_split() | {"regression_labels": labels})
    part = formats.read(file)["test"]
    np.testing.assert_array_equal(part["regression_labels"], Y.astype(np.float32))
    others = [np.eye(7)[:6], np.full((6, 7), 1 / 7), np.column_stack([abs(Y).round(), emotions])]
    for labels in (*others, np.column_stack([Y, emotions - 1]), np.column_stack([Y, emotions + 1])):
        with pytest.raises(UserError, match=r"look like classes|emotions are in"):
            formats.read(write(tmp_path / "f.pkl", mmsa_split() | {"regression_labels": labels}))


CLIP = {"raw_text": "so GOOD", "audio": np.ones((7, 3)), "vision": np.ones(2)}
SOME = [None, 1, 2.5, math.nan, -3, 0]


@pytest.mark.parametrize(
    ("content", "labels"),
    [
        (mmsa_split() | {"regression_labels": SOME}, np.array(SOME, float)),
        (misa_split(), Y),
        (CLIP | {"regression_labels": 1.5, "id": "v$_$1", "audio_lengths": 7}, [1.5]),
        ({"test": CLIP}, [math.nan]),
    ],
)
def test_files_for_prediction(tmp_path: Path, content: dict | list, labels: list):
    """A test split alone, or one split or clip without a name; y is NaN where there is no label."""
    corpus = data.load_any(write(tmp_path / "my clips.pkl", content))
    split = corpus["test"]
    assert corpus.name == "my clips" and set(corpus.splits) == {"test"}
    np.testing.assert_allclose(split.y, labels, rtol=1e-6)
    if len(split) == 1:
        assert split.text == ["so GOOD"] and lengths_of(split, "a") == [7]
    with pytest.raises(UserError, match="no split 'train', only test"):
        data.load("mosi", tmp_path / "my clips.pkl")


SIZES = [(2_194, 93, "f"), (2_195, 93, "mosi"), (2_199, 93, "mosi"), (2_200, 93, "f")]
SIZES += [(2_199, 92, "f"), (2_199, 94, "f"), (2_199, 0, "f"), (22_856, 93, "f")]
SIZES += [(22_856, 2_999, "f"), (22_856, 3_000, "mosei"), (23_500, 4_000, "mosei")]


@pytest.mark.parametrize(("n", "videos", "name"), SIZES)
def test_the_name_of_a_corpus_comes_from_its_size(n: int, videos: int, name: str):
    """Segments and videos of all splits; 0 videos: the file has no ids."""
    names = [str(i % videos) for i in range(n)] if videos else None
    parts = {"train": {"id": [""] * (n - 9), "video": names and names[:-9]}}
    parts["test"] = {"id": [""] * 9, "video": names and names[-9:]}
    assert formats.corpus_name(parts, "f.pkl") == name
    other = formats.corpus_name(parts, "MOSI.pkl")  # a file's name proves nothing
    assert other == ("another corpus" if name == "f" else name)


def test_the_wrong_data_set(tmp_path: Path):
    content = mmsa() | {"train": mmsa_split(2_187, "train")}
    content["train"]["id"] = [f"v{i % 89}$_${i}" for i in range(2_187)]
    with pytest.raises(UserError, match=r"--dataset mosei.*MOSI, 2,187 / 6 / 6"):
        data.load("mosei", write(tmp_path / "f", content))


# ── Tables of text ────────────────────────────────────────────────────────────────────────────────

TABLE, HEADER = table(), table().partition("\n")[0]


def texts(tmp_path: Path, table: str | bytes, **changes: Any) -> list[str]:
    path, csv_path = write(tmp_path / "f", {"train": mult_split() | changes}), tmp_path / "l"
    csv_path.write_bytes(table if isinstance(table, bytes) else table.encode())
    return formats.read(path, csv_path)["train"]["raw_text"]


@pytest.mark.parametrize(
    ("table", "text"),
    [
        (TABLE.replace("text ", "电影，é ").encode("utf-8-sig"), "电影，é 5"),
        (TABLE.replace("text ", "电影，é ").encode("utf-16"), "电影，é 5"),
        (TABLE.replace("text ", "电影很好 ").encode("gb18030"), "电影很好 5"),
        (TABLE.replace("text ", "it’s a café ").encode("cp1252"), "it’s a café 5"),
        (TABLE.replace(",", ";").replace("1.8;", "1,8;"), "text 5"),
        (TABLE.replace(",", "\t"), "text 5"),
        (TABLE.replace(HEADER, " VIDEO_ID , Clip  ID,Text,Label,other"), "text 5"),
        (TABLE.replace("\n", ",\r\n").replace(",3,", ",03,"), "text 5"),
        (TABLE + "w,9,no label,,\n,,,,\n\n", "text 5"),
        (TABLE.replace("text 5,1.8", '"so, ""good""\n5",'), 'so, "good"\n5'),
    ],
)
def test_tables_that_are_read(tmp_path: Path, table: str | bytes, text: str):
    assert texts(tmp_path, table)[5] == text


COLUMNS = "columns needed: video_id, clip_id, text, label"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("no,such,text\n1,2,3\n", f"no column video_id .{COLUMNS}; found: no, such, text"),
        ("", f"no column video_id .{COLUMNS}"),
        (TABLE + "v,1\n", f"line 8 .{COLUMNS}; found: {HEADER.replace(',', ', ')}.: .*cells"),
        (TABLE + "v,9,so, good,1,2\n", "line 8 .*more or fewer cells"),
        (TABLE + "v,9,so,good,1\n", "line 8 .*could not convert string to float: 'good'"),
        (TABLE.replace("v1,4", "w,4"), r"in .*/l: 1 segments have no row, such as v1\[4\]"),
        (TABLE.replace("-2.2", "-2.0"), r"in .*/l: 1 labels differ, such as that of v1\[4\]"),
        (TABLE.encode() + b"v,9,\xc3\xa4\xc3\xa4 \xff,,\n", "cannot be read as a CSV: 'utf-8"),
        (TABLE + "v,9," + "a" * 200_000, "cannot be read as a CSV: field larger"),
    ],
)
def test_tables_that_are_wrong(tmp_path: Path, table: str | bytes, message: str):
    with pytest.raises(UserError, match=message):
        texts(tmp_path, table)


def test_whether_clips_count_from_0_or_1_is_never_guessed(tmp_path: Path):
    """Labels decide; without labels, both readings must not be possible."""
    both = TABLE + "v0,3,text 3,0.0,\nv1,6,last,,\n"
    assert texts(tmp_path, both)[5] == "text 5"
    with pytest.raises(UserError, match="unknown whether clips count from 0 or from 1"):
        texts(tmp_path, both, labels=[None] * 6)
    assert texts(tmp_path, TABLE, labels=[None] * 6)[5] == "text 5"


# ── Where a segment lies, and in which video ──────────────────────────────────────────────────────

VIDEOS = {
    "03bSnISJMiM$_$11": "03bSnISJMiM",
    "_0efYOjQYRc[3]": "_0efYOjQYRc",
    "6_0THN4chvY_12": "6_0THN4chvY",
    "abcdefgh_12": "abcdefgh_12",  # eleven characters: a video of YouTube, without a clip
    "03bSnISJMiM[1.5:20.25]": "03bSnISJMiM",
    "-HwX2H8Z4hY": "-HwX2H8Z4hY",
    "a$_$b[1]$_$2": "a$_$b[1]",
}


@pytest.mark.parametrize("id", VIDEOS)
def test_the_video_in_an_id(id: str):
    assert captions.video_and_clip(id)[0] == VIDEOS[id]


@pytest.mark.parametrize("left", (True, False))
@pytest.mark.parametrize("length", (math.nan, 0, 2, 5, 6, -1))
def test_true_length(length: float, left: bool):
    """Cut to a possible length, or else trim zeros from the side that has more."""
    for n in range(6):
        x = np.zeros((5, 2))
        x[5 - n if left else 0 : 5 if left else n] = np.arange(1, n + 1)[:, None]
        result = formats.without_padding(x, length)
        expected = length if 0 <= length <= 5 else n
        assert len(result) == expected
        if 0 < expected <= n:
            start = 5 - expected if left and n < 5 else 0
            np.testing.assert_array_equal(result, x[start : start + expected])


def test_zeros_and_missing_values_inside():
    x = np.array([[0.0, 0], [math.nan, 0], [1, 1], [0, -math.inf]])
    np.testing.assert_array_equal(formats.without_padding(x, math.nan), x[2:])
    np.testing.assert_array_equal(formats.without_padding(x[::-1], 3), x[:0:-1])  # as the file says
    assert len(formats.without_padding(0 * x[:1], 1)) == 1  # MISA's standardized single word


# ── One sentence on what is wrong ─────────────────────────────────────────────────────────────────


def broken(without: str = "", **changes: Any) -> dict:
    content = mmsa()
    content["valid"] |= changes
    content["valid"].pop(without, None)
    return content


FRAMES = [np.ones((2, 3))] * 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps(mmsa())[:-900], "cut short"),
        ({"a": 1}, r"has no splits.*\['a'\]"),
        (mmsa() | {"dev": mmsa_split()}, "has valid and dev: keep the one that is"),
        (mmsa() | {"train": mmsa_split(0)}, r"split 'train'.*at least 1.*'audio': 0"),
        (broken("audio"), r"columns of 'audio' differs .*without 'audio'\): \[1, 3\]"),
        (broken("regression_labels"), "split 'valid' has no label of segment 0"),
        (broken("raw_text"), "has no text: name a CSV of video_id, clip_id, text, label with --l"),
        (broken(vision=np.zeros((5, 4, 2))), r"split 'valid'.*same N.*'vision': 5"),
        (broken(audio_lengths=["x"] * 6), "'valid', key 'audio_lengths', segment 0: could not"),
        (broken(regression_labels=[0] * 5 + [-8]), r"segment 5: \[-8.0\]: a sentiment is in \[-3"),
        (broken(regression_labels=[0] * 5 + [[0] * 7]), r"'valid' does not have the form"),
        (broken(raw_text=[["a"]] * 5 + [["a", 2.5]]), "'raw_text', segment 5: not text.*float"),
        (broken(id=["a"] * 5 + [("a", "b")]), "'id', segment 5: neither text nor a row"),
        (broken(audio=[1.0] * 6), r"'audio', segment 0: not numbers \(T, d\).*shape \(\)"),
        (broken(audio=np.full((6, 4, 3), "x")), r"segment 0: .* shape \(4, 3\) .* type <U1"),
        (broken(audio=np.zeros((6, 4, 0))), r"segment 0: .* shape \(4, 0\)"),
        (broken(audio=[*FRAMES, np.ones((2, 7))]), r"columns of 'audio' differs.*\[3, 7\]"),
    ],
)
def test_each_fault_has_its_own_sentence(tmp_path: Path, content: Any, message: str):
    path = write(tmp_path / "f", content)
    with pytest.raises(UserError, match=message) as caught:
        data.load("mosi", path)
    assert str(path) in str(caught.value) and str(caught.value).isprintable()


def test_what_is_odd_is_printed_and_trained(tmp_path: Path, capsys):
    content = mmsa(vision=np.zeros((6, 4, 20)), vision_lengths=[0] * 6)
    content["train"]["raw_text"] = np.array([""] * 6)
    content["test"]["id"] = content["train"]["id"]
    del content["valid"]["id"]
    corpus = data.load("mosi", write(tmp_path / "f", content), tmp_path / "l.csv")  # is not read
    out = capsys.readouterr().out
    assert "train: 6 of 6 texts are empty" in out
    assert "LEAK: 2 videos are in train and in test" in out
    assert "valid: no ids" in out and "has its own text, so" in out
    assert "3 columns of audio, no vision" in corpus.description


def test_the_fingerprint_follows_the_content(tmp_path: Path):
    first = data.load("mosi", write(tmp_path / "a", mmsa())).fingerprint
    again = data.load("mosi", write(tmp_path / "b", mmsa(), protocol=2)).fingerprint
    changes = [{"raw_text": ["x"] * 6}, {"id": ["x"] * 6}, {"regression_labels": [0.5] * 6}]
    changes += [{"audio": np.ones((6, 4, 3))}, {"audio_lengths": [3] * 6}]
    others = [data.load("mosi", write(tmp_path / "c", mmsa(**x))).fingerprint for x in changes]
    assert first == again and len({first, *others}) == 6


# ── Damaged files ─────────────────────────────────────────────────────────────────────────────────


@needs_limits
def test_four_hundred_damaged_files(tmp_path: Path):
    """Cut, or with a few other bytes, half of them at the start, where the structure is: each loads
    or is a UserError, soon and within 500 MB."""
    rng, loaded = random.Random(0), 0
    (tmp_path / "labels.csv").write_text(table())
    mult, misa = (dict.fromkeys(data.SPLITS, part()) for part in (mult_split, misa_split))
    files = [pickle.dumps(x, p) for p in (0, 2, 3, 5) for x in (mmsa(), mult, misa)]
    with limits():
        for k in range(400):
            content = bytearray(files[k % len(files)])
            if rng.random() < 0.2:
                del content[rng.randrange(len(content)) :]
            for _ in range(rng.randint(1, 6) if content else 0):
                place = rng.randrange(min(rng.choice((400, 9999)), len(content)))
                content[place] = rng.randrange(256)
            start = time.process_time()
            try:
                split = data.load("mosi", write(tmp_path / "f", bytes(content)))["train"]
                scale = data.Standardizer.fit(split)
                frames = [scale(m, split.frames(m, i)) for m in "av" for i in range(len(split))]
                assert all(np.isfinite(x).all() for x in frames)
                loaded += 1
            except UserError as error:
                assert str(error).isprintable()
            assert time.process_time() - start < 2
    assert 40 < loaded < 360
