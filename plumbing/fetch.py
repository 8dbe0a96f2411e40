"""What comes from the hub: MMSA's data files, their SHA-256 checked, and pre-trained encoders."""

import hashlib
import shutil
from contextlib import suppress
from pathlib import Path

from plumbing import UserError, explained
from plumbing.formats import SPELLED

HUB = "Bluexxx/SemMSA-data"  # on huggingface.co/datasets; MOSEI's file is there in 13 parts
ELSEWHERE = (
    "MMSA's https://drive.google.com/drive/folders/1A2S4pqCHryGmiqnNSPLv7rEg63WvjCSk, "
    "MISA's https://drive.google.com/drive/folders/1IBwWNH0XjPnZWaAlP1U2tIJH6Rb3noMI, "
    "MulT's https://www.dropbox.com/sh/hyzpgx1hp9nj37s/AAB7FhBqJOFDw2hEyvv2ZXHxa"
)
SHA256 = {  # as MMSA's README gives them
    "mosi_aligned_50.pkl": "d3994fd25681f9c7ad6e9c6596a6fe9b4beb85ff7d478ba978b124139002e5f9",
    "mosi_unaligned_50.pkl": "78e0f8b5ef8ff71558e7307848fc1fa929ecb078203f565ab22b9daab2e02524",
    "mosei_aligned_50.pkl": "45eccfb748a87c80ecab9bfac29582e7b1466bf6605ff29d3b338a75120bf791",
    "mosei_unaligned_50.pkl": "ad8b23d50557045e7d47959ce6c5b955d8d983f2979c7d9b7b9226f6dd6fec1f",
}


def download(repo, patterns, kind="model", folder=None):
    """The folder with the files of a hub repository that match `patterns`; goes on where it stopped.

    folder: None keeps them in the hub's cache. Raises soon what the hub's client raises.
    """
    from huggingface_hub import HfApi, snapshot_download

    HfApi().repo_info(repo, repo_type=kind, timeout=10)  # the download would retry for a minute
    return Path(snapshot_download(repo, repo_type=kind, allow_patterns=patterns, local_dir=folder))


def data_file(dataset, folder):
    """The first file or folder of "mosi" or "mosei" in `folder`; else MMSA's, fetched from the hub.

    UserError, soon, if it cannot be had; a file with another SHA-256 is set aside. Of many
    processes one fetches, and the others wait for it.
    """
    from huggingface_hub.utils import WeakFileLock

    folder = Path(folder)
    if found := files_of(dataset, folder):
        return found[0]
    target = folder / f"{dataset}_unaligned_50.pkl"
    hub = f"https://huggingface.co/datasets/{HUB}"
    with explained(
        f"{target} is not there and could not be fetched from {hub} (other sources: {ELSEWHERE}; "
        "name a file with --data; `--dataset synthetic` needs none)"
    ):
        folder.mkdir(exist_ok=True)
        with WeakFileLock(folder / ".lock"):
            if not target.exists():
                print(f"{target} is not there: fetching it from {hub}")
                pieces = download(HUB, [f"*{target.name}*"], "dataset", folder / ".hub")
                join_parts(pieces, target)
    return target


def files_of(dataset, folder):
    """Files, and folders of train.pkl and so on, whose path in `folder` starts with the name."""
    files = [
        path
        for path in folder.rglob("*.pkl")
        if str(path.relative_to(folder)).lower().startswith(dataset)
    ]
    found = sorted({path.parent if path.stem in SPELLED else path for path in files})
    if len(found) > 1:
        print(
            f"note: of {len(found)} files of {dataset} in {folder}/ the first is taken: {found[0]}"
        )
    return found


def join_parts(folder, target):
    """One file of the parts that were downloaded to `folder`, which is removed; SHA-256 checked."""
    parts = [path for path in folder.rglob(f"{target.name}*") if ".cache" not in path.parts]
    if not parts:
        raise FileNotFoundError(f"{target.name} is no longer there")
    partial = target.with_name(f"{target.name}.partial")
    with open(partial, "wb") as whole:
        for part in sorted(parts, key=lambda path: (len(path.name), path.name)):  # 2 before 10
            with open(part, "rb") as piece:
                shutil.copyfileobj(piece, whole, 1 << 24)
            part.unlink()
    shutil.rmtree(folder, ignore_errors=True)
    found = sha256(partial)
    if found != SHA256[target.name]:
        aside = partial.replace(target.with_name(f"{target.name}.wrong"))
        raise UserError(
            f"{aside}, set aside, has SHA-256 {found}, but MMSA published {SHA256[target.name]}"
        )
    print(f"SHA-256 {found}: the one that MMSA published")
    partial.replace(target)


def sha256(path):
    """A file's SHA-256, in hexadecimal; 13.7 GB take about a minute."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def encoder(name_or_folder):
    """Where an encoder is on this disk: a folder as it is, a hub name once it is in the hub's cache.

    UserError, soon, if it is neither a folder nor to be had from the hub. No pickle is fetched.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    if Path(name_or_folder).is_dir():
        return str(name_or_folder)
    wanted = ["*.json", "*.txt", "*.model", "model*.safetensors"]
    with explained(
        f"{name_or_folder} is no folder and could not be fetched from the hub "
        "(--bert takes the folder of any BERT-like encoder)"
    ):
        with suppress(LocalEntryNotFoundError):
            cached = snapshot_download(name_or_folder, local_files_only=True, allow_patterns=wanted)
            if any(Path(cached).glob("*.safetensors")):
                return cached
        return str(download(name_or_folder, wanted))
