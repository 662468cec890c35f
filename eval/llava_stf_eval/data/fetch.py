"""Download the benchmarks' data sets into a folder, as `--data` reads them, and of each only the splits that are asked.

A data set's README names its configurations, splits and files. The copy gets a README that names those that are
there, since every split of a configuration is read when one is.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from llava_stf.errors import DataError
from llava_stf.io.publish import write_file
from llava_stf_eval.data.tables import TABLES
from llava_stf_eval.protocols import USUAL, parse

Split = tuple[str, str]  # configuration and split, as the hub names them


@dataclass(frozen=True)
class Remote:
    """A data set of the hub: bytes of every file, and the files of every split."""

    name: str
    sizes: dict[str, int]
    splits: dict[Split, list[str]]

    def files(self, asked: Sequence[Split]) -> list[str]:
        """Files of these splits.

        Raises:
            DataError: one that is not there.
        """
        for config, split in asked:
            if not self.splits.get((config, split)):
                known = ", ".join(f"{c}/{s}" for c, s in self.splits) or "none"
                raise DataError(f"{self.name}: expected a split {config}/{split} on the hub, found {known}.")
        return sorted({file for split in asked for file in self.splits[split]})


def fetch_data(names: Sequence[str], folder: Path) -> None:
    """Downloads what the benchmarks need into `folder`/<org>/<name>; prints all sizes first, shows progress.

    What is there already is not fetched again. `names` are as in `TaskOptions`; none is all nine.

    Raises:
        LlavaStfError: an unknown benchmark or split.
        DataError: the hub cannot be reached or lacks a data set or split, or the disk is too small.
    """
    asked: dict[str, list[Split]] = defaultdict(list)
    for name in names or USUAL:
        benchmark, split = parse(name)
        asked[benchmark.dataset] += [(t.config, t.splits[split]) for t in TABLES[benchmark.name] if t.needed]
    remotes = {dataset: _look(dataset) for dataset in asked}
    files = {dataset: remotes[dataset].files(splits) for dataset, splits in asked.items()}
    total = _print_sizes(remotes, files, folder)
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if total > free:
        raise DataError(f"{total / 1e9:.1f} GB are to be downloaded, and {folder} has room for {free / 1e9:.1f} GB.")
    for dataset, remote in remotes.items():
        _download(remote, files[dataset], folder / dataset)


def _look(dataset: str) -> Remote:
    from huggingface_hub import DatasetCard, HfApi
    from huggingface_hub.errors import HTTPError, RepositoryNotFoundError

    try:
        siblings = HfApi().dataset_info(dataset, files_metadata=True).siblings or []
        card: dict[str, Any] = DatasetCard.load(dataset).data.to_dict()
    except RepositoryNotFoundError as error:
        raise DataError(f"The hub has no data set {dataset} that you may read; log in with `hf auth login`.") from error
    except (OSError, HTTPError) as error:
        raise DataError(
            f"The data set {dataset} cannot be fetched, the hub cannot be reached (offline?): fetch where there is a "
            f"network and copy the folder, {type(error).__name__}."
        ) from error
    sizes = {file.rfilename: file.size or 0 for file in siblings}
    splits = {
        (config["config_name"], entry["split"]): [file for file in sizes if _matches(file, entry["path"])]
        for config in card.get("configs") or []
        for entry in _entries(config)
    }
    return Remote(dataset, sizes, splits)


def _entries(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A configuration's data files, where they are named split by split."""
    files = config.get("data_files")
    yield from (entry for entry in files if isinstance(entry, dict)) if isinstance(files, list) else ()


def _matches(file: str, patterns: str | list[str]) -> bool:
    return any(fnmatch(file, pattern) for pattern in ([patterns] if isinstance(patterns, str) else patterns))


def _print_sizes(remotes: dict[str, Remote], files: dict[str, list[str]], folder: Path) -> int:
    """Prints what is still to be downloaded of each data set; returns the sum in bytes."""
    from rich.console import Console
    from rich.table import Table

    table = Table("data set", "files", "size", "to download", title=f"Into {folder}")
    total = 0
    for dataset, remote in remotes.items():
        sizes = {file: remote.sizes[file] for file in files[dataset]}
        missing = sum(size for file, size in sizes.items() if not (folder / dataset / file).is_file())
        table.add_row(dataset, str(len(sizes)), _megabytes(sum(sizes.values())), _megabytes(missing))
        total += missing
    table.add_section()
    table.add_row("all", "", "", _megabytes(total))
    Console().print(table)
    return total


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _download(remote: Remote, files: list[str], target: Path) -> None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError

    try:
        snapshot_download(remote.name, repo_type="dataset", local_dir=target, allow_patterns=files)
    except (OSError, HTTPError) as error:
        raise DataError(
            f"{remote.name} was not downloaded as a whole ({error}); the same command goes on where it stopped."
        ) from error
    present: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for (config, split), own in remote.splits.items():
        if own and all((target / file).is_file() for file in own):
            present[config].append({"split": split, "path": own})
    configs = [{"config_name": config, "data_files": entries} for config, entries in present.items()]
    write_file(target / "README.md", f"---\n{yaml.safe_dump({'configs': configs}, sort_keys=False)}---\n")
