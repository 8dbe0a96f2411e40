"""Fetching: the real client against a stand-in of the hub's HTTP interface on 127.0.0.1."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from plumbing import fetch

MOSI, MOSEI = "mosi_unaligned_50.pkl", "mosei_unaligned_50.pkl"
FILES = {f"mosei/{MOSEI}.part{k}": b"%d," % k * 9 for k in range(13)}  # in 13 parts, as on the hub
WHOLE = b"".join(FILES.values())
FILES |= {MOSI: b"damaged", "config.json": b"{}", "model.safetensors": b"{}"}
FILES |= {"README.md": b"not asked for", "pytorch_model.bin": b"not asked for"}
CUT = {f"mosei/{MOSEI}.part11"}  # files whose next download ends after half of it
COMMIT = "a" * 40
INFO = {"id": "a/b", "sha": COMMIT, "siblings": [{"rfilename": name} for name in FILES]}
TREE = [{"path": n, "type": "file", "size": len(FILES[n]), "oid": n[-1] * 40} for n in FILES]
CHILD = """
import sys
from plumbing import UserError, fetch
fetch.SHA256["mosei_unaligned_50.pkl"] = sys.argv[1]
for name in sys.argv[2:]:
    try:
        folder, _, dataset = name.partition(":")
        print("got", fetch.data_file(dataset, folder) if dataset else fetch.encoder(name))
    except UserError as error:
        print("error:", error)
"""


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's interface that its client uses: what is there, and ranges of files."""

    def do_GET(self):
        path, _, name = self.path.partition("?")[0].partition(f"/resolve/{COMMIT}/")
        if "last/bert" in path:
            self.server.socket.close()  # from now on, nobody listens
        about = TREE if "/tree/" in path else INFO
        content = FILES[name] if name else json.dumps(about).encode()
        start = int(re.findall(r"\d+", self.headers.get("Range", "0"))[0])
        content = content[start:]
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{hashlib.sha1(name.encode()).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[: len(content) // 2] if name in CUT else content)
            CUT.discard(name)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


def test_the_real_client_against_a_hub(tmp_path: Path):
    """A file whose hash is wrong, one in parts of which one is cut, and encoders; in the end nobody
    listens. Messages name HF_ENDPOINT's hub."""
    names = ["data:mosi", "data:mosei", "data:mosei", "some/bert", "last/bert"]
    names += ["some/bert", "other/bert", "not a/name", "empty:mosi"]
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
    assert (
        not CUT
        and got[1] == got[2] == f"got data/{MOSEI}"
        and child.stdout.count("; fetching") == 3
    )
    data = {path.name: path for path in (tmp_path / "data").iterdir()}
    assert set(data) == {".lock", MOSEI, f"{MOSI}.wrong"} and data[MOSEI].read_bytes() == WHOLE
    encoder = Path(got[3].removeprefix("got "))
    assert got[3] == got[5]  # from the cache
    assert {path.name for path in encoder.iterdir()} == {"config.json", "model.safetensors"}
    for line, name in zip(got[6:8], names[6:8], strict=True):
        assert line.startswith(f"error: {name} is not a folder and could not be fetched from {hub}")
    assert f"{MOSI} is missing and could not be fetched from {hub}" in got[8]
    assert "name a file with --data FILE" in got[8]


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
    except OSError:
        pytest.skip("no symbolic links")
    files = [path.as_posix() for path in fetch.files_of("mosi", Path("data"))]
    assert files == [aligned, "data/mosi/link", "data/mosi/link/sub/b.pickle", of_mult]
    for up, above in {"data/mosi/up": "data", "disk/up": "data", "disk/sub/up": "disk/sub"}.items():
        Path(up).symlink_to(Path(above).resolve())
    assert [path.as_posix() for path in fetch.files_of("mosi", Path("data"))] == files
    assert fetch.data_file("mosi", "data") == Path(aligned)
    assert capsys.readouterr().out.startswith(f"data: {aligned}, the first of ")
