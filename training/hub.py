"""Datasets of the Hugging Face hub by their names, OWNER/NAME: their files are fetched once, and read in pieces as any others are."""

from pathlib import Path

from core.errors import BadRequest
from pipelines.engine import hub_errors, is_hub_id
from pipelines.loading import quiet
from training.pairs import PICTURES

_FETCHED = [f"*{ending}" for ending in (".parquet", ".tar", ".jsonl", "prompt.json", ".txt", *PICTURES)]  # what the formats read


def located(folder: Path) -> Path:
    """The folder or file itself where it is there, else the folder of the hub's dataset of this name, downloaded unless it is here already.

    What would lie in a folder that is there is a path with a mistake in it, and no name.

    Raises:
        BadRequest: there is neither, or it cannot be had.
    """
    name = folder.as_posix()
    if folder.exists() or folder.parent.is_dir() or not is_hub_id(name):
        return folder
    from huggingface_hub import snapshot_download

    try:
        with quiet():
            return Path(str(snapshot_download(name, repo_type="dataset", allow_patterns=_FETCHED)))
    except hub_errors() as error:
        raise BadRequest(
            f"dataset {name!r} cannot be read: there is no such folder or file, and the hub's dataset of this name {_why(error)}"
        ) from None


def _why(error: Exception) -> str:
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if isinstance(error, GatedRepoError):
        return "is given to those alone who accept its licence: do so on its page, then run 'hf auth login'"
    if isinstance(error, RepositoryNotFoundError):
        return "does not exist, or is private: check its name, or run 'hf auth login'"
    if constants.HF_HUB_OFFLINE:
        return "is not downloaded, because HF_HUB_OFFLINE is set: unset it, or give a folder"
    return f"cannot be fetched ({type(error).__name__}): try again later, or give a folder"
