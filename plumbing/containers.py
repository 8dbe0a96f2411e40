"""Files that are not pickles of plain data: what each is, and the line that converts it."""

import re
import shlex
from pathlib import Path

from plumbing import UserError


def python(library: str, load: str) -> str:
    """A line that loads FILE, makes arrays of tensors and dicts of tables, and writes FILE.pkl."""
    convert = (  # [()] gives the item of an array without dimensions, else the array
        "f = lambda x: {k: f(v) for k, v in x.items()} "
        "if isinstance(x, dict) or hasattr(x, 'columns') "
        "else [f(v) for v in x] if isinstance(x, (list, tuple)) "
        "else numpy.asarray(x)[()] if hasattr(x, '__array__') else x"
    )
    save = f"pickle.dump(f({load}), open(sys.argv[1] + '.pkl', 'wb'))"
    return f'python -c "import numpy, pickle, sys, {library}; {convert}; {save}" FILE'


PICKLE, NUMPY = "pickle.load(open(sys.argv[1], 'rb'))", "numpy.load(sys.argv[1], allow_pickle=True)"
JOBLIB = python("joblib", "joblib.load(sys.argv[1])")
OTHER_FILES = {  # how a file begins, or a name that its pickle asks for: what it is, and the line
    rb"\s*<": ("a web page: the download went wrong", ""),
    rb"version https://git-lfs": ("a Git LFS pointer, not the data", "git lfs pull"),
    rb"PK\x03\x04.{26,126}data\.pkl|\x80\x02\x8a\nl\xfc\x9cF\xf9 j": (
        "a file of torch",
        python("torch", "torch.load(sys.argv[1], 'cpu', weights_only=False)"),
    ),
    rb"PK\x03\x04.{26,126}\.npy": ("an .npz of numpy", python("numpy", f"dict({NUMPY})")),
    rb"PK\x03\x04": ("a zip archive", "unzip FILE"),
    rb"\x93NUMPY": ("an .npy of numpy", python("numpy", NUMPY)),
    rb"\x1f\x8b": ("compressed by gzip", "gzip -dc FILE > FILE.pkl"),
    rb"BZh": ("compressed by bzip2", "bzip2 -dc FILE > FILE.pkl"),
    rb"\xfd7zXZ": ("compressed by xz", "xz -dc FILE > FILE.pkl"),
    rb"x[\x01\x5e\x9c\xda]": ("compressed by zlib, as joblib does", JOBLIB),
    rb"7z\xbc\xaf": ("a 7z archive", "7z x FILE"),
    rb"Rar!": ("a rar archive", "unrar x FILE"),
    rb".{257}ustar": ("a tar archive", "tar -xf FILE"),
    rb"\x89HDF": ("an HDF5 file, perhaps the CMU SDK's: it has no processed features", ""),
    rb"\s*[\[{]": ("JSON", python("json", "json.load(open(sys.argv[1], encoding='utf-8'))")),
    rb"joblib\.": ("a pickle of joblib", JOBLIB),
    rb"torch\.": ("a pickle of torch tensors", python("torch", PICKLE)),
    rb"pandas\.": ("a pickle of pandas objects", python("pandas", PICKLE)),
    rb"\xff\xfe|\xfe\xff|\xef\xbb\xbf|[\t -\xff]+[,;\t][\t -\xff]+\r?\n": (
        "a table, such as a CSV, not features: name a table of text with --labels",
        "",
    ),
}


def reject(path: str | Path, beginning: bytes) -> None:
    """Raise UserError if this is how another file begins; it says which line converts the file."""
    for pattern, (what, line) in OTHER_FILES.items():
        if re.match(pattern, beginning, re.DOTALL):
            line = line.replace("FILE", shlex.quote(str(path)))
            run = "If you trust it, run" if "pickle" in line else "Run"
            raise UserError(f"{path} is {what}" + (f". {run}: {line}" if line else ""))
