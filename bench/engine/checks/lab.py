"""Where plug-ins are checked: a model of random weights, and folders that nobody else uses."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import torch
from torch import Tensor

from bench.core.errors import ParamError
from bench.core.state import global_state
from bench.core.types import World
from bench.engine.settings import Settings
from bench.models import delta, load_model
from bench.models.diffusers import DiffusersModel
from bench.plan.plan import Job, plan
from bench.plan.spec import Spec
from bench.plugins.registry import Kind, Ref, create, resolved
from bench.store.artifacts import Artifacts

MODEL = "tiny-random"
QUICK: Mapping[str, object] = {
    "batch": 2, "calls": 2, "check": 1, "draws": 2, "generations": 2, "images": 2,
    "inversion_steps": 1, "iterations": 2, "length": 5, "population": 8, "sampling_steps": 4,
    "steps": 2, "tokens": 2, "top_k": 20,
    "m0": 0.1,  # so that two steps prune something
    "preset": "max",  # which steers from the first step on
}  # fmt: skip
"""Values of the parameters with these names while a method or an attack is checked, which takes seconds."""


@dataclass(frozen=True)
class Lab:
    """What a check works with.

    Args:
        base: A model of random weights; its ``world`` is that of the check.
        folder: For files; each run of a plug-in gets one of its own below.
        assets: Local paths of weights and data, by the names of ``bench assets``.
    """

    base: DiffusersModel
    folder: Path
    assets: Mapping[str, Path] = field(default_factory=dict)

    def settings(self, batch_size: int = 4) -> Settings:
        """Return settings with an empty cache."""
        cache = Artifacts(Path(mkdtemp(dir=self.folder)))
        return Settings(batch_size=batch_size, artifacts=cache, assets=self.assets)


def random_model(world: World = "emoji") -> DiffusersModel:
    """Return a model of random weights that draws in four steps."""
    model = load_model(MODEL, world=world, batch_size=4)
    model.sampling = replace(model.sampling, steps=4)
    return model


def job(lab: Lab, task: str, *, prompts: int = 3, **plugins: Ref) -> Job:
    """Return the job of a cell on an emoji task's first prompts.

    Args:
        lab: Whose world the plug-ins' defaults are taken from.
        task: The task.
        prompts: How many of its prompts run.
        plugins: ``method`` and ``attack``; "none" by default.
    """
    none = (Ref("none"),)
    (empty,) = plan(Spec(MODEL, none, none, (task,), limit=prompts))
    cell, world = empty.cell, lab.base.world
    kinds: dict[str, Kind] = {"method": "methods", "attack": "attacks"}
    full = {k: resolved(kinds[k], ref, cell.concept, world) for k, ref in plugins.items()}
    return replace(
        empty,
        cell=replace(cell, world=world, method=full.get("method", cell.method),
                     attack=full.get("attack", cell.attack)),
        task=replace(empty.task, prompts=empty.task.prompts[:prompts]),
    )  # fmt: skip


def quick(kind: Kind, ref: Ref) -> Ref:
    """Return a plug-in with small values of the parameters that would make it slow, where it takes them."""
    if kind == "evaluators":
        return ref
    known = vars(create(kind, ref))
    params = dict(ref.params)
    for name, value in QUICK.items():
        if name in known and name not in params:
            try:
                create(kind, replace(ref, params={**params, name: value}))
            except ParamError:  # another parameter of that name, or one with other bounds
                continue
            params[name] = value
    return replace(ref, params=params)


@contextmanager
def streams(seed: int) -> Iterator[None]:
    """Set the process's random streams, on which nothing may depend; afterwards they go on as before."""
    put_back = global_state()
    torch.manual_seed(seed), np.random.seed(seed), random.seed(seed)
    try:
        yield
    finally:
        put_back()


def state(model: DiffusersModel) -> dict[str, Tensor]:
    """Return a copy of a model's weights."""
    return {name: tensor.clone() for name, tensor in delta.weights(model).items()}


def unequal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> list[str]:
    """Return the names of tensors that are not equal bit for bit."""
    return [name for name in {**a, **b}
            if name not in a or name not in b or not torch.equal(a[name], b[name])]  # fmt: skip


def settings_left(left: list[str]) -> str:
    """Say what a plug-in left changed."""
    return (left and f"it changes {', '.join(left)}, and does not put it back") or ""
