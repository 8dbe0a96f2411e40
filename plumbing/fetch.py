"""What comes from the hub: MMSA's data files, their SHA-256 checked, and pre-trained encoders."""

import glob
import hashlib
import shutil
from contextlib import suppress
from pathlib import Path

from plumbing import UserError, explained, printable
from plumbing.formats import SPELLED

HUB = "Bluexxx/SemMSA-data"  # a data set of the hub; MOSEI's file is there in 13 parts
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
    target, hub = folder / f"{dataset}_unaligned_50.pkl", f"{ENDPOINT}/datasets/{HUB}"
    print(f"data: no file of {dataset} in {folder}/; fetching {target.name} from {hub}", flush=True)
    what = f"{target} is missing and could not be fetched from {hub}"
    with explained(f"{what}; name a file with --data FILE (README's section Data lists sources)"):
        folder.mkdir(exist_ok=True)
        with WeakFileLock(folder / ".lock"):
            if not target.exists():
                pieces = download(HUB, [f"*{target.name}*"], "dataset", folder / ".hub")
                join_parts(pieces, target)
    return target


def files_of(dataset: str, folder: Path) -> list[Path]:
    """Pickles, and folders of train.pkl and so on, whose path in `folder` contains the name.

    Enters linked folders, but not those that lead back up; skips hidden files; looks at most four
    folders deep.
    """
    results = set()
    for depth in range(5):
        for name in glob.glob("*/" * depth + "*", root_dir=folder):
            path = folder / name
            is_pickle = path.suffix.lower() in (".pkl", ".pickle") and path.is_file()
            if is_pickle and dataset in name.lower():
                folders = [(folder / parent).resolve() for parent in Path(name).parents]
                if len(set(folders)) < len(folders):  # a link led back to a folder above it
                    continue
                results.add(path.parent if path.stem in SPELLED else path)
    return sorted(results)


def join_parts(folder: Path, target: Path) -> None:
    """Join the parts that were downloaded to `folder`, check the SHA-256, remove the folder."""
    parts = [path for path in folder.rglob(f"{target.name}*") if ".cache" not in path.parts]
    if not parts:
        raise FileNotFoundError(f"the hub has no file {target.name}")
    partial, expected = target.with_name(f"{target.name}.partial"), SHA256[target.name]
    with open(partial, "wb") as whole:
        for part in sorted(parts, key=lambda path: (len(path.name), path.name)):  # 2 before 10
            with open(part, "rb") as piece:
                shutil.copyfileobj(piece, whole)
            part.unlink()
    shutil.rmtree(folder, ignore_errors=True)
    with open(partial, "rb") as whole:
        sha256 = hashlib.file_digest(whole, "sha256").hexdigest()
    if sha256 != expected:
        wrong = partial.replace(target.with_name(f"{target.name}.wrong"))
        raise UserError(f"{wrong}, set aside, has SHA-256 {sha256}, but MMSA published {expected}")
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
    wanted = ["*.json", "*.txt", "*.model", "model*.safetensors"]
    what = f"{name_or_folder} is not a folder and could not be fetched from {ENDPOINT}"
    with explained(what), suppress(LocalEntryNotFoundError):
        cached = snapshot_download(name_or_folder, allow_patterns=wanted, local_files_only=True)
        if any(Path(cached).glob("*.safetensors")):
            return cached
        if any(Path(cached).glob("*.bin")):
            what += f" ({cached} holds its weights only as a pickle, which is not read)"
    with explained(what):
        return str(download(name_or_folder, wanted))
