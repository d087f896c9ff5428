"""Where and with what a record was made. What cannot be found out is left out."""

from __future__ import annotations

import contextlib
import platform
import subprocess
import sys
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from bench.core.devices import facts
from bench.core.paths import ROOT
from bench.models.diffusers import DiffusersModel
from bench.plan.cell import TRAIN, Cell
from bench.plan.plan import method_deviations
from bench.plugins.registry import Ref, create
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
    evaluator = task.judge.evaluator
    params = asdict(create("evaluators", evaluator))
    params = {k: v.name if isinstance(v, Path) else v for k, v in params.items()}
    found = {
        "prompts": task.source,
        "excluded": task.left_out,
        "judge": str(Ref(evaluator.name, params)),
        "guidance": "" if task.guidance == "own" else task.guidance,
        "deviations": "; ".join((*task.deviations, *deviations)),
    }
    return {name: value for name, value in found.items() if value}


def environment(device: str, *, compiled: bool = False) -> dict[str, str]:
    """Return what a reader needs to judge or repeat a result."""
    packages = (PROJECT, "torch", "diffusers", "transformers", "timm")
    return {
        **{name: _version(name) for name in packages},
        "python": platform.python_version(),
        "machine": platform.machine(),
        **facts(device),
        **({"denoiser": "compiled"} if compiled else {}),
        "threads": str(torch.get_num_threads()),
        "git": _commit(),
        "peak_memory_mb": _peak_memory(),
    }


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
