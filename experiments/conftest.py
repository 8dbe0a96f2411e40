"""Fixtures of the tests of this folder."""

import pytest

import data


@pytest.fixture(scope="module")
def few():
    """The synthetic corpus, cut: 25 segments to train with are two batches of 12 and one of 1."""
    corpus = data.synthetic()
    for name, n in (("train", 25), ("valid", 6), ("test", 5)):
        part = corpus[name].part
        corpus.splits[name] = data.Split({k: v[:n] for k, v in part.items()})
    return corpus
