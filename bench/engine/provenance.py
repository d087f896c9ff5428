"""Where and with what a record was made. What cannot be found out is left out."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import torch

from bench.core.announced import owners
from bench.core.devices import facts
from bench.core.paths import ROOT
from bench.models.diffusers import DiffusersModel
from bench.plan.cell import TRAIN, Cell
from bench.plan.plan import method_deviations
from bench.plugins.registry import written_out
from bench.store.record import FROM
from bench.tasks.tasks import Task

PROJECT = "erasure-bench"


def protocol(cell: Cell, task: Task, model: DiffusersModel) -> dict[str, str]:
    """Return what a number rests on besides method, attack and task, in words.

    Two records whose protocols differ are not one experiment.
    """
    draw = model.sampling
    lacking = method_deviations(cell.method, cell.concept, cell.world)
    of_method = tuple(f"{cell.method.name}: {line}" for line in lacking)
    return judged_by(task, *of_method) | {
        "draw": f"{draw.sampler}, {draw.steps} steps, {draw.size} px, {cell.dtype}",
        "train": TRAIN,
        "prediction": model.prediction,
    }


def judged_by(task: Task, *deviations: str) -> dict[str, str]:
    """Return the task's share of the protocol; to its deviations from the paper more are added."""
    found = {
        "prompts": task.source,
        "excluded": task.left_out,
        "judge": written_out("evaluators", task.judge.evaluator),
        "guidance": "" if task.guidance == "own" else task.guidance,
        "deviations": "; ".join((*task.deviations, *deviations)),
    }
    return {name: value for name, value in found.items() if value}


def names_of(cell: Cell, task: Task) -> set[str]:
    """Return the names of the plug-ins and the task that a cell uses."""
    judges = (measure.evaluator.name for measure in task.measures)
    return {cell.method.name, cell.attack.name, cell.task, *judges}


def environment(
    device: str, *, compiled: bool = False, names: Iterable[str] = ()
) -> dict[str, str]:
    """Return what a reader needs to judge or repeat a result.

    Args:
        device: Where it is computed.
        compiled: Whether the denoiser is compiled.
        names: Of the plug-ins and the task; of other distributions it is said which they are.
    """
    packages = (PROJECT, "torch", "diffusers", "transformers", "timm")
    return {
        **{name: _version(name) for name in packages},
        "python": platform.python_version(),
        "machine": platform.machine(),
        **facts(device),
        **({"denoiser": "compiled"} if compiled else {}),
        "threads": str(torch.get_num_threads()),
        "git": _commit(),
        **{f"{FROM}{owner}": said for owner in sorted(owners(names)) if (said := _foreign(owner))},
        "peak_memory_mb": _peak_memory(),
    }


def _foreign(owner: str) -> str:
    """Return the version of a distribution, and the commit of its source where that is a checkout."""
    try:
        found = distribution(owner)
    except PackageNotFoundError:
        return ""
    source: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        source = json.loads(found.read_text("direct_url.json") or "{}")
    folder = Path(url2pathname(urlsplit(str(source.get("url", ""))).path))
    commit = _checkout(folder) if source.get("dir_info", {}).get("editable") else ""
    return f"{found.version}, git {commit}" if commit else found.version


def _checkout(folder: Path) -> str:
    """Return the commit of a folder that is tracked, with "-dirty" where it has changed; else nothing."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*args: str) -> str:
        command = ["git", "-C", str(folder), *args]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=clean)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "pyproject.toml")
        dirty = "-dirty" if git("status", "--porcelain", "--", ".") else ""
        return git("rev-parse", "--short", "HEAD") + dirty
    except (OSError, subprocess.CalledProcessError):
        return ""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    """Return the commit of this project's checkout; an installed package is no checkout.

    Only the checkout's own ``.git`` is asked: git by itself would look in the folders above, and find
    whatever repository an environment was installed in.
    """
    git = ROOT / ".git"
    if not (git.exists() and (ROOT / "pyproject.toml").exists()):
        return "not a checkout"
    command = ["git", f"--git-dir={git}", f"--work-tree={ROOT}", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def _peak_memory() -> str:
    """Return the process's largest resident memory in MB."""
    with contextlib.suppress(ImportError):  # not everywhere
        import resource

        unit = 1024**2 if sys.platform == "darwin" else 1024
        return str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit)
    return "unknown"
