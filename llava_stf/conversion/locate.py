"""Find a checkpoint by name: a local path, or a repository on the Hugging Face hub, fetched as far as needed."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath

from llava_stf.errors import LlavaStfError, ModelNotFoundError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SMALL_FILES = (".json", ".jinja", ".model", ".txt")
_ADAPTER = "mm_projector.bin"


def is_hub_id(name: str) -> bool:
    """Whether `name` has the form owner/name of a hub repository."""
    return _HUB_ID.fullmatch(name) is not None


def locate(
    name: str | Path, *, subfolder: str | None = None, revision: str | None = None, weights: bool = True
) -> Path:
    """The local path of a checkpoint file or folder, fetched from the hub if `name` is an id and no local path.

    Args:
        name: a path, or owner/name on the hub. What exists locally is taken first.
        subfolder: folder inside it that holds the checkpoint.
        revision: branch, tag or commit on the hub; a local path has none.
        weights: fetch the weights too, not only the small files beside them.

    Raises:
        ModelNotFoundError: there is no such thing, or no name; it says what was looked for, where, and what to do.
        LlavaStfError: a revision of a local path.
    """
    if not isinstance(name, str | Path):
        raise ModelNotFoundError(f"A model is named by a path or a hub id, found {type(name).__name__}.")
    path = Path(name).expanduser()
    if os.path.exists(path):  # False, too, for what can be no path
        if revision is not None:
            raise LlavaStfError(
                f"'{name}' is a local path, which has no revision '{revision}'; leave revision out, or check out that "
                "revision there."
            )
        return _inside(path, subfolder, name)
    if not is_hub_id(str(name)):
        raise ModelNotFoundError(
            f"No model '{name!s:.200}': there is no such file or folder (looked in {Path.cwd()}), and it is no hub "
            "id (owner/name); check the path."
        )
    return _inside(_fetch(str(name), subfolder, revision, weights), subfolder, name)


def _inside(path: Path, subfolder: str | None, name: str | Path) -> Path:
    inner = path / subfolder if subfolder else path
    if not inner.exists():
        raise ModelNotFoundError(f"'{name}' has no subfolder '{subfolder}'; check its name.")
    return inner


def _fetch(repo: str, subfolder: str | None, revision: str | None, weights: bool) -> Path:
    """The local snapshot of a hub repository, brought up to date where the hub can be reached."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        HTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    at = f" at revision '{revision}'" if revision else ""
    try:
        siblings = HfApi().model_info(repo, revision=revision).siblings or []
        wanted = _wanted([file.rfilename for file in siblings], subfolder or "", weights)
        return Path(snapshot_download(repo, revision=revision, allow_patterns=wanted))
    except (GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ModelNotFoundError(
            f"The Hugging Face hub has no model '{repo}'{at} that you may read, and there is no such local path; check "
            "the name, or log in with `hf auth login` if it is private or gated."
        ) from error
    except (OSError, HTTPError) as unreachable:  # offline mode, no network, the hub is down
        try:
            return Path(snapshot_download(repo, revision=revision, local_files_only=True))
        except (OSError, HTTPError):
            raise ModelNotFoundError(
                f"No model '{repo}'{at}: it is no local path, is not in the Hugging Face cache, and the hub cannot be "
                "reached (offline?); download it while online or give a local folder."
            ) from unreachable


def _wanted(files: list[str], subfolder: str, weights: bool) -> list[str]:
    """Files of one folder of a repository: small ones and, of the weights, safetensors only where there are some."""
    here = [file for file in files if str(PurePosixPath(file).parent) == str(PurePosixPath(subfolder))]
    wanted = [file for file in here if file.endswith(_SMALL_FILES)]
    if weights:
        safe = [file for file in here if file.endswith(".safetensors")]
        wanted += safe or [file for file in here if file.endswith(".bin")]
        wanted += [file for file in here if PurePosixPath(file).name == _ADAPTER]
    return wanted
