"""Tests of figures.py and benchmark.py, on short runs and small batches."""

import json
import math
import sys
from itertools import combinations

import benchmark  # puts the project's folder on the path
import pytest
import similarity
import torch

import data
import plumbing
import train

QUICK = train.PRESETS["synthetic"] | {"dataset": "synthetic", "d": 16, "epochs": 1, "test": False}


def code(monkeypatch, module, *argv):
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, argv)])
    return plumbing.run(module.main)


@pytest.mark.parametrize(("modalities", "panels"), [("avl", 6), ("l", 5)])
def test_a_run_becomes_three_pictures(modalities, panels, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    import figures

    config = train.Config(**QUICK, runs=str(tmp_path), name="run", modalities=modalities)
    train.train(config, observe=similarity.similarity)
    log = tmp_path / "run" / "metrics.jsonl"
    assert code(monkeypatch, figures, log.parent) == 0
    for name in ("curves", "features", "predictions"):
        assert (log.parent / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    entry = json.loads(log.read_text())
    assert len(figures.curves([entry]).axes) > panels
    del entry["observed"]  # as of a run of train.py
    assert len(figures.curves([entry]).axes) == panels
    log.write_text("{}")
    assert code(monkeypatch, figures, log.parent) == 2


def test_before_and_after_share_one_projection_and_one_scale():
    """Of what lies in a plane all distances are kept, those from before to after, too."""
    pytest.importorskip("matplotlib")
    import figures

    plane = torch.linalg.qr(torch.randn(7, 2).double()).Q.T
    line, flat = plane[:1] * torch.randn(5, 1), torch.randn(4, 2).double() @ plane
    axes = figures.Figure().subplots(1, 2)
    figures.draw(axes, [{"a": 3 + line}, {"a": 3 + flat}], {"a": {"color": "red"}})
    shown = [point for axis in axes for point in axis.collections[0].get_offsets()]
    pairs = zip([*line.tolist(), *flat.tolist()], shown, strict=True)
    for (one, shown_one), (two, shown_two) in combinations(pairs, 2):
        assert math.isclose(math.dist(one, two), math.dist(shown_one, shown_two))
    (x, y), others = ((axis.get_xlim(), axis.get_ylim()) for axis in axes)
    assert others == (x, y) and math.isclose(x[1] - x[0], y[1] - y[0])
    assert all(x[0] < px < x[1] and y[0] < py < y[1] for px, py in shown)


def test_a_csv_becomes_a_file_of_mosis_shape(tmp_path):
    labels, head = tmp_path / "label.csv", "\ufeffmode,video_id,clip_id,text,label,start,end\n"
    lines = [f"{mode},v,1,{'so ' * 60}GOOD,2,1.5,3.5\n" for mode in data.SPLITS]
    labels.write_text(head + "".join(lines) + "test,v,2,BAD,-1,3,99\n", "utf-8")
    for shapes, lengths in (("aligned", [50, 1, 50, 1]), ("unaligned", [60, 375, 60, 500])):
        test = data.load("mosi", benchmark.mosi_shaped(labels, shapes, tmp_path))["test"]
        assert [len(test.frames(m, i)) for m in "av" for i in (0, 1)] == lengths
        assert test.text[1] == "BAD" and test.y.tolist() == [2, -1]
    labels.write_text(head + "test,v,1,BAD,much,0,1\n")
    with pytest.raises(plumbing.UserError, match="label.csv is no CSV of MOSI's texts"):
        benchmark.mosi_shaped(labels, "aligned", tmp_path)


def test_the_floor_is_the_encoder_alone_and_the_rest_is_without_it():
    config = train.Config(**QUICK)
    run = train.prepare(config)
    (batch,) = benchmark.some_batches(run, config, 1)
    named = dict(run.model.named_parameters())
    benchmark.embed(run, config, batch, "l")
    assert all((p.grad is None) != name.startswith("embeddings.l") for name, p in named.items())
    run.model.zero_grad()
    benchmark.after_embedding(run, config, batch)
    assert all((p.grad is None) == name.startswith("embeddings.") for name, p in named.items())


def test_real_positions_by_hand():
    packed, _ = train.encoders.pretrained("small", ["good"])
    packed.row_length = 4  # three tokens and what the empty sentence attends to; two tokens
    batches = [data.Batch({"l": (torch.zeros(3, 5), torch.tensor([3, 0, 2]))}, None, None, [])]
    assert benchmark.real_positions(batches, packed) == 5 / 8
    assert benchmark.real_positions(batches, packed.encoder) == 5 / 15


def test_benchmark_prints_its_tables(monkeypatch, capsys):
    options = ("--repeats", 1, "--no-growth", "--", "--d", 16, "--batch-size", 300)
    assert code(monkeypatch, benchmark, *options) == 0
    lines = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    rows = {line[0]: line[1] for line in lines if len(line) == 2}
    assert len(rows) == 14 and float(rows["step / floor"]) > 0
    assert 0 < float(rows["of an epoch, outside the steps"].rstrip("% ")) < 100
    monkeypatch.setattr(benchmark, "SIZES", (2, 3))
    config = train.Config(**QUICK)
    table = benchmark.growth(train.prepare(config), config) + benchmark.triplets((5, 6))
    assert table.count("\n") == 8 and "| 2 segments of 3 tokens and 3 frames |" in table
    for wrong in (["--repeats", 0], ["--", "--modalities", "a"], ["--mosi", "/nowhere"]):
        assert code(monkeypatch, benchmark, "--no-growth", *wrong) == 2
