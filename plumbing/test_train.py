"""train.py: presets, reproducible runs, what is read when, and what ends a run."""

import itertools
import json
import math

import numpy as np
import pytest
import torch

import data
import msfn
import plumbing
import train
from plumbing.test_runs import quick, small_corpus  # noqa: F401


def recorded(config, observe=None):
    """-> a run's results, and (split, i) of each segment in the order in which they were read."""
    read, original, splits = [], data.Segments.__getitem__, data.synthetic().splits

    def get(segments, i):
        read.append((next(s for s in splits if splits[s] is segments.split), i))
        return original(segments, i)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data.Segments, "__getitem__", get)
        return train.train(config, observe=observe), read


def test_a_run_is_reproducible_and_reads_the_test_split_once_at_the_end(tmp_path):
    """Item by item: train and valid in each of two epochs, then test; weights bit by bit."""
    first, second = (recorded(quick(tmp_path, epochs=2)) for _ in range(2))
    assert first == second
    items = iter(first[1])
    for split in ["train", "valid", "train", "valid", "test"]:
        assert sorted(itertools.islice(items, 60)) == [(split, i) for i in range(60)]
    assert not list(items)
    names = "bert config.json metrics.jsonl model.safetensors results.json standardizer.json"
    for folder in (tmp_path / "synthetic-seed0", tmp_path / "synthetic-seed0-2"):
        assert sorted(path.name for path in folder.iterdir()) == names.split()
    one, two = (path.read_bytes() for path in tmp_path.glob("*/model.safetensors"))
    assert one == two


def test_a_search_does_not_read_the_test_split_and_logs_what_is_observed(tmp_path):
    epochs = itertools.count(1)
    config = quick(tmp_path, name="search", epochs=2, test=False)
    results, read = recorded(config, observe=lambda session: {"epoch_seen": next(epochs)})
    assert "test" not in results and {split for split, _ in read} == {"train", "valid"}
    lines = (tmp_path / "search" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["observed"]["epoch_seen"] for line in lines] == [1, 2]


def test_each_seed_and_each_epoch_draws_weights_batches_and_dropout_of_its_own(monkeypatch):
    monkeypatch.setattr(train, "train_step", lambda *_: {})
    drawn = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        session = train.Session(quick(seed=seed))
        train.train_epoch(session, epoch)
        dropout, weight = torch.rand(()).item(), session.model.predictor[0].weight[0, 0].item()
        batch = next(iter(train.loader(session.segments["train"], session.config, epoch)))
        drawn.append((weight, dropout, batch.ids))
    assert drawn[0][0] == drawn[1][0]
    assert all(one != other for one, other in zip(drawn[0], drawn[2], strict=True))
    assert all(one != other for one, other in zip(drawn[0][1:], drawn[1][1:], strict=True))


def test_predictions_stand_in_the_order_of_the_split():
    """As in one batch of all, without dropout and without vision; nearly so in bf16."""
    session = train.Session(quick(modalities="al"))
    part = session.segments["valid"]
    prediction, y = train.predict(session, part)
    session.config = quick(modalities="al", amp="bf16")
    rough, _ = train.predict(session, part)
    everyone = part.collate([part[i] for i in range(len(part))])
    assert [n.any().item() for _, n in everyone.inputs.values()] == [True, False, True]
    session.model.eval()
    expected = session.model(everyone.inputs, everyone.video).prediction
    torch.testing.assert_close(torch.from_numpy(prediction), expected, atol=1e-5, rtol=0)
    assert y.tolist() == everyone.y.tolist() and 0 < np.abs(rough - prediction).max() < 0.05
    fitted = data.Standardizer.fit(data.synthetic()["train"])  # reads no other split
    assert session.standardizer.to_dict() == fitted.to_dict()


def test_presets_are_table_1_and_what_is_chosen_beats_them():
    """By hand from the paper: d, α, β, γ, r, batch size, Drop; then what README says is ours."""
    names = ("d", "alpha", "beta", "gamma", "learning_rate", "batch_size", "dropout")
    mosei, mosi = (256, 0.4, 0.3, 0.1, 1e-4, 16, 0.1), (128, 0.2, 0.5, 0.2, 1e-4, 64, 0.1)
    for dataset, values in (("mosei", mosei), ("mosi", mosi)):
        config = train.Config(dataset=dataset)
        assert train.Config(**train.parse(["--dataset", dataset])) == config
        assert tuple(getattr(config, name) for name in names) == values
    assert train.Config(**train.parse([])) == config
    ours = {"lstm_width": 64, "epochs": 30, "patience": 8, "clip": 1.0, "modalities": "avl"}
    ours |= {"bert": "google-bert/bert-base-uncased", "bert_learning_rate": None, "pooling": "mean"}
    ours |= {"adversarial": "bounded", "triplet_features": "h", "margin": 1.0, "classes": "seven"}
    ours |= {"detach_target": False, "attention": "video", "reduction": "mean", "test": True}
    assert {name: getattr(config, name) for name in ours} == ours
    argv = "--dataset mosei --batch-size 8 --no-test --detach-target"
    typed = train.Config(**train.parse(argv.split()))
    assert (typed.batch_size, typed.d, typed.test, typed.detach_target) == (8, 256, False, True)
    assert train.Config(dataset="mosei", batch_size=8, test=False, detach_target=True) == typed
    with pytest.raises(TypeError, match="no option alhpa"):
        train.Config(alhpa=1.0)


def test_the_configuration_reaches_the_embeddings():
    session = train.Session(quick(dropout=0.9, pooling="cls"))
    audio, text = session.model.embeddings["a"], session.model.embeddings["l"]
    assert (audio.dense.in_features, audio.dropout.p) == (2 * 4, 0.9)
    assert (text.pooling, text.dropout.p, session.model.predictor[2].p) == ("cls", 0.9, 0.9)


def test_both_sides_are_clipped_by_themselves_and_bert_may_be_slower(monkeypatch):
    config = quick(clip=0.5, bert_learning_rate=1e-9)
    session = train.Session(config)
    before = {n: p.detach().clone() for n, p in session.model.named_parameters()}
    norms, clip, number = [], train.clip_grad_norm_, []

    def constant(parameters, norm):
        assert all(p.grad is not None for p in parameters)  # L reaches all that is trained
        for p in parameters:
            p.grad = torch.ones_like(p)
        clip(parameters, norm)
        norms.append(sum(p.grad.square().sum() for p in parameters).sqrt().item())
        number.append(len(parameters))

    monkeypatch.setattr(train, "clip_grad_norm_", constant)
    train.train_step(session, next(iter(train.loader(session.segments["valid"], config))))
    assert norms == pytest.approx([0.5, 0.5], abs=1e-4)
    assert sum(number) == len(before)
    for name, parameter in session.model.named_parameters():
        change = parameter.detach() - before[name]  # Adam's first step: the rate, times the sign
        rate = 1e-9 if ".bert." in name else config.learning_rate
        expected = torch.full_like(change, rate if "discriminators" in name else -rate)
        torch.testing.assert_close(change, expected, rtol=0.02, atol=2e-7)


def test_the_first_batch_with_a_number_that_is_not_finite_is_named(monkeypatch):
    session = train.Session(quick(batch_size=12))
    factors = itertools.chain([1, math.nan], itertools.repeat(1))
    loss, split = msfn.distance_loss, session.segments["train"].split
    monkeypatch.setattr(msfn, "distance_loss", lambda *parts: loss(*parts) * next(factors))
    second = train.loader(session.segments["train"], session.config, 0).batch_sampler[1]
    ids = " ".join(split.ids[i] for i in second)
    with pytest.raises(plumbing.UserError) as error:
        train.train_epoch(session, 0)
    assert f"total, distance not finite in epoch 0, segments {ids}: stopped" in str(error.value)


def test_a_valid_mae_that_is_not_finite_ends_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "metrics", lambda *_: {"mae": math.nan})
    with pytest.raises(plumbing.UserError, match="valid MAE is nan after epoch 0"):
        train.train(quick(tmp_path))
    assert not list(tmp_path.glob("*/model.safetensors"))


def test_patience_counts_the_epochs_without_a_better_one(tmp_path, monkeypatch):
    maes = iter([0.9, 0.8, 0.8, 0.85, 0.1, 0.2])  # the fifth is test's
    monkeypatch.setattr(train, "train_epoch", lambda *_: {})
    monkeypatch.setattr(train, "metrics", lambda *_: {"mae": next(maes), "corr": 0.0})
    monkeypatch.setattr(train, "print_results", lambda *_: None)
    results = train.train(quick(tmp_path, epochs=9, patience=2))
    assert results["epoch"] == 1 and results["valid"]["mae"] == 0.8 and next(maes) == 0.2
