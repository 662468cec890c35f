"""A Ray cluster of two machines beside its head, all on this one (`make test-cluster`), answers each row once."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llava_stf.batch.job import BatchJob
from llava_stf.batch.run import run_batch

from .conftest import QUESTION, kill_who_has_a_shard, results, who_has_a_shard

pytestmark = pytest.mark.cluster
# Without authentication, which a token of an earlier local Ray would turn on. A worker that is nice waits for
# every other process of a busy machine.
RAY = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1"}
S3 = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_EC2_METADATA_DISABLED": "true"}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait_until(is_so: Callable[[], object], seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def session_of(process: int) -> int | None:
    try:
        return os.getsid(process)
    except ProcessLookupError:
        return None


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    """A server that speaks S3, and what programs need to know of it."""
    program = shutil.which("moto_server")
    if program is None:
        yield S3
        return
    port = str(free_port())
    server = subprocess.Popen([program, "-H", "127.0.0.1", "-p", port], stderr=subprocess.DEVNULL)
    yield {**S3, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    server.kill()
    server.wait()


class Cluster:
    """Machines by their address, each a session of processes."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.port = folder, free_port()
        self.environment = {**environment, **RAY}
        self.machines: dict[str, subprocess.Popen[bytes]] = {}
        head = ["--head", f"--port={self.port}", f"--temp-dir={folder}", "--include-dashboard=false", "--num-cpus=0"]
        self.start("127.0.0.1", *head)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self, ip: str, *options: str, before: Sequence[str] = (), **environment: str) -> None:
        """Starts a machine, by a command that stands before Ray's, and waits until it is there."""
        command = [*before, str(Path(sys.executable).with_name("ray")), "start", f"--node-ip-address={ip}", "--block"]
        command += ["--object-store-memory=150000000", *(options or [f"--address={self.address}", "--num-cpus=1"])]
        log = self.folder / f"{ip}-{len(self.machines)}.log"
        with log.open("wb") as file:
            self.machines[ip] = subprocess.Popen(
                command,
                stdout=file,
                stderr=file,
                env={**os.environ, **self.environment, **environment},
                start_new_session=True,
            )
        wait_until(lambda: b"Ray runtime started" in log.read_bytes() or self.machines[ip].poll() is not None)
        assert self.machines[ip].poll() is None, log.read_text()

    def lose(self, ip: str) -> None:
        """Has a machine and all that runs on it end at once."""
        machine = self.machines.pop(ip)
        for process in filter(str.isdecimal, os.listdir("/proc")):
            if session_of(int(process)) == machine.pid:
                os.kill(int(process), signal.SIGKILL)
        machine.wait()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, s3: dict[str, str]) -> Iterator[Cluster]:
    folder = Path(tmp_path_factory.mktemp("ray", numbered=True))
    short = Path("/tmp") / f"ray-{os.getpid()}"  # Ray's sockets are in it, and their paths must be short
    short.symlink_to(folder)
    cluster = Cluster(short, s3)
    try:
        cluster.start("127.0.0.2")
        cluster.start("127.0.0.3")
        yield cluster
    finally:
        for ip in [*cluster.machines]:
            cluster.lose(ip)
        short.unlink()


@pytest.fixture(scope="module")
def job(album: Path, tmp_path_factory: pytest.TempPathFactory) -> BatchJob:
    """The album's 24 images in 12 shards, answered by one process."""
    output = tmp_path_factory.mktemp("one") / "output"
    job = BatchJob(album, output, question=QUESTION, shard_size=2, dtype="float32", max_new_tokens=8)
    run_batch(job)
    return job


@pytest.fixture
def batch(cluster: Cluster, job: BatchJob, start: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """Starts `llava-stf batch` on the cluster, for the job's answers."""

    def begin(output: object, *, input: object = job.input) -> Any:
        options = ["--question", QUESTION, "--shard-size", 2, "--dtype", "float32", "--max-new-tokens", 8]
        options += ["--engine", "ray", "--ray-address", cluster.address]
        return start(["batch", input, output, *options], output=tmp_path / "log", **cluster.environment)

    return begin


def test_two_machines_of_which_a_worker_is_killed_answer_as_one_process(
    batch: Callable[..., Any], job: BatchJob, tmp_path: Path
) -> None:
    process = batch(tmp_path / "output")
    kill_who_has_a_shard(tmp_path / "output", least=2)
    process.join()
    said = (tmp_path / "log").read_text()
    assert process.exitcode == 0, said
    assert "0 of 24 rows\n2 of 24 rows\n4 of 24 rows\n" in said
    assert results(tmp_path / "output") == results(Path(str(job.output)))


def test_driver_that_is_killed_goes_on(batch: Callable[..., Any], job: BatchJob, tmp_path: Path) -> None:
    process = batch(tmp_path / "output")
    wait_until(lambda: len(list((tmp_path / "output").glob("part-*"))) >= 3)
    process.kill()
    process.join()
    before = len(list((tmp_path / "output").glob("part-*")))
    assert before < 12
    again = batch(tmp_path / "output")
    again.join()
    assert again.exitcode == 0, (tmp_path / "log").read_text()
    assert results(tmp_path / "output") == results(Path(str(job.output)))


def test_machine_that_is_lost_with_a_shard_loses_no_row(
    cluster: Cluster, batch: Callable[..., Any], job: BatchJob, tmp_path: Path
) -> None:
    process = batch(tmp_path / "output")
    sessions: list[int | None] = []
    wait_until(lambda: sessions.extend(map(session_of, who_has_a_shard(tmp_path / "output"))) or sessions)
    lost = next(ip for ip, machine in cluster.machines.items() if machine.pid in sessions)
    cluster.lose(lost)
    process.join()
    assert process.exitcode == 0, (tmp_path / "log").read_text()
    assert results(tmp_path / "output") == results(Path(str(job.output)))
    cluster.start(lost)


def test_objects_are_answered_into_objects(
    cluster: Cluster, batch: Callable[..., Any], job: BatchJob, s3: dict[str, str], album: Path, tmp_path: Path
) -> None:
    if "AWS_ENDPOINT_URL" not in s3:
        pytest.skip("needs moto_server: make test-cluster")
    from pyarrow.fs import S3FileSystem

    access = {"access_key": S3["AWS_ACCESS_KEY_ID"], "secret_key": S3["AWS_SECRET_ACCESS_KEY"]}
    store = S3FileSystem(endpoint_override=s3["AWS_ENDPOINT_URL"], allow_bucket_creation=True, **access)
    store.create_dir("photos")
    for path in album.rglob("*.png"):
        with store.open_output_stream(f"photos/{path.relative_to(album)}") as stream:
            stream.write(path.read_bytes())
    process = batch("s3://photos/answers", input="s3://photos/more")
    process.join()
    assert process.exitcode == 0, (tmp_path / "log").read_text()
    run_batch(replace(job, input=album / "more", output=tmp_path / "files"))
    for path in (tmp_path / "files").iterdir():
        with store.open_input_stream(f"photos/answers/{path.name}") as stream:
            assert stream.read() == path.read_bytes(), path.name
    process = batch("s3://none/answers", input="s3://photos/more")
    process.join()
    assert process.exitcode == 2
    assert "There is no bucket none for s3://none/answers" in (tmp_path / "log").read_text().splitlines()[-1]


def test_machine_with_another_version_is_named(cluster: Cluster, batch: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "llava_stf-0.0.9.dist-info").mkdir()
    (tmp_path / "llava_stf-0.0.9.dist-info" / "METADATA").write_text("Name: llava-stf\nVersion: 0.0.9\n")
    cluster.start("127.0.0.4", PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    process = batch(tmp_path / "output")
    process.join()
    cluster.lose("127.0.0.4")
    assert process.exitcode == 2
    sentence = (tmp_path / "log").read_text().splitlines()[-1]
    assert sentence.startswith("The machine 127.0.0.4 (")
    assert "has llava-stf 0.0.9, this one " in sentence
    assert not list((tmp_path / "output").glob("part-*"))


def test_machine_that_does_not_see_the_output_is_named(
    cluster: Cluster, batch: Callable[..., Any], tmp_path: Path
) -> None:
    """It has another folder of that name, by a mount that it alone has."""
    (tmp_path / "shared").mkdir()
    mount = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(tmp_path / "shared")]
    if subprocess.run([*mount, "true"], check=False).returncode:
        pytest.skip("needs the right to mount")
    cluster.start("127.0.0.5", before=mount)
    process = batch(tmp_path / "shared" / "output")
    process.join()
    cluster.lose("127.0.0.5")
    assert process.exitcode == 2
    sentence = (tmp_path / "log").read_text().splitlines()[-1]
    assert sentence.startswith("The machine 127.0.0.5 (")
    assert (
        f"cannot use {tmp_path / 'shared' / 'output'} (No such file or directory): name a folder that all" in sentence
    )
    assert not list((tmp_path / "shared" / "output").glob("part-*"))
