"""rows.py and tables.py: the runs that they start and the tables that they print."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

import plumbing
import train
from experiments import figures, rows, tables
from experiments.rows import ROWS
from experiments.tables import PAPER, POWER80, SETS, T95
from plumbing.metrics import COLUMNS, table
from plumbing.test_runs import small_corpus  # noqa: F401


def save(runs: Path, label: str, seed: int, mae: float, other: float, splits: str = "valid test"):
    """A finished run, as train.py leaves it."""
    folder = tables.folder_of(runs / "mosi", label, seed)
    folder.mkdir(parents=True)
    observed = [{"observed": {"h_probe": value}} for value in (0.1, 0.6 + seed / 10)]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, observed)))
    split = dict.fromkeys(COLUMNS, other) | {"mae": mae}
    results = {"seed": seed, "epoch": 1} | dict.fromkeys(splits.split(), split)
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "config.json").write_text(json.dumps({"attention": "video"}))


def cells(printed: str) -> list[list[str]]:
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    return [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in lines]


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
    half, least = 4.303 * 0.1 / 3**0.5, 5.653 * 0.1 / 3**0.5
    assert tables.cell("mae", [0.7, 0.8, 0.9]) == f"0.800 ± {half:.3f}"
    difference = tables.cell("mae", [0.0, 0.1, 0.2], difference=True)
    assert difference == f"0.100 ± {half:.3f} (finds {least:.3f})"
    assert tables.cell("corr", [0.7]) == "0.700"


def test_tables_show_every_seed_beside_the_papers_rows(tmp_path, monkeypatch, capsys):
    """From the files of finished runs alone; no printed table has more than eight columns."""
    monkeypatch.setattr(tables, "run_all", None)
    for seed, mae in enumerate((0.8, 0.7, 0.9)):
        save(tmp_path, "MSFN", seed, mae, 0.5 + seed / 10)
        save(tmp_path, "without L^a", seed, mae + 0.2 + seed / 1000, 0.5 + seed / 10)
    tables.main(["table4", "--seeds", "3", "--runs", str(tmp_path), "--print"])
    lines = cells(capsys.readouterr().out)
    assert max(map(len, lines)) == 8
    valid, _, paper, ours, paper_a, ours_a, _, difference, *observed = (
        line for line in lines if "MSFN" in line[0] or "L^a" in line[0]
    )
    assert paper == ["paper: MSFN", "0.802", "–", "0.756", "83.4", "–", "43.1", "–"]
    assert ours[:3] == valid[:3] == ["**MSFN**", "0.800 ± 0.248", "0.800, 0.700, 0.900"]
    assert paper_a[0] == "paper: without L^a" and ours_a[2] == "1.000, 0.901, 1.102"
    assert ours[-1] == "video"
    assert difference[:3] == ["without L^a", *["0.201 ± 0.002 (finds 0.003)"] * 2]
    assert difference[3] == "0.000 ± 0.000 (finds 0.000)"
    assert [line[2] for line in observed] == ["0.70", "0.70"]


def test_rates_are_sorted_by_valid_and_never_read_test(tmp_path, monkeypatch, capsys):
    started = {}
    monkeypatch.setattr(tables, "run_all", lambda work, jobs: started.update(work))
    for i, rates in enumerate(tables.RATES):
        save(tmp_path, f"TFN (B): {rates}", 0, 1 + (i - 2) ** 2, 0.5, "valid")
    argv = ["rates", "--rows", "TFN (B)", "LMF (static)", "--vectors", "FILE", "--seeds", "1"]
    tables.main([*argv, "--runs", str(tmp_path)])
    best, second = cells(capsys.readouterr().out)[2:4]
    assert best[:2] == [f"**TFN (B): {tables.RATES[2]}**", "1.000"] and second[1] == "2.000"
    configs = [(row, train.Config(**train.parse(options))) for row, options in started.values()]
    assert (
        len({(row, c.learning_rate, c.bert_learning_rate, c.dropout) for row, c in configs}) == 12
    )
    for row, config in configs:
        assert not config.test and (config.epochs, config.patience) == (20, 5)
        assert (config.bert == "FILE") == (row == "LMF (static)")


def test_sets_have_rows_and_a_reading_changes_one_option():
    default = vars(train.Config())
    for row in SETS["readings"][1:]:
        config = vars(train.Config(**train.parse(ROWS[row].options.split())))
        changed = [key for key in config if config[key] != default[key]]
        assert len(changed) == (2 if row == "rest-1e-3" else 1), row
    assert set(ROWS) == {row for rows in SETS.values() for row in rows}
    assert all(SETS[name][0] == "MSFN" for name in ("table2", "table3", "table4", "readings"))
    for name, dataset in (("table2", "mosi"), ("table3", "mosei"), ("table4", "mosi")):
        printed = [line.split() for line in PAPER[name].split(";")]
        row = table(dataset, {}).splitlines()[1].split()[1:]  # of plumbing.metrics
        assert [cell for cell in row if cell != "–"] in printed


def test_a_set_runs_resumes_and_rejects_other_options(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    started = []

    def call(command, **_):
        row, *options = command[command.index("experiments.rows") + 1 :]
        started.append([row, options[0]])
        return plumbing.run(rows.main, [row, *options])

    monkeypatch.setattr(subprocess, "call", call)
    argv = ["readings", "--rows", "sum", "--seeds", "1", "--", "--dataset", "synthetic"]
    argv += ["--epochs", "1"]
    for _ in range(2):  # finished runs are not run again
        tables.main(argv)
    assert started == [["MSFN", "--dataset"], ["sum", "--dataset"]]
    assert "| **sum** | " in capsys.readouterr().out
    (tmp_path / "runs/tables/synthetic/sum-seed0/results.json").unlink()
    tables.main(argv)
    assert started[2:] == [["sum", "--resume"]]
    with pytest.raises(plumbing.UserError, match=r"alpha = 0.2, not 0.3"):
        tables.main([*argv, "--alpha", "0.3"])
    with pytest.raises(plumbing.UserError, match=r"MSFN-seed0 failed; .*seed0\.log says why"):
        tables.main(["table4", "--runs", "other", *argv[1:], "--bert", str(tmp_path)])
    for wrong in (["table4", "--rows", "no"], ["table4", "--seeds", "0"], ["table4", "--print"]):
        with pytest.raises(SystemExit):
            tables.main(wrong)


def test_a_picture_without_matplotlib_says_what_to_install(monkeypatch):
    monkeypatch.setattr(figures, "matplotlib", None)
    with pytest.raises(plumbing.UserError, match="pip install matplotlib"):
        figures.main(["x"])
