"""Pickles: what is read equals pickle's own result, nothing is run, and no file is a bomb."""

import collections
import gc
import itertools
import json
import mmap
import os
import pickle
import pickletools
import re
import runpy
import shlex
import signal
import struct
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plumbing import UserError, captions, formats, pickles


def write(path: Path, content: Any, protocol: int = 4) -> Path:
    """A file of bytes as they are, or of any other value pickled."""
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
    return path


needs_limits = pytest.mark.skipif(sys.platform != "linux", reason="needs `resource` and /proc")


@contextmanager
def limits(megabytes: int = 500, seconds: int = 60) -> Iterator[None]:
    """The process may grow by so much and hang for so long."""
    import resource  # not on Windows

    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + (megabytes << 20), before[1]))
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it hangs"))
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, before)


# ── What is read ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("protocol", (3, 5))
def test_arrays_are_views_into_the_file(tmp_path: Path, protocol: int):
    content = {"raw_text": ["a"] * 300, "audio": np.ones((300, 7, 2))}
    content["vision"] = np.asfortranarray(np.ones((300, 9, 3)))
    part = formats.read(write(tmp_path / "f", content, protocol))["test"]
    for x in (part["audio"], part["vision"]):
        assert not x.flags.writeable
        while isinstance(x, np.ndarray | memoryview):
            x = x.base if isinstance(x, np.ndarray) else x.obj
        assert isinstance(x, mmap.mmap)


@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 5),
    st.sampled_from(["U3", "f2", "f8", "i1", ">f4", ">U2", "O", "S2", "bool"]),
)
def test_it_agrees_with_pickle(tmp_path_factory, seed: int, protocol: int, dtype: str):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 99, rng.integers(0, 4, rng.integers(0, 4))).astype(dtype)
    plain = [1, -2, 1 << 60, 2.5, None, True, "é\n漢", ("t", b"b" * 300, b""), {"k": {}}, []]
    content = {"x": x, "s": np.float32(1.5), b"k": plain, "F": x.T, "again": plain}
    content["ordered"] = collections.OrderedDict(z=1, a=[x])
    defaults = [collections.defaultdict(kind, b=[2]) for kind in (None, list, int, str)]
    content["defaults"] = defaults
    result = pickles.read(write(tmp_path_factory.mktemp("p") / "f", content, protocol))
    assert list(result) == ["x", "s", "k", "F", "again", "ordered", "defaults"]
    assert result["x"].dtype == x.dtype and result["F"].shape == x.T.shape
    np.testing.assert_array_equal(result["x"], x)
    np.testing.assert_array_equal(result["F"], x.T)
    assert result["s"] == 1.5 and type(result["s"]) is np.float32
    assert result["k"] == plain == result["again"] and list(result["ordered"]) == ["z", "a"]
    assert result["defaults"] == defaults and {type(x) for x in result["defaults"]} == {dict}


ARRAY = b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntVb\ntR"


def dtype(kind: bytes, order: bytes = b"<") -> bytes:
    return b"cnumpy\ndtype\n(V" + kind + b"\nI0\nI1\ntR(I3\nV" + order + b"\nNNNI-1\nI-1\nI0\ntb"


def array(shape: bytes, kind: bytes, raw: bytes, order: bytes = b"<") -> bytes:
    """The pickle of an array, without its end; shape and raw are pickles, too."""
    return ARRAY + b"(I1\n" + shape + dtype(kind, order) + b"I00\n" + raw + b"tb"


@pytest.mark.parametrize(
    "raw", (rb"S'\x00\x00\x80?'" + b"\n", b"U\x04\0\0\x80?", b"V\0\0\\u0080?\n")
)
def test_numpy_1_and_python_2(tmp_path: Path, raw: bytes):
    old = array(b"(I1\nt", b"f4", raw).replace(b"numpy._core", b"numpy.core") + b"."
    assert pickles.read(write(tmp_path / "f", old)) == [1.0]
    ordered = b"ccollections\nOrderedDict\n((l(lS'b'\naI1\naa(lS'a'\naI2\naatR"
    lists = b"ccollections\ndefaultdict\n(c__builtin__\nlist\ntRS'c'\nI3\ns"
    result = pickles.read(write(tmp_path / "f", b"(" + ordered + lists + b"l."))
    assert [list(x.items()) for x in result] == [[("b", 1), ("a", 2)], [("c", 3)]]


OTHER_FILES = {
    b"\n<!DOCTYPE html><html>": "web page",
    b"version https://git-lfs.github.com/spec/v1\noid": "LFS pointer.* Run: git lfs pull",
    b"PK\x03\x04...": "zip archive. Run: unzip 'f f'",
    b"\x1f\x8b...": "gzip. Run: gzip -dc 'f f' > 'f f'.pkl",
    b"BZh91AY": "bzip2. Run: bzip2 -dc",
    b"\xfd7zXZ\0": "xz. Run: xz -dc",
    b"x\x9c...": "joblib does. If you trust it, run: python .*joblib.load",
    b"7z\xbc\xaf\x27\x1c": "7z archive. Run: 7z x",
    b"Rar!\x1a\x07": "rar archive. Run: unrar x",
    b"a" * 257 + b"ustar": "tar archive. Run: tar -xf",
    b"\x89HDF\r\n...": "HDF5",
    b"video_id,clip_id,text,label\nv,1,so,2\n": "table.* --labels",
    "电影;1\n2;3\n".encode("gb18030"): "table.* --labels",
    b"(cjoblib.numpy_pickle\nNumpyArrayWrapper\n.": "pickle of joblib.*joblib.load",
    b"(cpandas.core.frame\nDataFrame\n.": "pickle of pandas objects.*import .*pandas; ",
}


@pytest.mark.parametrize("content", OTHER_FILES)
def test_other_files_are_named(tmp_path: Path, monkeypatch, content: bytes):
    """With the line that converts or unpacks them, if there is one."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"f f is .*{OTHER_FILES[content]}"):
        pickles.read(write(Path("f f"), content))


@pytest.mark.parametrize("kind", ("torch", "old torch", "tensors", "npz", "npy", "json"))
def test_the_line_converts(tmp_path: Path, monkeypatch, kind: str):
    """A dict of a dict in each container becomes the same dict of arrays or lists."""
    path, x = tmp_path / "f f", np.arange(6.0).reshape(2, 3)
    part = {"train": {"audio": torch.tensor(x), "vision": [(torch.tensor(1.0), "so")]}}
    with open(path, "wb") as file:
        if kind in ("torch", "old torch"):
            torch.save(part, file, _use_new_zipfile_serialization=kind == "torch")
        elif kind == "tensors":
            pickle.dump(part, file)
        elif kind == "json":
            file.write(json.dumps({"train": {"audio": x.tolist()}}).encode())
        elif kind == "npz":
            np.savez(file, train={"audio": x})
        else:
            np.save(file, {"train": {"audio": x}})
    with pytest.raises(UserError) as caught:
        pickles.read(path)
    line = shlex.split(str(caught.value).partition("un: ")[2])
    monkeypatch.setattr(sys, "argv", ["-c", *line[3:]])
    (tmp_path / "code.py").write_text(line[2])
    with warnings.catch_warnings(action="ignore"):  # the line leaves its files to Python's exit
        runpy.run_path(str(tmp_path / "code.py"))
        gc.collect()
    train = pickles.read(f"{path}.pkl")["train"]
    np.testing.assert_array_equal(train["audio"], x)
    assert train.get("vision", [[1, "so"]]) == [[1, "so"]]


# ── Nothing is run ────────────────────────────────────────────────────────────────────────────────


class Reduce:
    def __init__(self, *reduced: Any):
        self.reduced = reduced

    def __reduce__(self) -> tuple:
        return self.reduced


FORBIDDEN = "PERSID BINPERSID INST OBJ NEWOBJ NEWOBJ_EX EXT1 EXT2 EXT4 NEXT_BUFFER READONLY_BUFFER "
FORBIDDEN += "EMPTY_SET ADDITEMS FROZENSET DUP POP POP_MARK"


def hostile(touch: Path) -> Iterator[tuple[bytes, str]]:
    """(content, why it is rejected): if it were run, it would create `touch` or misuse memory."""
    yield b"", "empty file"
    yield b"hello", "damaged or no pickle"
    evil = Reduce(Path.touch, (touch,))
    calls = [evil, np.array([evil, None], object), {"train": {"audio": ("x", [evil])}}, {evil: 1}]
    calls += [Reduce(np.memmap, (str(touch), "u1", "w+", 0, (1,))), Reduce(bytearray, (10**9,))]
    calls += [Reduce(list, (), [1], None, None, Path.touch)]  # a setter of the state
    for call, protocol in itertools.product(calls, (0, 2, 4)):
        yield pickle.dumps(call, protocol), "it asks for .*nothing was run"
    yield b"cnumpy\nndarray.tofile\n(V%b\ntR." % bytes(touch), "asks for numpy.ndarray.tofile"
    yield b"](Vappend\nI1\ndb.", "a state to a value without one"
    yield b"Vos.system\n(Vtrue\ntR.", "calls a value that is not a function"
    yield b"cnumpy\ndtype\n(Vf4\ntR)R.", "calls a value that is not a function"
    yield b"ccollections\nOrderedDict\n(I1\ntR.", "calls dict with arguments"
    yield b"cbuiltins\nbytes\n(I9999999999\ntR.", "calls bytes with arguments"
    yield b"(lp0\ng0\na.", "recursion"
    for opcode in pickletools.opcodes:
        if opcode.name in FORBIDDEN.split():
            reason = f"its opcode {re.escape(repr(opcode.code))} is not for data"
            yield b"cnumpy\nndarray\n)}" + opcode.code.encode("latin1") + b"N\n1\n.", reason
    # Arrays: numpy reads the type "O,i1" as a struct with a pointer, over bytes of the file.
    one, eight = b"(I1\nt", b"C\x08AAAAAAAA"
    yield array(one, b"O8", eight, b"|") + b".", "objects without as many values"
    yield array(one, b"O8", one, b"|") + b".", "objects without as many values"
    yield array(one, b"O8", b"(I1\nI2\nl", b"|") + b".", "objects without as many values"
    yield array(one, b"u1", eight) + b".", "not the bytes for them"
    yield array(b"(I-1\nI-8\nt", b"u1", eight) + b".", "without a shape of integers"
    yield ARRAY + b"(I1\n(I1\ntcnumpy\nndarray\nI00\nVA\ntb.", "calls ndarray"
    types = [(b"i1", order) for order in (b"O,", b"<O,", b"(2)", b"2", b"i4,", b"<<", b",")]
    types += [(kind, b"<") for kind in (b"V8", b"c8", b"M8", b"i\\u0664", b"i1,i1", b"f", b"U0")]
    for (kind, order), size in itertools.product(types, (8, 9, 16, 18)):
        raw = b"C" + bytes([size]) + b"A" * size
        yield array(b"(I2\nt", kind, raw, order) + b".", "neither numbers nor text"
    # Text: code points that do not exist crash fast tokenizers.
    for code, order in itertools.product((0x110000, 0x7FFFFFFF, 0xD800, 0xDFFF), "<>"):
        raw = b"C\x08" + struct.pack(f"{order}II", 65, code)
        yield array(b"(I1\nt", b"U2", raw, order.encode()) + b".", "not Unicode"
    for text in (b"V\\ud800\n", b"X\x03\0\0\0\xed\xa0\x80", b"\x8c\x03\xed\xbf\xbf"):
        for place in (b"(%bl.", b"(%bNd.", b"%b."):
            yield b"\x80\x04" + place % text, "surrogates"
    yield pickle.dumps({"train": {1: 2}}), "key that is not text"


def test_nothing_in_a_hostile_file_is_run(tmp_path: Path):
    touch, path = tmp_path / "touched", tmp_path / "f"
    for content, reason in hostile(touch):
        with pytest.raises(UserError, match=f"^{path} .*{reason}"):
            pickles.read(write(path, content))
        assert not touch.exists(), content
    # The control: pickle itself does run one of them.
    pickle.loads(pickle.dumps(Reduce(Path.touch, (touch,))))  # noqa: S301
    assert touch.exists()


# ── Bombs ─────────────────────────────────────────────────────────────────────────────────────────


def doubled(leaf: bytes = b"Va\n", kind: bytes = b"l") -> bytes:
    """A list that holds a list twice that holds a list twice, ...: memo item 40; 2^40 leaves."""
    twice = (b"(g%d\ng%d\n%bp%d\n" % (k, k, kind, k + 1) for k in range(40))
    return b"((" + leaf + kind + b"p0\n" + b"".join(twice) + b"l"


def file_of(junk: bytes = b"N", **changes: bytes) -> bytes:
    """An MMSA file of 2 segments, which refers to `junk` in its changes; only a train split."""
    frames = array(b"(I2\nI3\nI2\nt", b"f4", b"C" + bytes([48]) + b"\0\0\x80?" * 12)
    part = {"raw_text": b"(Va\nVb\nl", "id": b"(Va\nVb\nl", "audio": frames, "vision": frames}
    part |= {"regression_labels": b"(I1\nI1\nl"} | changes
    keys = b"".join(b"V" + key.encode() + b"\n" + value for key, value in part.items())
    return b"\x80\x04" + junk + b"(Vtrain\n(" + keys + b"dd."


def bombs() -> dict[str, bytes]:
    """Name -> pickle of about a megabyte that would take minutes or gigabytes."""
    words, numbers, long = doubled(), doubled(b"I1\n", b"t"), b"\x8a\x08" + b"\x7f" * 8
    shape, megabyte = b"(I2\nI0\nI100000000\nt", struct.pack("<Q", 1_000_000) + bytes(1_000_000)
    large = array(b"(I500\nI500\nt", b"f4", b"\x8e" + megabyte) + b"p5\n"
    thousand = dict.fromkeys(("raw_text", "id"), b"(" + b"Va\n" * 1000 + b"l")
    thousand |= dict.fromkeys(("audio", "vision"), b"(" + b"g5\n" * 1000 + b"l")
    thousand["regression_labels"] = b"(" + b"I1\n" * 1000 + b"l"
    objects = (array(b"(I2\nt", b"O8", b"(g%d\ng%d\nl" % (k, k), b"|") for k in range(40))
    objects = (x + b"p%d\n" % k for k, x in enumerate(objects, 1))
    prime = 2**61 - 1  # Python's hashes of integers are counted modulo this
    pairs = b"(" + b"".join(b"(V%d\nNt" % k for k in range(20_000)) + b"lp5\n("
    dicts = b"ccollections\nOrderedDict\n(g5\ntR" * 20_000
    text, encoded = b"V" + b"x" * 300_000 + b"\np5\n", b"c_codecs\nencode\n(g5\nVlatin1\ntR"
    return {
        "words": file_of(words, raw_text=b"g40\n"),
        "an unknown key": file_of(words, annotations=b"g40\n"),
        "numbers": file_of(numbers, audio=b"g40\n"),
        "a shape": file_of(audio=array(shape, b"f4", b"C\x00")),
        "a shape of many": file_of(audio=array(b"(%bt" % (long * 90_000), b"f4", b"C\x00")),
        "objects": b"(Va\np0\n" + b"".join(objects) + b"l.",
        "a long integer": b"\x8b" + struct.pack("<i", 900_000) + b"\x7f" * 900_000 + b".",
        "colliding keys": b"(" + b"".join(b"I%d\nN" % (k * prime) for k in range(40_000)) + b"d.",
        "colliding memo": b"N" + b"".join(b"p%d\n" % (k * prime) for k in range(1, 40_000)) + b".",
        "one array, 1,000 segments": file_of(large, **thousand),
        "one text 100,000 times": file_of(text, raw_text=b"(" + b"g5\n" * 100_000 + b"l"),
        "one text encoded 10,000 times": b"(" + text + encoded * 10_000 + b"l.",
        "one list made a dict 20,000 times": pairs + dicts + b"l.",
        "lists, very deep": b"]" * 50_000 + b"a" * 49_999 + b".",
        "100 GB of bytes": b"\x80\x04\x8e" + struct.pack("<Q", 10**11) + b"x.",
    }


@needs_limits
@pytest.mark.parametrize("name", bombs())
def test_a_bomb_is_rejected_in_5_seconds_and_500_megabytes(tmp_path: Path, name: str):
    path = tmp_path / "f"
    formats.read(write(path, file_of()))  # the control
    write(path, bombs()[name])
    with limits(), pytest.raises(UserError, match=f"^{path}"):
        start = time.process_time()
        formats.read(path)
    assert time.process_time() - start < 5


@needs_limits
@pytest.mark.parametrize("kind", ("pipe", "/dev/zero", "folder", "nothing"))
@pytest.mark.parametrize("function", (pickles.read, captions.read_table))
def test_only_regular_files_are_opened(tmp_path: Path, kind: str, function: Callable):
    path = tmp_path / kind  # "/dev/zero" replaces the folder
    make = {"folder": Path.mkdir, "pipe": os.mkfifo}.get(kind, str)
    make(path)
    with limits(seconds=5), pytest.raises(UserError, match=f"^{path} .*not a regular file"):
        function(path)
