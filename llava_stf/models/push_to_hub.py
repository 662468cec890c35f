"""Folders of checkpoints, brought to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import HfApi


def upload(
    folder: Path,
    repo_id: str | None = None,
    commit_message: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    create_pr: bool = False,
    **kwargs: Any,
) -> None:
    """Bring a folder to the Hugging Face hub.

    Args:
        folder: what to upload, all of it.
        repo_id: owner/name there; created where it is not; by default the folder's name.
        commit_message: of the upload.
        private: whether a new repository is.
        token: of the user.
        create_pr: open a pull request instead of a commit.
        **kwargs: others of `save_pretrained` say nothing here.
    """
    api = HfApi(token=token)
    name = api.create_repo(repo_id or folder.name, private=private, exist_ok=True).repo_id
    api.upload_folder(folder_path=folder, repo_id=name, commit_message=commit_message, create_pr=create_pr)
