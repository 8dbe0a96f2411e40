"""Fetching, with the hub replaced at the one function that reaches it."""

import hashlib
import pickle
import shutil
from pathlib import Path

import pytest

import data
from plumbing import UserError, fetch
from plumbing.test_formats import mmsa

MOSI, MOSEI = "mosi_unaligned_50.pkl", "mosei_unaligned_50.pkl"


class Hub:
    """What is on the hub, MOSEI in 13 parts, and what was asked for."""

    def __init__(self):
        whole = pickle.dumps(mmsa(), 5)
        step = len(whole) // 13 + 1
        parts = {f"mosei_50/{MOSEI}.part{k}": whole[k * step : (k + 1) * step] for k in range(13)}
        self.files = {MOSI: whole, "README.md": b"", f".cache/{MOSI}.metadata": b"no data", **parts}
        self.hashes = dict.fromkeys((MOSI, MOSEI), hashlib.sha256(whole).hexdigest())
        self.error, self.asked = None, []

    def download(self, repo, patterns, kind="model", folder=None):
        self.asked.append(repo)
        if self.error:
            raise self.error
        for name, content in self.files.items():
            if Path(name).match(patterns[0]):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
        return folder


@pytest.fixture
def hub(monkeypatch, tmp_path):
    made = Hub()
    monkeypatch.setattr(fetch, "download", made.download)
    monkeypatch.setattr(fetch, "SHA256", made.hashes)
    monkeypatch.chdir(tmp_path)
    return made


def left():
    return {path.name for path in Path("data").iterdir()}


def test_a_file_is_fetched_once(hub, capsys):
    assert len(data.load("mosi")["train"]) == 6
    assert "the one that MMSA published" in capsys.readouterr().out
    assert data.load("mosi").path == str(Path("data/mosi_unaligned_50.pkl").resolve())
    assert hub.asked == [fetch.HUB] and left() == {".lock", MOSI}


def test_parts_are_joined_in_order(hub):
    assert len(data.load("mosei")["test"]) == 6
    assert left() == {".lock", MOSEI}


def test_a_file_with_another_hash_is_set_aside(hub):
    right = hub.files[MOSI]
    hub.files[MOSI] = right[:-1]
    with pytest.raises(UserError, match="wrong, set aside, has SHA-256 [0-9a-f]{64}, but MMSA"):
        data.load("mosi")
    assert left() == {".lock", "mosi_unaligned_50.pkl.wrong"}
    hub.files[MOSI] = right
    assert len(data.load("mosi")["train"]) == 6


def test_a_fetch_that_cannot_be_is_one_sentence(hub):
    for error in (ConnectionError("no network\nat all"), RuntimeError("401 \x1b[2J"), None):
        hub.error, hub.files = error, {}
        with pytest.raises(UserError) as caught:
            data.load("mosi")
        assert str(caught.value).isprintable() and left() <= {".lock", ".hub"}
        for words in (fetch.HUB, "drive.google.com/drive/folders/", "AAB7FhBqJOFDw2hEyvv2ZXHxa"):
            assert words in str(caught.value)
        assert "data/mosi_unaligned_50.pkl" in str(caught.value)
    shutil.rmtree("data")
    Path("data").touch()
    with pytest.raises(UserError):
        data.load("mosi")


def test_files_under_data_are_found(hub, capsys):
    names = ["MOSI/Processed/aligned_50.pkl", "mosi_data.pkl", "mosi/misa/train.pkl"]
    for name in [*names, "mosi/misa/dev.pkl", "mosei_data.pkl"]:
        Path("data", name).parent.mkdir(parents=True, exist_ok=True)
        Path("data", name).touch()
    assert fetch.data_file("mosei", "data") == Path("data/mosei_data.pkl")
    assert capsys.readouterr().out == "" and hub.asked == []
    found = fetch.files_of("mosi", Path("data"))
    assert [str(p) for p in found] == [
        "data/MOSI/Processed/aligned_50.pkl",
        "data/mosi/misa",
        "data/mosi_data.pkl",
    ]
    assert fetch.data_file("mosi", "data") == found[0]
    assert "of 3 files of mosi in data/ the first is taken" in capsys.readouterr().out


def test_an_encoder_is_a_folder_or_comes_from_the_hub(hub, monkeypatch, tmp_path):
    assert fetch.encoder(str(tmp_path)) == str(tmp_path)
    monkeypatch.setattr(fetch, "download", lambda repo, patterns: tmp_path / repo)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert fetch.encoder("no/such-encoder") == str(tmp_path / "no/such-encoder")
    monkeypatch.setattr(fetch, "download", hub.download)
    hub.error = OSError("we are offline")
    for name in ("no/such-encoder", "not a name", "../x/y"):
        with pytest.raises(UserError, match="is no folder and could not be fetched"):
            fetch.encoder(name)
