"""rows.py and tables.py: the runs that they start and the tables that they print."""

import json
import math
import subprocess
from pathlib import Path

import numpy as np
import pytest

import data
import plumbing
import train
from experiments import figures, rows, tables
from experiments.rows import ROWS
from experiments.tables import PAPER, POWER80, SETS, T95
from plumbing.metrics import COLUMNS, table


def save(folder: Path, label: str, seed: int, **results):
    """A finished run, as train.py leaves it."""
    folder = tables.folder_of(folder, label, seed)
    folder.mkdir(parents=True)
    observed = [{"observed": {"h_probe": value}} for value in (0.1, 0.6 + seed / 10)]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, observed)))
    results = {"seed": seed, "epoch": 1, **results}
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "config.json").write_text(json.dumps({"attention": "video"}))


def metrics(mae: float, other: float) -> dict[str, float]:
    return dict.fromkeys(COLUMNS, other) | {"mae": mae}


def test_intervals_and_power_by_simulation():
    """T95: 5 % of samples around 0 are found. POWER80: 80 % of those whose mean is so far away."""
    draw = np.random.default_rng(0)
    for n in range(2, 11):
        x = draw.normal(size=(100_000, n))
        error = x.std(1, ddof=1) / n**0.5
        for mean, share in ((0, 0.05), (POWER80[n - 2] / n**0.5, 0.8)):
            found = abs(x.mean(1) + mean) > T95[n - 2] * error
            assert abs(found.mean() - share) < 0.005, n


def test_a_cell_is_the_mean_and_half_its_interval():
    values = [0.7, 0.8, 0.9]
    half, least = 4.303 * 0.1 / 3**0.5, 5.653 * 0.1 / 3**0.5
    assert tables.cell("mae", values) == f"0.800 ± {half:.3f}"
    assert tables.cell("mae", values[:1]) == "0.700"
    around = [value - 0.7 for value in values]
    assert tables.cell("mae", around, True) == f"0.100 ± {half:.3f} (contains 0; finds {least:.3f})"
    assert tables.cell("mae", values, True) == tables.cell("mae", values)


def test_tables_show_every_seed_beside_the_papers_rows(tmp_path, monkeypatch, capsys):
    """From the files of finished runs alone; no printed table has more than eight columns."""
    monkeypatch.setattr(tables, "run_all", None)
    for seed, mae in enumerate((0.8, 0.7, 0.9)):
        split = metrics(mae, 0.5 + seed / 10)
        save(tmp_path / "mosi", "MSFN", seed, valid=split, test=split)
        split = metrics(mae + 0.2 + seed / 1000, 0.5 + seed / 10)
        save(tmp_path / "mosi", "without L^a", seed, valid=split, test=split)
    tables.main(["table4", "--seeds", "3", "--runs", str(tmp_path), "--print"])
    printed = capsys.readouterr().out
    lines = [line.strip("| ").split(" | ") for line in printed.splitlines() if line.startswith("|")]
    assert max(map(len, lines)) == 8
    rows = [line for line in lines if "MSFN" in line[0] or "L^a" in line[0]]
    valid, _, paper, ours, paper_a, ours_a, _, difference, *observed = rows
    assert paper == ["paper: MSFN", "0.802", "–", "0.756", "83.4", "–", "43.1", "–"]
    assert ours[:3] == valid[:3] == ["**MSFN**", "0.800 ± 0.248", "0.800, 0.700, 0.900"]
    assert paper_a[0] == "paper: without L^a" and ours_a[2] == "1.000, 0.901, 1.102"
    assert ours[-1] == "video"
    assert difference[:4] == ["without L^a", *["0.201 ± 0.002"] * 2, difference[3]]
    assert difference[3] == "0.000 ± 0.000 (contains 0; finds 0.000)"
    assert [line[2] for line in observed] == ["0.70", "0.70"]


def test_a_search_is_sorted_by_valid_and_never_reads_test(tmp_path, monkeypatch, capsys):
    started = {}
    monkeypatch.setattr(tables, "run_all", lambda work, jobs: started.update(work))
    argv = ["rates", "--rows", "TFN (B)", "LMF (static)", "--seeds", "1", "--runs", str(tmp_path)]
    for i, label in enumerate(tables.plan("rates", ["TFN (B)"], None)):
        save(tmp_path / "mosi", label, 0, valid=metrics(1 + (i - 2) ** 2, 0.5))
    tables.main(argv)
    printed = capsys.readouterr().out
    assert [line.split(" | ")[1] for line in printed.splitlines()[2:4]] == ["1.000", "2.000"]
    assert "learning-rate 0.0003, bert-learning-rate 3e-05**" in printed.splitlines()[2]
    assert len(started) == 12
    for row, options in started.values():
        config = train.parse(options)[0]
        assert not config.test and (config.epochs, config.patience) == (20, 5)
        assert (config.dropout == 0.1) or row == "LMF (static)"
    for wrong in (["table4", "--random", "3"], ["grid", "--random", "0"], ["grid", "--rows", "no"]):
        with pytest.raises((SystemExit, plumbing.UserError)):
            tables.main(wrong)


def test_a_grid_is_the_product_of_its_axes_and_its_sample_is_seeded():
    points = tables.plan("grid", ["MSFN"], None)
    assert len(points) == math.prod(map(len, tables.GRID.values())) == 256
    sample = tables.plan("grid", ["MSFN"], 20)
    assert sample == tables.plan("grid", ["MSFN"], 20) and sample.items() < points.items()
    folders = {tables.folder_of(Path(), label, 0) for label in points}
    assert len(folders) == 256


def test_sets_have_rows_and_a_reading_changes_one_option():
    default = vars(train.Config())
    for row in SETS["readings"][1:]:
        config = vars(train.parse(ROWS[row].options.split())[0])
        changed = [key for key in config if config[key] != default[key]]
        assert len(changed) == (2 if row == "rest-1e-3" else 1), row
    assert set(ROWS) == {row for rows in SETS.values() for row in rows}
    assert all(SETS[name][0] == "MSFN" for name in ("table2", "table3", "table4", "readings"))


def test_the_papers_rows_are_the_same_in_both_places():
    for name, dataset in (("table2", "mosi"), ("table3", "mosei"), ("table4", "mosi")):
        printed = [line.split() for line in PAPER[name].split(";")]
        row = table(dataset, {}).splitlines()[1].split()[1:]
        assert [cell for cell in row if cell != "–"] in printed


def test_a_table_resumes_where_it_stopped(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(subprocess, "call", lambda command, **_: calls.append(command) or 0)
    for name, file in (("done", "results.json"), ("begun", "config.json"), ("new", "log")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("{}")
        tables.run(tmp_path / name, "MSFN", ["--alpha", "0"], 1)
    assert [command[4:6] for command in calls] == [["MSFN", "--resume"], ["MSFN", "--alpha"]]
    (tmp_path / "begun" / "config.json").write_text(json.dumps(vars(train.Config(alpha=0.0))))
    tables.check_options(tmp_path / "begun", ["--dataset", "mosi", "--alpha", "0"])
    with pytest.raises(plumbing.UserError, match=r"alpha = 0.0, not 0.2"):
        tables.check_options(tmp_path / "begun", ["--dataset", "mosi"])
    monkeypatch.setattr(subprocess, "call", lambda *_, **__: 1)
    with pytest.raises(plumbing.UserError, match=r"new failed; .*new\.log says why"):
        tables.run_all({tmp_path / "new": ("MSFN", [])}, 1)


def test_a_set_runs_from_any_folder(few, tmp_path, monkeypatch, capsys):
    """Its processes import this package, although the current folder has one of its name."""
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "__init__.py").write_text("raise ImportError")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "load", lambda *_: few)

    def call(command, env, call=subprocess.call, **streams):
        python, safe, _, module, row, *options = command
        assert module == "experiments.rows"
        assert call([python, safe, "-c", "import experiments"], env=env, **streams) == 0
        rows.main([row, *options])
        return 0

    monkeypatch.setattr(subprocess, "call", call)
    options = ["--dataset", "synthetic", "--epochs", "1", "--d", "8", "--lstm-width", "8"]
    tables.main(["grid", "--random", "1", "--seeds", "1", "--", *options, "--modalities", "a"])
    assert len(list(tmp_path.glob("runs/tables/synthetic/*/results.json"))) == 1
    assert "| **MSFN: alpha" in capsys.readouterr().out


@pytest.mark.parametrize("module", [tables, figures, rows])
def test_help_needs_no_matplotlib(module, monkeypatch, capsys):
    monkeypatch.setattr(figures, "matplotlib", None)
    with pytest.raises(SystemExit):
        module.main(["--help"])
        raise SystemExit
    assert "python -m experiments." in capsys.readouterr().out
    if module is figures:
        with pytest.raises(plumbing.UserError, match="pip install matplotlib"):
            module.main(["x"])
