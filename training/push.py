"""Publishing a finished ControlNet on the Hugging Face hub: what would refuse it is found before a day is spent on training."""

from pathlib import Path
from typing import Any

from core.errors import BadRequest, LimnError


def check_push(repo: str) -> None:
    """Whether `repo` could be pushed to, as far as can be known without asking the hub. Empty: nothing is to be pushed.

    Raises:
        BadRequest: it is no name of a repository, the hub is switched off, or nobody is logged in.
    """
    if not repo:
        return
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise BadRequest(f"push {repo!r} is no repository of the hub ({' '.join(str(error).split())[:120]}): write owner/name") from None
    if "/" not in repo:
        raise BadRequest(f"push {repo!r} names no owner: write owner/name")
    if constants.HF_HUB_OFFLINE:
        raise BadRequest(f"push {repo!r}: HF_HUB_OFFLINE is set, so that nothing can be pushed: unset it, or leave push out")
    if get_token() is None:
        raise BadRequest(f"push {repo!r}: nobody is logged in to the hub: run `hf auth login`, or leave push out")


def push(folder: Path, repo: str) -> str:
    """Uploads a finished folder, private where the repository is new, and returns its address.

    Raises:
        LimnError: the hub refused it or was not reached; the folder stands as it was.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    unreached: Any = HfHubHTTPError.__bases__  # what the hub's own errors are kinds of, in the HTTP library that it uses
    api = HfApi()
    try:
        api.create_repo(repo, private=True, exist_ok=True)
        return str(api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Trained with Limn").repo_url)
    except (*unreached, OSError) as error:
        first = str(error).strip().partition("\n")[0][:160]
        raise LimnError(f"push {repo!r} failed ({first}); the weights stand: hf upload {repo} {folder}") from None
