"""The synthetic world as local copies of the data sets, so that real task code runs on data the models know.

    python -m llava_stf_eval.data.drawn --out data --images 100

writes `data/<org>/<name>/` in the hub's layout: a README that names configurations and splits, and Parquet files.
"""

from __future__ import annotations

import argparse
import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from llava_stf.errors import DataError
from llava_stf.io.command import run
from llava_stf.io.publish import publish
from llava_stf_eval.data.rows import ROWS, Rows, drawn_images
from llava_stf_eval.data.tables import TABLES, Table, features
from llava_stf_eval.protocols import BENCHMARKS, parse


def write_benchmarks(
    folder: Path, *, images: int, seed: int = 0, benchmarks: Sequence[str] | None = None
) -> dict[str, int]:
    """Draws held-out images and writes each of the benchmarks (default: all) to `folder`/<org>/<name>.

    A data set appears complete or not at all. Returns the number of rows of each benchmark's default split.

    Raises:
        DataError: a data set is there already, or the images give a benchmark no question.
        LlavaStfError: a benchmark's name is unknown.
    """
    if images < 1:
        raise DataError(f"Expected at least one image, found {images}.")
    names = [parse(name)[0].name for name in benchmarks or BENCHMARKS]
    by_dataset: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        by_dataset[BENCHMARKS[name].dataset].append(name)
    for dataset in by_dataset:
        if (folder / dataset).exists():
            raise DataError(f"{folder / dataset} is there already; name another folder.")
    drawn = drawn_images(images, seed)
    counts: dict[str, int] = {}
    for dataset, members in by_dataset.items():
        target = folder / dataset
        with publish(target) as beside:
            written: dict[str, dict[str, str]] = {}
            for name in members:
                rows = ROWS[name](drawn)
                for table in TABLES[name]:
                    written[table.config] = _write_table(beside, table, rows)
                counts[name] = len(rows[TABLES[name][0].config, TABLES[name][0].splits[BENCHMARKS[name].splits[0]]])
            (beside / "README.md").write_text(_readme(written))
    return counts


def _write_table(root: Path, table: Table, rows: Rows) -> dict[str, str]:
    """One Parquet file per split of a configuration; returns their paths by split.

    A file's name holds a digest of its content: `datasets` keeps what it has prepared under the README's content, and
    would take another folder's images for these if both READMEs said the same.
    """
    import pyarrow as pa
    from pyarrow import parquet

    schema = features(table).arrow_schema
    paths = {}
    for split in table.splits.values():
        found = rows.get((table.config, split))
        if not found:
            raise DataError(f"These images give {root.name} ({table.config}, {split}) no question; draw more.")
        buffer = pa.BufferOutputStream()
        parquet.write_table(pa.Table.from_pylist(found, schema=schema), buffer)
        content = buffer.getvalue()
        digest = hashlib.sha256(content).hexdigest()[:16]
        paths[split] = f"{table.config}/{split}-00000-of-00001-{digest}.parquet"
        (root / table.config).mkdir(parents=True, exist_ok=True)
        (root / paths[split]).write_bytes(content)
    return paths


def _readme(written: dict[str, dict[str, str]]) -> str:
    lines = ["---", "configs:"]
    for config, paths in written.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for split, path in paths.items():
            lines += [f"  - split: {split}", f"    path: {path}"]
    return "\n".join([*lines, "---", "", "Drawn images in this data set's schema, and none of its data.", ""])


def main() -> None:
    """Write the data sets that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to; it is created")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the held-out images")
    parser.add_argument("--benchmark", action="append", help="only this one; repeatable")
    options = parser.parse_args()
    counts = write_benchmarks(options.out, images=options.images, seed=options.seed, benchmarks=options.benchmark)
    for name, count in counts.items():
        print(f"{BENCHMARKS[name].title}: {count} rows in {options.out / BENCHMARKS[name].dataset}")


if __name__ == "__main__":
    run(main)
