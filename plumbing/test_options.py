"""What a user types: wrong, it ends in one sentence and exit code 2, and no run is begun."""

import pytest

import plumbing
import train


@pytest.mark.parametrize(
    "argv, said",
    [
        ("--dataset mosi --data nowhere.pkl", "nowhere.pkl"),
        ("--dataset synthetic --device cuda:77", "cuda:77"),
        ("--dataset synthetic --modalities aw", "aw"),
        ("--dataset synthetic --epochs 0", "epochs"),
        ("--dataset synthetic --bert-learning-rate -1", "bert-learning-rate"),
        ("--dataset synthetic --learning-rate nan", "learning-rate"),
        ("--dataset synthetic --alpha -1", "alpha"),
        ("--resume nowhere", "nowhere"),
        ("--resume nowhere --d 8", "--d"),
    ],
)
def test_what_a_user_does_wrong_ends_in_one_sentence(argv, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:  # argparse's own, or this one
        raise SystemExit(plumbing.run(train.main, argv.split()))
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2 and said in error and "error:" in error
    assert not (tmp_path / "runs").exists()
