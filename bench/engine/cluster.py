"""Ray, on this machine or on others: what it has, and whether others are like this one."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from types import ModuleType
from typing import Any

from bench.core.devices import AUTO
from bench.core.errors import SpecError, StoreError
from bench.core.paths import ROOT
from bench.store.files import write

PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "timm",
    "numpy",
    "scipy",
    "safetensors",
    "pydantic",
)
"""Packages that decide numbers, or how values travel; their versions must be the same everywhere."""
_OBJECTS = 80 * 2**20  # bytes for what travels: jobs and records; the least that Ray takes is 75 MB
_PATIENCE = 120  # seconds in which a machine must have answered
_ANSWER = 30.0  # seconds in which a cluster must have answered
_TRIES = 3  # Ray gives up after half a minute, which a busy machine may need
log = logging.getLogger("bench")


@dataclass(frozen=True, slots=True)
class Seats:
    """How a matrix is spread.

    Args:
        device: What each worker is given as its device.
        count: Workers.
        gpus: What each of them takes of a GPU.
        threads: Of each of them.
    """

    device: str
    count: int
    gpus: float
    threads: int


def need_ray() -> ModuleType:
    """Return Ray.

    Raises:
        SpecError: It is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault(
        "RAY_worker_niceness", "0"
    )  # as a process that computes itself; Ray's own is 15
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        import ray
    except ImportError as exc:
        raise SpecError(
            "--workers and --ray-address need Ray, which is not installed: pip install 'ray>=2.49', or "
            "bench with its extra `ray`"
        ) from exc
    return ray


def seats(
    device: str, wanted: int | None, most: int, *, cpus: float, gpus: float, nodes: int, here: bool
) -> Seats:
    """Return how a matrix is spread over what Ray has.

    Args:
        device: What the user asked for.
        wanted: How many workers the user asked for; by default one on each GPU or else on each machine.
        most: How many can have something to do.
        cpus: Processors that Ray has.
        gpus: GPUs that it has.
        nodes: Machines that it has.
        here: Whether Ray runs for this command, on this machine.

    Raises:
        SpecError: There is no such device, or there are not so many processors.
    """
    where = "on this machine" if here else "in the cluster"
    kind, _, number = device.partition(":")
    if kind == "cuda" and number:
        raise SpecError(
            f"--device {device}: Ray chooses the GPU of each worker; give --device cuda"
        )
    if kind == "cuda" and not gpus:
        raise SpecError(f"--device cuda cannot be used: Ray finds no GPU {where}; try --device cpu")
    on_gpu = gpus >= 1 and device in {AUTO, "cuda"}
    count = min(wanted or (int(gpus) if on_gpu else nodes), most)
    if count > cpus:
        raise SpecError(
            f"--workers {count}: Ray has {cpus:g} processors {where}; give at most {cpus:g}"
        )
    each = min(1.0, 1 / ceil(count / gpus)) if on_gpu else 0.0
    return Seats("cuda" if on_gpu else device, count, each, _threads(int(cpus), count, here=here))


def _threads(cpus: int, count: int, *, here: bool) -> int:
    """Return how many threads each worker has: what the user set for a process, or its share."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked):
        return int(asked)
    if here:
        cpus = (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1
        )
    return max(1, cpus // count)


@contextmanager
def connected(address: str, workers: int, device: str) -> Iterator[ModuleType]:
    """Start Ray on this machine, or join the cluster of an address; leave it at the end.

    A Ray that this process has started already is taken as it is.

    Args:
        address: ``HOST:PORT`` or ``auto``; empty starts one here.
        workers: For how many workers, if one is started.
        device: What they compute on.

    Raises:
        SpecError: There is no cluster, or none that this Ray may join.
    """
    ray = need_ray()
    if ray.is_initialized():
        yield ray
        return
    if address and address != "auto":
        _reach(address)
    on_term = signal.getsignal(signal.SIGTERM)  # Ray takes it
    try:
        with _in_our_folder():
            for left in reversed(range(_TRIES)):
                try:
                    _begin(ray, address, workers, device)
                    break
                except SpecError as exc:
                    if address or not left or "timed out" not in str(exc):
                        raise
                    log.info("%s; again", exc)
        if callable(on_term) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_term)  # Ray's would exit without a word
        # It would print to standard output of workers that ended, which is said in our words.
        ray._private.worker._worker_logs_enabled = False
        yield ray
    finally:
        ray.shutdown()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_term or signal.SIG_DFL)


def _begin(ray: Any, address: str, workers: int, device: str) -> None:
    how: dict[str, Any] = {"address": "local", "num_cpus": workers, "include_dashboard": False}
    how |= {"num_gpus": 0 if device == "cpu" else None, "object_store_memory": _OBJECTS}
    if address:
        how = {"address": address}
    try:
        ray.init(**how, log_to_driver=False, configure_logging=False)
    except (Exception, SystemExit) as exc:  # whatever it is: Ray even raises SystemExit
        with suppress(Exception):
            ray.shutdown()
        said = " ".join(str(exc).split())[:300]
        what = f"--ray-address {address}: no cluster of Ray can be joined" if address else ""
        raise SpecError(f"{what or 'Ray cannot be started here'}: {said}") from exc


def _reach(address: str) -> None:
    """Say soon, in one line, that no Ray answers at an address; Ray itself tries for minutes.

    Ray's own check runs in a process of its own: what it prints cannot be silenced.
    """
    host, colon, port = address.rpartition(":")
    if not colon or "/" in address or not port.isdecimal():
        raise SpecError(f"--ray-address: expected HOST:PORT or auto, got {address!r}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as exc:
        reason = getattr(exc, "strerror", None) or exc
        raise SpecError(
            f"--ray-address {address}: nobody answers there ({reason}); `ray status` says where Ray is"
        ) from exc
    command = [
        sys.executable,
        "-P",
        "-m",
        "ray.scripts.scripts",
        "health-check",
        "--address",
        address,
    ]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_ANSWER, check=False
        )
    except subprocess.TimeoutExpired as exc:
        raise SpecError(
            f"--ray-address {address}: no Ray answered there in {_ANSWER:g} seconds; is it another service?"
        ) from exc
    if done.returncode:
        *_, last = done.stderr.strip().splitlines() or ["it is not well"]
        reason = last.partition(": ")[2] or last
        if "token" in reason.lower():
            reason = "it wants the token of `ray get-auth-token`: set RAY_AUTH_MODE=token"
        raise SpecError(f"--ray-address {address}: Ray cannot be joined there: {reason:.200}")


@contextmanager
def _in_our_folder() -> Iterator[None]:
    """Stay where this package is: Ray's workers look for modules in the folder where Ray is started.

    So they find this package where this process found it, and no code of the user's current folder.
    """
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        yield
    finally:
        os.chdir(before)


def check_machines(ray: Any, folders: Sequence[Path]) -> None:
    """Compare every machine of a cluster with this one.

    Args:
        ray: Joined.
        folders: They must be the same on all machines.

    Raises:
        SpecError: Other packages are installed on one of them.
        StoreError: One does not have the folders.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look, token = _looker(), f".{uuid.uuid4().hex}.shared"
    files = [folder.absolute() / token for folder in folders]
    try:
        for file in files:
            write(file, token.encode())
        asked = {}
        for node in ray.nodes():
            if node["Alive"]:
                there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                task = ray.remote(look).options(num_cpus=0, scheduling_strategy=there)
                asked[node["NodeManagerHostname"]] = task.remote(PACKAGES, [str(f) for f in files])
        mine, _ = look(PACKAGES, [])
        for name, reference in asked.items():
            try:
                found, lacking = ray.get(reference, timeout=_PATIENCE)
            except ray.exceptions.RayError as exc:
                said = " ".join(str(exc).split())[:200]
                raise SpecError(f"{name} does not answer in Ray's cluster: {said}") from exc
            _compare(name, found, mine, [str(Path(file).parent) for file in lacking])
    finally:
        for file in files:
            file.unlink(missing_ok=True)


def _compare(
    node: str, found: dict[str, str], mine: dict[str, str], lacking: Sequence[str]
) -> None:
    for name, version in mine.items():
        if (theirs := found[name]) == version:
            continue
        if name == "bench":
            raise SpecError(
                f"{node} has {'no bench' if not theirs else 'another bench than this machine'}: install "
                "the same there"
            )
        raise SpecError(
            f"{node} has {name} {theirs or 'not installed'}, expected {version} as on this machine: "
            "install the same there"
        )
    if lacking:
        raise StoreError(
            f"{node} does not see {lacking[0]} of this machine, or cannot write to it: expected a folder "
            "that all machines share; set --results and BENCH_CACHE"
        )


def _looker() -> Callable[[Sequence[str], Sequence[str]], tuple[dict[str, str], list[str]]]:
    """Return a function that travels as its source: the other machine may lack this package."""

    def look(packages: Sequence[str], files: Sequence[str]) -> tuple[dict[str, str], list[str]]:
        """Return the version of each package and a digest of this one's code, and which files lack."""
        import platform
        from hashlib import sha256
        from importlib.metadata import PackageNotFoundError, version
        from importlib.util import find_spec
        from pathlib import Path

        found = {}
        for name in packages:
            try:
                found[name] = version(name).partition("+")[0]  # of another build, the same
            except PackageNotFoundError:
                found[name] = ""
        total, spec = sha256(), find_spec("bench")
        if spec and spec.origin:
            root = Path(spec.origin).parents[1]
            for part in ("bench", "methods", "attacks", "evaluators"):
                for path in sorted((root / part).rglob("*.py")):
                    total.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
        found["bench"] = total.hexdigest() if spec else ""
        lacking = []
        for file in files:
            reply = Path(f"{file}.{platform.node()}")
            try:
                Path(file).stat()
                reply.touch()
                reply.unlink()
            except OSError:
                lacking.append(file)
        return found, lacking

    return look
