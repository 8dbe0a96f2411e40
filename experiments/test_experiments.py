"""predict.py, similarity.py, figures.py and benchmark.py, on one short run."""

import csv
import itertools
import json
import math
import os
import pickle
import shutil

import numpy as np
import pytest
import torch

import data
import plumbing
import train
from experiments import benchmark, figures, predict, similarity
from experiments.baselines import cmd
from experiments.converging import mean_cmd
from experiments.test_baselines import close, normal
from plumbing.metrics import metrics
from plumbing.test_runs import quick, small_corpus  # noqa: F401


def typed(module, *argv):
    """The exit code of a module with these words behind its name."""
    return plumbing.run(module.main, [str(word) for word in argv])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    results = train.train(quick(runs, epochs=1), observe=similarity.similarity)
    return runs / "synthetic-seed0", results


@pytest.fixture
def folder(trained, tmp_path):
    return shutil.copytree(trained[0], tmp_path / "run")


# ── predict.py ────────────────────────────────────────────────────────────────────────────────────
def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_csv_holds_what_train_predicts(folder, trained, capsys):
    assert typed(predict, folder) == 0
    rows = rows_of(folder / "predictions.csv")
    names = ["prediction", "without_a", "without_v", "without_l"]
    assert list(rows[0]) == ["id", "text", "label", *names]
    assert "\nwithout_l  " in capsys.readouterr().out
    column = {name: np.array([float(row[name]) for row in rows]) for name in ["label", *names]}
    assert len({tuple(column[name]) for name in names}) == 4
    test = lambda session: train.predict(session, session.segments["test"])
    (before, _), (y_hat, y) = similarity.before_and_after(folder, test)
    assert not np.allclose(before, y_hat)
    close(column["prediction"], y_hat, atol=6e-5)
    close(column["label"], y, atol=6e-5)
    assert metrics(y_hat, y) == trained[1]["test"]


FRAMES = {"audio": normal(0, 5, 12).numpy(), "vision": normal(1, 4, 8).numpy()}
CLIP = {"raw_text": "the movie was superb", **FRAMES}
PART = {key: [value] * 2 for key, value in CLIP.items()}


@pytest.mark.parametrize(
    "content, labeled, message",
    [
        (CLIP, 0, None),
        (CLIP | {"regression_labels": 1.5}, 1, None),
        ({"test": PART | {"regression_labels": [1.0, None]}, "train": PART}, 1, None),
        ({"train": PART, "valid": PART}, None, "no split 'test', only train, valid"),
        (CLIP | {"audio": normal(2, 5, 9).numpy()}, None, "9 columns of audio"),
    ],
)
def test_files_for_prediction(content, labeled, message, folder, tmp_path, capsys):
    """One clip or a test split, labeled or not: a CSV, and metrics only where there are labels."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dataset": "mosi"}))
    path, output = tmp_path / "clip.pkl", tmp_path / "out.csv"
    path.write_bytes(pickle.dumps(content, protocol=4))
    code = typed(predict, folder, "--data", path, "--output", output)
    printed = capsys.readouterr()
    if message:
        assert code == 2 and message in printed.err
        return
    rows, model = rows_of(output), predict.load(folder)
    assert sum(row["label"] != "" for row in rows) == labeled
    assert ("prediction  " in printed.out) == (labeled > 0)
    close(float(rows[0]["prediction"]), model(CLIP["raw_text"], **FRAMES), atol=6e-5)


def test_each_modality_of_a_segment_counts(trained):
    model = predict.load(trained[0])
    text, a = "the movie was superb", normal(0, 3, 12).numpy()
    assert model(text) == model(text.upper()) == model(text, vision=np.zeros((0, 8)))
    assert len({model(text), model(text, a), model(None, a), model("the plot was awful")}) == 4


def test_what_cannot_be_predicted_is_said_in_one_sentence(trained, tmp_path, capsys):
    def says(*argv):
        code = typed(predict, *argv)
        said = capsys.readouterr()
        assert 0 < said.err.count("\n") <= 3 if code else not said.err
        return said.out if code == 0 else said.err

    folder, number = trained[0], "  (-3 strongly negative, +3 strongly positive)\n"
    assert says(folder, "--text", "good")[5:] == number
    arrays = {"ok": np.ones((3, 12)), "empty": np.ones((0, 12))}
    wrong = {"wide": np.ones((3, 13)), "flat": np.array(12.0), "words": np.full((3, 12), "a")}
    for name, content in (arrays | wrong | {"objects": np.array([None])}).items():
        np.save(tmp_path / f"{name}.npy", content)
    whole = (tmp_path / "ok.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(whole[:150])
    (tmp_path / "huge.npy").write_bytes(whole.replace(b"(3, 12), }      ", b"(3, 99999912), }"))
    expected = dict.fromkeys(arrays, number) | dict.fromkeys(wrong, "shape (T, 12)")
    expected |= {name: f"{name}.npy holds no array" for name in ("objects", "cut", "huge")}
    for name, why in (expected | {"absent": "absent.npy"}).items():
        assert why in says(folder, "--audio", tmp_path / f"{name}.npy")
    assert "takes no file" in says(folder, "--data", "x.pkl")
    config = json.loads((folder / "config.json").read_text())
    changes = {"d": (17, "model.safetensors"), "modalities": ("v", "with v, not l")}
    changes |= {"device": ("xpu", number)}
    damages = [("config.json", json.dumps(config | {k: v}), why) for k, (v, why) in changes.items()]
    damages += [("model.safetensors", "", "no trained model"), ("bert/config.json", "[]", "bert")]
    damages += [("standardizer.json", '{"mean": {}, "std": {}}', "standardizer.json is damaged")]
    for i, (name, content, why) in enumerate(damages):
        broken = shutil.copytree(folder, tmp_path / str(i))
        (broken / name).write_text(content)
        assert why in says(broken, "--text", "good")


# ── similarity.py ─────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("seed", range(10))
def test_mean_cmd_and_violated_triplets_by_loops(seed):
    X, Y, Z = normal(seed, 4, 3), normal(seed + 1, 6, 3), normal(seed + 2, 5, 3) + 1
    low, high = (getattr(torch.cat([X, Y, Z]), end)(0).values for end in ("min", "max"))
    X, Y, Z = ((part - low) / (high - low) for part in (X, Y, Z))
    expected = (cmd(X, Y) + cmd(X, Z) + cmd(Y, Z)) / 3
    close(mean_cmd({"a": 5 * X, "v": 5 * Y, "l": 5 * Z}), expected)
    h, y, wrong = normal(seed, seed, 5), normal(seed + 2, seed).round(), []
    for a, p, n in itertools.product(range(seed), repeat=3):
        if a != p and y[a] == y[p] != y[n]:
            wrong.append(math.dist(h[a], h[p]) + 0.5 > math.dist(h[a], h[n]))
    close(similarity.violated(h, y, 0.5), np.mean(wrong or [0]))


def test_the_probe_tells_apart_what_is_apart_and_nothing_else():
    alike = {m: normal(i, 200, 150).float() for i, m in enumerate("avl")}
    apart = {m: h + 9 * i for i, (m, h) in enumerate(alike.items())}
    videos = dict.fromkeys("avl", torch.arange(200) // 5)
    assert similarity.probe(apart, videos) == 1
    assert abs(similarity.probe(alike, videos) - 1 / 3) < 0.1
    # 20 times as many of one modality do not make its name a good guess
    few, rows = ({"a": part["a"][:20], "l": part["l"]} for part in (alike, videos))
    unknown = {m: torch.full_like(v, -1) for m, v in rows.items()}
    assert all(abs(similarity.probe(few, v) - 1 / 2) < 0.2 for v in (rows, unknown))


def test_present_segments_are_embedded_and_triplets_are_of_x_or_h():
    session = train.Session(quick())
    valid = session.corpus["valid"]
    heard = [float(y) for i, y in enumerate(valid.y) if len(valid.frames("a", i))]
    features = similarity.embed(session)
    assert len(features["h"]["a"]) == len(heard) < len(valid)
    assert sorted(features["y"]["a"].tolist()) == sorted(heard)
    of_h = similarity.similarity(session)
    session.config.triplet_features = "x"
    of_x = similarity.similarity(session)
    assert of_h["violated"] != of_x["violated"] and of_h["h_probe"] == of_x["h_probe"]


def test_before_training_and_at_the_best_epoch(trained, capsys):
    assert typed(similarity, trained[0]) == 0
    before, after = capsys.readouterr().out.splitlines()[-2:]
    observed = json.loads((trained[0] / "metrics.jsonl").read_text())["observed"]
    numbers = [f"{observed[m]:.2f}" for m in similarity.COLUMNS]
    assert after.strip("| ").split(" | ")[1:] == numbers != before.strip("| ").split(" | ")[1:]


FIRST = os.environ.get("MSFN_FIRST_RUN")


@pytest.mark.skipif(FIRST is None, reason="MSFN_FIRST_RUN names no run of README's first command")
def test_readmes_first_run_listens_to_each_modality():
    """Without any modality MAE is at least 15 % higher; opposite sentences have opposite signs."""
    model, split = predict.load(FIRST), data.synthetic()["test"]
    mae = {m: metrics(model.split(split, m), split.y)["mae"] for m in ("avl", "vl", "al", "av")}
    assert min(mae["vl"], mae["al"], mae["av"]) > 1.15 * mae["avl"]
    good = "the movie was superb the acting was brilliant"
    assert model(good) > 0 > model("the movie was awful the plot was bad")


# ── figures.py ────────────────────────────────────────────────────────────────────────────────────
def test_a_run_becomes_a_picture(folder):
    pytest.importorskip("matplotlib")
    assert typed(figures, folder) == 0
    assert (folder / "features.png").read_bytes()[:4] == b"\x89PNG"


def test_before_and_after_share_one_projection_and_one_scale():
    """Points in a plane keep all their distances, also those from before to after."""
    pytest.importorskip("matplotlib")
    plane = torch.linalg.qr(torch.randn(7, 2).double()).Q.T
    line, flat = plane[:1] * torch.randn(5, 1), torch.randn(4, 2).double() @ plane
    axes = figures.Figure().subplots(1, 2)
    figures.draw(axes, [{"a": 3 + line}, {"a": 3 + flat}], {"a": {"color": "red"}})
    drawn = [point for axis in axes for point in axis.collections[0].get_offsets()]
    pairs = zip([*line.tolist(), *flat.tolist()], drawn, strict=True)
    for (one, point_one), (two, point_two) in itertools.combinations(pairs, 2):
        assert math.isclose(math.dist(one, two), math.dist(point_one, point_two))
    (x, y), others = ((axis.get_xlim(), axis.get_ylim()) for axis in axes)
    assert others == (x, y) and math.isclose(x[1] - x[0], y[1] - y[0])
    assert all(x[0] < px < x[1] and y[0] < py < y[1] for px, py in drawn)


# ── benchmark.py ──────────────────────────────────────────────────────────────────────────────────
def test_the_floor_is_the_encoder_alone():
    session = train.Session(quick())
    before = {name: p.detach().clone() for name, p in session.model.named_parameters()}
    (batch, *_) = train.loader(session.segments["train"], session.config)
    benchmark.floor(session, batch)
    for name, p in session.model.named_parameters():
        assert torch.equal(p, before[name]) != name.startswith("embeddings.l"), name


def test_benchmark_prints_its_table(capsys):
    assert typed(benchmark, "--repeats", 1, "--", "--d", 16, "--batch-size", 100) == 0
    assert "| step / floor | " in capsys.readouterr().out
    for wrong in (["--repeats", 0], ["--", "--modalities", "a"]):
        assert typed(benchmark, *wrong) == 2
