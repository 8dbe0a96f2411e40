"""Tests of the scripts of this folder, but for benchmark.py's and figures.py's."""

import csv
import itertools
import json
import math
import shutil
import sys

import game
import grid
import numpy as np
import predict
import pytest
import readings
import similarity
import tables  # puts the project's folder on the path
import torch

import plumbing
import train

SHORT = {"d": 16, "epochs": 1}


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close(a, b, atol=1e-5):
    a, b = (torch.as_tensor(x, dtype=torch.float64) for x in (a, b))
    torch.testing.assert_close(a, b, atol=atol, rtol=1e-5)


def quick(**typed):
    return train.Config(dataset="synthetic", **train.PRESETS["synthetic"] | SHORT | typed)


def typed(monkeypatch, module, *argv):
    """The exit code of a script with these words behind its name."""
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, argv)])
    return plumbing.run(module.main)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    return runs / "synthetic-seed0", train.train(quick(runs=str(runs)))


def test_what_a_newcomer_runs_first_listens_to_each_modality(tmp_path):
    """README's first command: without any modality MAE is at least 15 % higher; signs are right."""
    config = train.Config(dataset="synthetic", runs=str(tmp_path), **train.PRESETS["synthetic"])
    whole = train.train(config)["test"]
    assert whole["corr"] > 0.8
    model, split = predict.load(tmp_path / "synthetic-seed0"), train.data.synthetic()["test"]
    for kept in ("vl", "al", "av"):
        assert train.metrics(model.split(split, kept), split.y)["mae"] > 1.15 * whole["mae"]
    good = "the movie was superb the acting was brilliant"
    assert model(good) > 0 > model("the movie was awful the plot was bad")


def test_the_papers_rows_are_the_same_in_both_places():
    for table, dataset in ((2, "mosi"), (3, "mosei"), (4, "mosi")):
        rows = [line.split() for line in tables.PAPER[table].split(";")]
        shown = train.table(dataset, {}).splitlines()[1].split()[1:]
        assert [cell for cell in shown if cell != "–"] in rows


def test_the_csv_holds_what_train_predicts(trained, monkeypatch, capsys):
    folder, results = trained
    assert typed(monkeypatch, predict, folder) == 0
    with open(folder / "predictions.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = ["prediction", "without_a", "without_v", "without_l"]
    assert list(rows[0]) == ["id", "text", "label", *names]
    assert "\nwithout_l  " in capsys.readouterr().out
    column = {name: np.array([float(row[name]) for row in rows]) for name in ["label", *names]}
    assert len({tuple(column[name]) for name in names}) == 4
    test = lambda run, config: train.predict(run, run.segments["test"], config)
    *_, (before, _), (y_hat, y) = similarity.before_and_after(folder, test)
    assert not np.allclose(before, y_hat)
    close(column["prediction"], y_hat, atol=6e-5)
    close(column["label"], y, atol=6e-5)
    assert train.metrics(y_hat, y) == results["test"]


def test_a_segment_alone_is_predicted_as_the_model_does(trained):
    model = predict.load(trained[0])
    text, a = "the movie was superb", normal(0, 3, 12).numpy()
    assert model(text) == model(text.upper()) == model(text, vision=np.zeros((0, 8)))
    assert len({model(text), model(text, a), model(None, a), model("the plot was awful")}) == 4
    frames = torch.from_numpy(model.run.standardizer("a", a))[None]
    ids = model.run.tokenizer(text, return_tensors="pt")["input_ids"]
    inputs = {"a": (frames, torch.tensor([3])), "v": (torch.zeros(1, 1, 8), torch.tensor([0]))}
    inputs["l"] = ids, torch.tensor([ids.shape[1]])
    with torch.no_grad():
        close(model(text, a), model.run.model(inputs, torch.tensor([-1])).prediction.item())


def test_what_cannot_be_predicted_is_said_in_one_sentence(trained, tmp_path, monkeypatch, capsys):
    def says(*argv):
        code = typed(monkeypatch, predict, *argv)
        said = capsys.readouterr()
        assert said.err.count("\n") == (code == 2) and "Traceback" not in said.err
        return said.out if code == 0 else said.err

    folder, number = trained[0], "  (-3 strongly negative, +3 strongly positive)\n"
    assert says(folder, "--text", "good")[5:] == number
    arrays = {"ok": np.ones((3, 12)), "empty": np.ones((0, 12)), "objects": np.array([None])}
    wrong = {"wide": np.ones((3, 13)), "flat": np.array(12.0), "words": np.array([["a"]])}
    wrong["complex"] = 1j * np.ones((3, 12))
    for name, content in (arrays | wrong).items():
        np.save(tmp_path / f"{name}.npy", content)
    whole = (tmp_path / "ok.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(whole[:150])
    (tmp_path / "huge.npy").write_bytes(whole.replace(b"(3, 12), }      ", b"(3, 99999912), }"))
    expected = dict.fromkeys(("ok", "empty"), number) | dict.fromkeys(wrong, "shape (T, 12)")
    expected["absent"] = "absent.npy cannot be read"
    for name in ("ok", "empty", *wrong, "objects", "cut", "huge", "absent"):
        said = says(folder, "--audio", tmp_path / f"{name}.npy")
        assert expected.get(name, f"{name}.npy is no array") in said
    assert "tokenised" in says(folder, "--text", "half a pair: \ud83d")
    assert "takes no file" in says(folder, "--data", "x.pkl")
    config = json.loads((folder / "config.json").read_text())
    changes = {"d": (17, "another model"), "modalities": ("v", "with v, not l")}
    changes |= {"device": ("xpu", number), "alpha": ("much", "--alpha must be")}
    damages = [("config.json", json.dumps(config | {k: v}), why) for k, (v, why) in changes.items()]
    damages += [("config.json", "{", "config.json"), ("model.safetensors", "", "model.safetensors")]
    damages += [(f"bert/{name}.json", "[]", "bert holds no") for name in ("config", "tokenizer")]
    damages += [("standardizer.json", '{"mean": {}, "std": {}}', "standardizer.json is damaged")]
    for i, (name, content, why) in enumerate(damages):
        broken = shutil.copytree(folder, tmp_path / str(i))
        (broken / name).write_text(content)
        assert why in says(broken, "--text", "good")
    corpus = train.data.synthetic()
    corpus.dims["a"] = 13
    monkeypatch.setattr(train.data, "load", lambda *_: corpus)
    assert "'a': 13" in says(folder)


def test_a_table_shows_every_seed_and_what_is_noise(tmp_path, monkeypatch, capsys):
    """From results.json files alone: mean ± std, paired differences, nothing dropped."""
    mae = {"MSFN": [0.8, 0.7, 0.9], "without L^a": [0.9, 0.81, 0.99]}
    for row, seed in itertools.product(mae, range(3)):
        folder = tables.folder_of(tmp_path, row, seed)
        folder.mkdir()
        test = dict.fromkeys(train.COLUMNS, 0.5 + 0.1 * (seed == 1)) | {"mae": mae[row][seed]}
        (folder / "results.json").write_text(json.dumps({"test": test, "seed": seed}))
    argv = ["--table", 4, "--seeds", 3, "--from", tmp_path]
    assert typed(monkeypatch, tables, *argv) == 0
    said = capsys.readouterr().out
    assert "| 0.800 ± 0.100 |" in said and "**without L^a**, 3 seeds" in said
    assert said.count("| seed ") == 6 and "| paper: MSFN | 83.4 |" in said
    assert "| 0.100 ± 0.006 |" in said and "| 0.0 ± 0.0 (within noise) |" in said
    with pytest.raises(SystemExit):
        typed(monkeypatch, tables, *argv, "--", "--no_test")


def test_a_table_resumes_where_it_stopped(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(tables.subprocess, "call", lambda command, **_: calls.append(command) or 0)
    begun = tmp_path / "begun"
    for name, file in (("done", "results.json"), ("begun", "config.json"), ("new", "log")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("{}")
        tables.run(tmp_path / name, ["--alpha", "0"], 1)
    assert [command[2] for command in calls] == ["--resume", "--alpha"]
    (begun / "config.json").write_text(json.dumps(vars(train.Config(alpha=0.0))))
    tables.same_options(begun, ["--dataset", "mosi", "--alpha", "0"])
    with pytest.raises(plumbing.UserError, match=r"alpha = 0.0, not 0.2"):
        tables.same_options(begun, ["--dataset", "mosi"])


def test_a_grid_is_the_product_of_its_axes_and_its_sample_is_seeded(trained):
    sample = grid.trials(20, 1)
    assert sample == grid.trials(20, 1) != grid.trials(20, 2)
    assert len(grid.trials(None, 0)) == math.prod(map(len, grid.GRID.values()))
    assert len({tuple(point.values()) for point in sample}) == 20
    row = grid.write_csv(trained[0].parent)[0]
    assert row["alpha"] == 0.2 and row["valid_mae"] == trained[1]["valid"]["mae"]


def test_readings_change_one_thing_and_show_the_difference(tmp_path, monkeypatch, capsys):
    default = vars(train.Config())
    for name, (_, options) in readings.READINGS.items():
        config = vars(train.parse(options.split())[0])
        changed = {key for key in config if config[key] != default[key]}
        assert len(changed) == len(options.split("--")) - 1, name
    for (row, mae), seed in itertools.product((("default", 0.8), ("cls", 0.9)), range(2)):
        folder = tables.folder_of(tmp_path / "mosi", row, seed)
        folder.mkdir(parents=True)
        split = {"mae": mae + seed / 10, "corr": 0.7}
        plumbing.runs.write_json(
            folder / "results.json", {"epoch": 1, "valid": split, "test": split}
        )
        lines = (json.dumps({"observed": {"h_probe": x}}) for x in (0.9, mae))
        (folder / "metrics.jsonl").write_text("\n".join(lines))
    monkeypatch.setattr(tables, "same_options", lambda *_: None)
    argv = ["--seeds", 2, "--rows", "cls", "--runs", tmp_path]
    typed(monkeypatch, readings, *argv)
    said = capsys.readouterr().out
    assert "| 0.850 ± 0.071 |  | 0.700 ± 0.000 |" in said and "| 0.100 ± 0.000 |" in said
    assert "| cls, Eq. 3: [CLS] | – | 0.90 |" in said
    for path in tmp_path.rglob("results.json"):  # as after --no-test
        path.write_text(json.dumps({"epoch": 1, "valid": json.loads(path.read_text())["valid"]}))
    assert typed(monkeypatch, readings, *argv) == 0
    assert "| 2 seeds | valid MAE | valid − default | valid Corr |\n" in capsys.readouterr().out


@pytest.mark.parametrize("seed", range(10))
def test_cmd_and_violated_triplets_by_loops(seed):
    X, Y = normal(seed, 4, 3).double(), 0.3 * seed * normal(seed + 1, 6, 3).double() + 1
    expected = (X.mean(0) - Y.mean(0)).norm()
    for k in range(2, 6):
        mx, my = ([((f - f.mean()) ** k).mean() for f in Z.T] for Z in (X, Y))
        expected += math.dist(mx, my)
    close(similarity.cmd(X, Y), expected)
    close(similarity.mean_cmd({"a": X, "l": Y}), similarity.mean_cmd({"a": 5 * X, "l": 5 * Y}))
    h, y, found = normal(seed, seed, 5), normal(seed + 2, seed).round(), [(0, 0, 0)]
    for a, p, n in itertools.product(range(seed), repeat=3):
        if a != p and y[a] == y[p] != y[n]:
            d_ap, d_an = math.dist(h[a], h[p]), math.dist(h[a], h[n])
            found.append((d_ap + 0.5 > d_an, d_ap, d_an))
    close(similarity.triplets(h, y, 0.5), np.mean(found[1:] or found, axis=0))


def test_the_probe_tells_apart_what_is_apart_and_nothing_else():
    alike = {m: normal(i, 200, 150) for i, m in enumerate("avl")}
    apart = {m: h + 9 * i for i, (m, h) in enumerate(alike.items())}
    videos = dict.fromkeys("avl", torch.arange(200) // 5)
    assert similarity.probe(apart, videos) == 1
    assert abs(similarity.probe(alike, videos) - 1 / 3) < 0.1
    # 20 times as many of one modality do not make its name a good guess
    few, rows = ({"a": part["a"][:20], "l": part["l"]} for part in (alike, videos))
    unknown = {m: torch.full_like(v, -1) for m, v in rows.items()}
    assert all(abs(similarity.probe(few, v) - 1 / 2) < 0.2 for v in (rows, unknown))


def test_leading_components_hide_a_gap_where_nothing_varies_and_show_one_where_all_does():
    wide = torch.tensor([1.0, 1.0, 1.0, 1e-3])
    videos = dict.fromkeys("al", torch.arange(200) // 5)
    for gap, found in ((0.1, 1 / 2), (30.0, 1)):
        h = {"a": normal(1, 200, 4) * wide, "l": normal(2, 200, 4) * wide + torch.eye(4)[3] * gap}
        h = {m: v + 7 for m, v in h.items()}  # where they lie together is no variance
        kept = similarity.leading(h)
        assert similarity.probe(h, videos) == 1
        assert abs(similarity.probe(kept, videos) - found) < 0.1
        together = torch.cat(list(kept.values()))
        variance = torch.cat(list(h.values())).var(0).sum()
        assert 0.9 <= together.var(0).sum() / variance <= 1
        assert together.shape[1] == (3 if gap < 1 else 1)


def test_triplets_are_of_x_or_h_as_the_configuration_says():
    run = train.prepare(quick())
    of_h, of_x = (similarity.similarity(run, quick(triplet_features=part)) for part in "hx")
    assert of_h["d_an"] != of_x["d_an"] and of_h["h_probe"] == of_x["h_probe"]


def test_cmd_takes_the_place_of_the_game():
    config = quick(alpha=3.0)
    run = train.prepare(config, similarity.CMDInstead)
    batch = next(iter(train.loader(run.segments["valid"], config)))
    output = run.model(batch.inputs, batch.video)
    lengths = {m: n for m, (_, n) in batch.inputs.items()}
    found = run.model.losses(output, batch.y, lengths)
    close(found.adversarial, similarity.mean_cmd({m: output.h[m][lengths[m] > 0] for m in "avl"}))
    rest = config.beta * found.distance + config.gamma * found.reconstruction
    close(found.total, found.task + 3 * found.adversarial + rest)
    found.total.backward()
    assert not any(
        p.grad is not None and p.grad.any() for p in run.model.discriminators.parameters()
    )
    alone = {m: n * (m == "l") for m, n in lengths.items()}
    assert run.model.losses(output, batch.y, alone).adversarial == 0


def test_a_predictor_carries_over_where_the_modalities_share_a_space(trained, monkeypatch, capsys):
    assert typed(monkeypatch, predict, trained[0]) == 0
    without = {
        line.split()[0][-1]: line.split()
        for line in capsys.readouterr().out.splitlines()
        if "without" in line
    }
    space = lambda y: y[:, None] * torch.arange(1.0, 5) + 0.1 * normal(1, len(y), 4)

    def embed(run, config, split="valid"):
        y = {m: normal(i, 30 + i) for i, m in enumerate("avl")}
        return {"h": {m: space(-v if m == "v" else v) for m, v in y.items()}, "y": y}

    monkeypatch.setattr(similarity, "embed", embed)
    run, config, *_ = similarity.before_and_after(trained[0], lambda *_: None)
    found = similarity.carry(run, config)
    for m in "avl":
        assert f"{found[f'without {m}'][0]:.3f}" == without[m][5]
        for k in "avl":
            sign = -1 if "v" in (m, k) and m != k else 1
            assert sign * found[f"{m} → {k}"][1] > 0.95
            assert (found[f"{m} → {k}"][0] < 0.2) == (sign > 0)


def test_the_game_moves_generators_and_discriminators_alone(tmp_path, monkeypatch, capsys):
    seen = []

    def look(model, found, look=game.look):
        seen.append({name: p.detach().clone() for name, p in model.named_parameters()})
        return look(model, found)

    monkeypatch.setattr(game, "look", look)
    monkeypatch.setattr(game, "STEPS", (0, 1))
    monkeypatch.setattr(game, "PENALTIES", (0.0, 10.0))
    argv = ["--steps", 1, "--seeds", 1, "--", "--d", 16]
    assert typed(monkeypatch, game, *argv) == 0
    starts, ends = seen[::2], seen[1::2]
    for start, end in zip(starts, ends, strict=True):
        assert all(torch.equal(p, starts[0][n]) for n, p in start.items())
        moved = {n.split(".")[0] for n, p in start.items() if not torch.equal(p, end[n])}
        assert moved == {"generators", "discriminators"}
    judges = [{n: p for n, p in end.items() if n.startswith("disc")} for end in ends]
    for one, two in itertools.combinations(judges, 2):  # form and penalty reach the game
        assert any(not torch.equal(one[n], two[n]) for n in one)
    assert capsys.readouterr().out.count("\n| ") == 2 + 1 + 4  # head, rule; before; four games
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert typed(monkeypatch, game, "--figure", tmp_path / "game.png") == 2
    assert capsys.readouterr().err.startswith("error: --figure needs matplotlib")
