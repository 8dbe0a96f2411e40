"""What comes from the hub: MMSA's data files, their SHA-256 checked, and pre-trained encoders."""

import hashlib
import os
import shutil
from contextlib import suppress
from pathlib import Path

from plumbing import UserError, explained, printable
from plumbing.formats import SPELLED

HUB = "Bluexxx/SemMSA-data"  # a data set of the hub; MOSEI's file is there in 13 parts
SOURCES = {  # of the same files, or of files that `formats` reads as well
    "MMSA": "https://drive.google.com/drive/folders/1A2S4pqCHryGmiqnNSPLv7rEg63WvjCSk",
    "MISA": "https://drive.google.com/drive/folders/1IBwWNH0XjPnZWaAlP1U2tIJH6Rb3noMI",
    "MulT": "https://www.dropbox.com/sh/hyzpgx1hp9nj37s/AAB7FhBqJOFDw2hEyvv2ZXHxa",
}
SHA256 = {  # as MMSA's README gives them
    "mosi_unaligned_50.pkl": "78e0f8b5ef8ff71558e7307848fc1fa929ecb078203f565ab22b9daab2e02524",
    "mosei_unaligned_50.pkl": "ad8b23d50557045e7d47959ce6c5b955d8d983f2979c7d9b7b9226f6dd6fec1f",
}


def download(
    repo: str, patterns: list[str], kind: str = "model", folder: Path | None = None
) -> Path:
    """The folder with the files of a hub repository that match `patterns`; resumes a download.

    folder: None keeps them in the hub's cache. Raises soon what the hub's client raises.
    """
    from huggingface_hub import HfApi, snapshot_download

    HfApi().repo_info(repo, repo_type=kind, timeout=10)  # the download would retry for a minute
    return Path(snapshot_download(repo, repo_type=kind, allow_patterns=patterns, local_dir=folder))


def data_file(dataset: str, folder: str | Path) -> Path:
    """The first file or folder of "mosi" or "mosei" in `folder`; else MMSA's, fetched from the hub.

    Prints which. Raises UserError, soon, if there is none; a file with another SHA-256 is set
    aside. One of many processes fetches, and the others wait for it.
    """
    from huggingface_hub.constants import ENDPOINT
    from huggingface_hub.utils import WeakFileLock

    folder = Path(folder)
    if files := files_of(dataset, folder):
        others = f", the first of {len(files)} in {folder}/" if len(files) > 1 else ""
        print(f"data: {printable(str(files[0]))}{others}", flush=True)
        return files[0]
    target = folder / f"{dataset}_unaligned_50.pkl"
    hub = f"{ENDPOINT}/datasets/{HUB}"
    print(
        f"data: {folder}/ holds no file of {dataset}; fetching {target.name} from {hub}", flush=True
    )
    try:
        with explained(f"{target} is missing and could not be fetched from {hub}"):
            folder.mkdir(exist_ok=True)
            with WeakFileLock(folder / ".lock"):
                if not target.exists():
                    pieces = download(HUB, [f"*{target.name}*"], "dataset", folder / ".hub")
                    join_parts(pieces, target)
    except UserError:
        print(f"Put one of these files into {folder}/{dataset}/, or name it with --data FILE:")
        print("".join(f"  {name:5} {url}\n" for name, url in SOURCES.items()), end="", flush=True)
        raise
    return target


def files_of(dataset: str, folder: Path) -> list[Path]:
    """Pickles, and folders of train.pkl and so on, whose path in `folder` contains the name.

    Enters linked folders and skips hidden files.
    """
    results, visited = set(), {(os.path.realpath(folder), True)}
    for root, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        named = dataset in os.path.relpath(root, folder).lower()
        if (os.path.realpath(root), named) in visited:  # a link to a folder above it
            folders.clear()
            continue
        visited.add((os.path.realpath(root), named))
        for path in (Path(root, name) for name in names if not name.startswith(".")):
            is_pickle = path.suffix.lower() in (".pkl", ".pickle") and path.is_file()
            if is_pickle and (named or dataset in path.name.lower()):
                results.add(path.parent if path.stem in SPELLED else path)
    return sorted(results)


def join_parts(folder: Path, target: Path) -> None:
    """Join the parts that were downloaded to `folder`, check the SHA-256, remove the folder."""
    parts = [path for path in folder.rglob(f"{target.name}*") if ".cache" not in path.parts]
    if not parts:
        raise FileNotFoundError(f"the hub has no file {target.name}")
    partial, sha256 = target.with_name(f"{target.name}.partial"), hashlib.sha256()
    with open(partial, "wb") as whole:
        for part in sorted(parts, key=lambda path: (len(path.name), path.name)):  # 2 before 10
            with open(part, "rb") as piece:
                while block := piece.read(1 << 24):
                    sha256.update(block)
                    whole.write(block)
            part.unlink()
    shutil.rmtree(folder, ignore_errors=True)
    expected = SHA256[target.name]
    if sha256.hexdigest() != expected:
        wrong = partial.replace(target.with_name(f"{target.name}.wrong"))
        what = f"{wrong}, set aside, has SHA-256 {sha256.hexdigest()}"
        raise UserError(f"{what}, but MMSA published {expected}")
    print(f"SHA-256 {expected}: the one that MMSA published")
    partial.replace(target)


def encoder(name_or_folder: str) -> str:
    """The folder of an encoder: the one given, or a hub name's in the hub's cache.

    Raises UserError, soon, if there is neither. No pickle of weights is fetched.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import ENDPOINT
    from huggingface_hub.errors import LocalEntryNotFoundError

    if Path(name_or_folder).is_dir():
        return str(name_or_folder)
    what = f"{name_or_folder} is not a folder and could not be fetched from {ENDPOINT}"
    wanted, cached = ["*.json", "*.txt", "*.model", "model*.safetensors"], Path("no such folder")
    with explained(what), suppress(LocalEntryNotFoundError):
        local = {"local_files_only": True, "allow_patterns": wanted}
        cached = Path(snapshot_download(name_or_folder, **local))
    if any(cached.glob("*.safetensors")):
        return str(cached)
    if any(cached.glob("*.bin")):
        what += f" (its copy in {cached} has its weights only as a pickle, which is not read)"
    with explained(what):
        return str(download(name_or_folder, wanted))
