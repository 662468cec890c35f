"""What the machines of a Ray cluster must have in common for one batch, looked at on each before it starts."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llava_stf.batch.job import BatchJob
from llava_stf.batch.places import S3Path, claim_file, open_place
from llava_stf.errors import LlavaStfError
from llava_stf.io.json import parse_json


@dataclass(frozen=True)
class Node:
    """A machine of the cluster: Ray's id of it, its address, and the whole cores and GPUs that it gives to work."""

    id: str
    address: str
    cpus: int
    gpus: int

    def __str__(self) -> str:
        return f"{self.address} ({self.id[:8]})"


def working_nodes() -> list[Node]:
    """The machines of the cluster that are given work: those with GPUs, or if none has any those with cores.

    Raises:
        LlavaStfError: there is none.
    """
    import ray

    nodes = [
        Node(
            node["NodeID"],
            node["NodeManagerAddress"],
            int(node["Resources"].get("CPU", 0)),
            int(node["Resources"].get("GPU", 0)),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]
    working = [node for node in nodes if node.gpus] or [node for node in nodes if node.cpus]
    if not working:
        raise LlavaStfError(f"None of the {len(nodes)} machine(s) of the Ray cluster has a core to work with.")
    return working


def check_nodes(job: BatchJob, nodes: Sequence[Node]) -> None:
    """Checks that every machine has the versions, the input, the output and the model of this one.

    Args:
        job: with absolute paths; its output has a manifest.
        nodes: of the cluster that this process is connected to.

    Raises:
        LlavaStfError: one has not; it names the machine.
    """
    output = open_place(job.output)
    manifest = parse_json((output / "manifest.json").read_bytes())
    find = _find_versions()
    here = find([*manifest["versions"]])
    for node, there in _on_each(nodes, find, [*here]):
        for name, version in here.items():
            if there[name] != version:
                raise LlavaStfError(
                    f"The machine {node} has {name} {there[name] or 'not at all'}, this one {version}: install the "
                    "same versions everywhere."
                )
    name = f"nodes-{uuid.uuid4().hex}"
    with claim_file(output / name):
        for node, reason in _on_each(nodes, _differing, job, manifest, name):
            if reason:
                raise LlavaStfError(f"The machine {node} {reason}")


def _on_each(nodes: Sequence[Node], function: Callable[..., Any], *arguments: Any) -> list[tuple[Node, Any]]:
    """What the function returns on each machine."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0)(function)
    there = [NodeAffinitySchedulingStrategy(node.id, soft=False) for node in nodes]
    calls = [task.options(scheduling_strategy=strategy).remote(*arguments) for strategy in there]
    return list(zip(nodes, ray.get(calls), strict=True))


def _find_versions() -> Callable[[Sequence[str]], dict[str, str | None]]:
    """A function that Ray sends as code, and so runs where another version of this package is, or none."""

    def find(names: Sequence[str]) -> dict[str, str | None]:
        from importlib.metadata import PackageNotFoundError, version

        found: dict[str, str | None] = {}
        for name in names:
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                found[name] = None
        return found

    return find


def _differing(job: BatchJob, manifest: Mapping[str, Any], claimed: str) -> str:
    """What keeps this machine from the job that another one began, the end of a sentence; empty if nothing does.

    Args:
        job: what is asked.
        manifest: of the output there.
        claimed: name of a file in the output that is locked there.
    """
    output = open_place(job.output)
    apart = f"does not see {output} as this one does: name a folder that all machines share, with locks."
    try:
        if not isinstance(output, S3Path):
            with claim_file(output / claimed) as claim:
                if claim is not None:
                    return apart
        if parse_json((output / "manifest.json").read_bytes()) != manifest:
            return apart
        here = job.manifest(job.rows())
    except LlavaStfError as error:
        return f"cannot do its part: {error}"
    except OSError as error:
        return f"cannot use {output} ({error.strerror}): name a folder that all machines share, or s3://bucket/key."
    if here["input_sha256"] != manifest["input_sha256"]:
        return f"reads another input at {job.input} than this one."
    return (
        "" if here["model_sha256"] == manifest["model_sha256"] else f"has another model at {job.model} than this one."
    )
