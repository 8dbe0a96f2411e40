"""Fetching: the real client against a stand-in of the hub's HTTP interface on 127.0.0.1."""

import hashlib
import json
import os
import pickle
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from plumbing import fetch
from plumbing.test_formats import mmsa

MOSI, MOSEI = "mosi_unaligned_50.pkl", "mosei_unaligned_50.pkl"
WHOLE = pickle.dumps(mmsa(), 5)
STEP = len(WHOLE) // 13 + 1
FILES = {f"mosei/{MOSEI}.part{k}": WHOLE[k * STEP :][:STEP] for k in range(13)}
FILES |= {MOSI: WHOLE, "config.json": b"{}", "model.safetensors": b"{}"}
UNWANTED = ("README.md", "pytorch_model.bin")
FILES |= dict.fromkeys(UNWANTED, b"not asked for")
COMMIT = "a" * 40
TAGS = {name: hashlib.sha1(name.encode()).hexdigest() for name in FILES}
CHILD = """
import sys
from plumbing import UserError, fetch
fetch.SHA256 = dict.fromkeys(fetch.SHA256, sys.argv[1])
for name in sys.argv[2:]:
    try:
        folder, _, dataset = name.partition(":")
        print("got", fetch.data_file(dataset, folder) if dataset else fetch.encoder(name))
    except UserError as error:
        print("error:", error)
"""


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's interface that its client uses: what is there, and ranges of files."""

    cut: list[str]  # files whose next download ends after half of it
    damaged: list[str]  # files whose next download has other bytes
    asked: list[str]  # files that were downloaded

    def do_GET(self):
        path, _, name = self.path.partition("?")[0].partition(f"/resolve/{COMMIT}/")
        if "last/bert" in path:
            self.server.socket.close()  # from now on, nobody listens
        if not name:
            sizes = {n: {"type": "file", "size": len(FILES[n]), "oid": TAGS[n]} for n in FILES}
            tree = [{"path": n, **about} for n, about in sizes.items()]
            info = {"id": "a/b", "sha": COMMIT, "siblings": [{"rfilename": n} for n in FILES]}
            return self.reply(json.dumps(tree if "/tree/" in path else info).encode())
        content = FILES[name]
        if self.command == "GET":
            self.asked.append(name)
            if name in self.damaged:
                self.damaged.remove(name)
                content = content[::-1]
        start = int(re.findall(r"\d+", self.headers.get("Range", "0"))[0])
        self.reply(content[start:], name, 206 if start else 200)

    do_HEAD = do_GET

    def reply(self, content: bytes, name: str = "", status: int = 200):
        self.send_response(status)
        headers = {"ETag": f'"{TAGS.get(name)}"', "X-Repo-Commit": COMMIT}
        for key, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[: len(content) // 2] if name in self.cut else content)
            self.cut[:] = [other for other in self.cut if other != name]

    def log_message(self, *_):
        pass


def test_the_real_client_against_a_hub(tmp_path: Path):
    """Data, in one file and in parts, and an encoder: with a file whose hash is wrong, three
    connections cut, and, in the end, nobody listening. Messages name HF_ENDPOINT's hub."""
    Hub.cut, Hub.damaged = [f"mosei/{MOSEI}.part{k}" for k in (1, 2, 11)], [MOSI]
    Hub.asked = []
    names = ["data:mosi", "data:mosi", "data:mosi", "data:mosei", "some/bert", "some/bert"]
    names += ["last/bert", "other/bert", "not a/name", "empty:mosi"]
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        hub = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        env = {"HF_ENDPOINT": hub, "HF_HOME": f"{tmp_path}/home", "HF_HUB_DISABLE_XET": "1"}
        env |= {"PYTHONPATH": str(Path(__file__).parents[1]), "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, "-c", CHILD, hashlib.sha256(WHOLE).hexdigest(), *names]
        options = {"capture_output": True, "text": True, "timeout": 60}
        child = subprocess.run(command, cwd=tmp_path, env=os.environ | env, **options)
        server.shutdown()
    got = [line for line in child.stdout.splitlines() if line.startswith(("got ", "error: "))]
    assert len(got) == len(names), child.stderr
    assert re.match(rf"error: data.{MOSI}.wrong, set aside, has SHA-256 .{{64}}, but MMSA", got[0])
    assert got[1:4] == [f"got data/{name}" for name in (MOSI, MOSI, MOSEI)]
    assert f"fetching {MOSI} from {hub}/datasets/{fetch.HUB}" in child.stdout
    data = {path.name: path for path in (tmp_path / "data").iterdir()}
    assert set(data) == {".lock", MOSI, MOSEI, f"{MOSI}.wrong"}
    assert data[MOSI].read_bytes() == data[MOSEI].read_bytes() == WHOLE
    encoder = Path(got[4].removeprefix("got "))
    assert got[4] == got[5] and len(list(encoder.iterdir())) == 2
    assert Hub.cut == [] and set(Hub.asked) == set(FILES) - set(UNWANTED)
    assert len(Hub.asked) == len(set(Hub.asked)) + 4  # three cuts and the wrong file
    for line, name in zip(got[7:9], names[7:9], strict=True):
        assert line.startswith(f"error: {name} is not a folder and could not be fetched from {hub}")
    assert f"{MOSI} is missing and could not be fetched from {hub}" in got[9]
    assert "name a file with --data FILE" in got[9]


def test_files_under_data_are_found(tmp_path: Path, monkeypatch, capsys):
    """In folders and links to folders, by any part of the path, without hidden files."""
    monkeypatch.chdir(tmp_path)
    aligned, of_mult = "data/CMU-MOSI/Processed/aligned_50.pkl", "data/mosi_data.pkl"
    names = [aligned, of_mult, "data/mosei_data.PKL", "data/._mosi.pkl", "data/mosi/._a.pkl"]
    names += ["data/.cache/mosi.pkl", "data/mosi/label.csv", "data/sims.pkl"]
    names += ["disk/train.pkl", "disk/dev.pkl", "disk/sub/b.pickle"]
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    try:
        Path("data/mosi/link").symlink_to(Path("disk").resolve())
        Path("disk/zzz").symlink_to(Path("data").resolve())  # a loop
    except OSError:
        pytest.skip("no symbolic links")
    files = [path.as_posix() for path in fetch.files_of("mosi", Path("data"))]
    assert files[:3] == [aligned, "data/mosi/link", "data/mosi/link/sub/b.pickle"]
    assert files[-1] == of_mult and "data/sims.pkl" not in files
    assert not any("/." in path for path in files)
    assert fetch.data_file("mosei", "data") == Path("data/mosei_data.PKL")
    assert fetch.data_file("mosi", "data") == Path(aligned)
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("data: data/mosei_data.PKL")
    assert re.match(r"data: data/CMU-MOSI/.*aligned_50.pkl, the first of \d+ in data/", out[1])
