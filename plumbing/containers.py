"""Files that are not pickles of plain data: what each is, and the command that converts it."""

import re
import shlex


def python(module: str, load: str, leaf: str = "x") -> str:
    """A command that loads a file, applies `leaf` to each value x, and pickles the result."""
    plain = f"f = lambda x: {{k: f(v) for k, v in x.items()}} if isinstance(x, dict) else {leaf}"
    dump = f"pickle.dump(f({load}), open(sys.argv[2], 'wb'))"
    return f'python -c "import pickle, sys, {module}; {plain}; {dump}" FILE FILE.pkl'


PICKLE, JOBLIB = "pickle.load(open(sys.argv[1], 'rb'))", "joblib.load(sys.argv[1])"
TENSORS, TABLES = "x.numpy() if torch.is_tensor(x) else x", "x.to_dict('list')"
TORCH = python("torch", "torch.load(sys.argv[1], 'cpu', weights_only=False)", TENSORS)
NUMPY = "numpy.load(sys.argv[1], allow_pickle=True)"
JSON = python("json", "json.load(open(sys.argv[1], encoding='utf-8'))")
OBJECTS = {  # by library: the command for a pickle that holds its objects
    "torch": python("torch", PICKLE, TENSORS),
    "pandas": python("pandas", PICKLE, f"{TABLES} if hasattr(x, 'columns') else x"),
    "joblib": python("joblib", JOBLIB),
}
BEGINNINGS = {  # how a file begins: what it is, and the command that converts it
    rb"\s*<": ("a web page: the download went wrong", ""),
    rb"version https://git-lfs": ("a Git LFS pointer, not the data", "git lfs pull"),
    rb"PK\x03\x04.{26,126}data\.pkl|\x80\x02\x8a\nl\xfc\x9cF\xf9 j": ("a torch file", TORCH),
    rb"PK\x03\x04.{26,126}\.npy": (
        "an archive of numpy arrays",
        python("numpy", f"dict({NUMPY})", "x.tolist() if x.dtype == object else x"),
    ),
    rb"PK\x03\x04": ("a zip archive", "unzip FILE"),
    rb"\x93NUMPY": ("a numpy array", python("numpy", f"{NUMPY}.item()")),
    rb"\x1f\x8b": ("compressed by gzip", "gzip -dc FILE > FILE.pkl"),
    rb"BZh": ("compressed by bzip2", "bzip2 -dc FILE > FILE.pkl"),
    rb"\xfd7zXZ": ("compressed by xz", "xz -dc FILE > FILE.pkl"),
    rb"x[\x01\x5e\x9c\xda]": ("compressed by zlib, as joblib does", OBJECTS["joblib"]),
    rb"7z\xbc\xaf": ("a 7z archive", "7z x FILE"),
    rb"Rar!": ("a rar archive", "unrar x FILE"),
    rb".{257}ustar": ("a tar archive", "tar -xf FILE"),
    rb"\x89HDF": ("an HDF5 file (the CMU SDK's .csd?), not processed features", ""),
    rb"\s*[\[{]": ("JSON", JSON),
    rb"\xff\xfe|\xfe\xff|\xef\xbb\xbf|[\t -\xff]+[,;\t][\t -\xff]+\r?\n": (
        "a table of text, not of features; name a CSV with text by --labels",
        "",
    ),
}


def container(path: str, beginning: bytes) -> str | None:
    """A sentence on a file that is not a pickle, by its first bytes; None if it may be one."""
    for magic, (what, command) in BEGINNINGS.items():
        if re.match(magic, beginning, re.DOTALL):
            return f"{path} is {what}{advice(path, command)}"
    return None


def advice(path: str, command: str) -> str:
    """The second sentence: which command to run."""
    trust = "If you trust it, run" if "pickle" in command else "Run"
    return command and f". {trust}: {command.replace('FILE', shlex.quote(path))}"
