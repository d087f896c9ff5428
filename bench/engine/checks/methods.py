"""What every erasure method keeps to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from bench.engine.checks.finding import Rules
from bench.engine.checks.lab import Lab, job, settings_left, state, streams, unequal
from bench.engine.erase import run_method
from bench.engine.guard import awake, guard, noticed
from bench.models import delta
from bench.models.diffusers import DiffusersModel
from bench.plugins.registry import Ref
from bench.tasks.tasks import load_task

TASKS = ("church", "nudity")
"""An object, and a concept of many words."""


@dataclass(frozen=True, slots=True)
class Erasure:
    """What a method did to a copy of a model, and once more to another.

    Args:
        name: The method's.
        base: The model.
        models: The two copies.
        drawn: What the base and the two copies draw.
        left: What of the process's state it left changed, in words.
    """

    name: str
    base: DiffusersModel
    models: Sequence[DiffusersModel]
    drawn: Sequence[list[bytes]]
    left: list[str]


def erase_twice(ref: Ref, task: str, lab: Lab) -> Erasure:
    """Erase a task's concept from two copies of a model, with other random streams of the process.

    Raises:
        PluginError: The method raised something, or does not return what it should.
        IncompatibleError: It says that it does not fit the model.
    """
    cell = job(lab, task, method=ref).cell
    models = []
    for seed in range(2):
        with streams(seed), noticed() as left:  # of the second: the first imports what is needed
            models.append(run_method(cell, lab.base, lab.settings()))
    with guard(f"method {ref.name}"):
        drawn = [_draw(model) for model in (lab.base, *models)]
    return Erasure(ref.name, lab.base, models, drawn, left)


def _draw(model: DiffusersModel) -> list[bytes]:
    return [image.tobytes() for image in model.generate(load_task("church", "emoji").prompts[:2])]


def _at_rest(seen: Erasure) -> str:
    if awake(seen.models[0]):
        return (
            "parameters of the returned model still take or hold gradients, or it is in training mode: "
            "requires_grad_(False) and eval() (bench.trainable does both)"
        )
    return ""


def _autoencoder(seen: Erasure) -> str:
    before, after = (m.pipe.vae.state_dict() for m in (seen.base, seen.models[0]))
    if changed := unequal(before, after):
        return (
            f"it changes the autoencoder, which draws every concept ({changed[0]}, {len(changed)} "
            "tensors in all): change the denoiser or the text encoder"
        )
    return ""


def _kept_in_a_file(seen: Erasure) -> str:
    change = delta.to_bytes(delta.diff(seen.base, seen.models[0]))
    if lost := unequal(
        state(delta.apply(seen.base, delta.from_bytes(change))), state(seen.models[0])
    ):
        return f"a saved erasure does not give {lost[0]} back bit for bit"
    return ""


def _same_twice(seen: Erasure) -> str:
    one, other = seen.models
    advice = "draw all random numbers from a generator that is seeded with ctx.seed(...)"
    if differ := unequal(state(one), state(other)):
        return f"two runs give other weights ({differ[0]}, {len(differ)} tensors in all): {advice}"
    if json.dumps(one.notes) != json.dumps(other.notes):
        return f"two runs give other notes: {advice}, and note no times"
    if seen.drawn[1] != seen.drawn[2]:
        return f"two runs give other images: {advice}"
    return ""


def _not_nothing(seen: Erasure) -> str:
    if seen.name != "none" and seen.drawn[0] == seen.drawn[1]:
        return "the model draws the same images as before: edit the weights of the model that it is given"
    return ""


RULES: Rules[Erasure] = {
    "leaves gradients and training mode off": _at_rest,
    "leaves the autoencoder as it is": _autoencoder,
    "leaves the process's settings as they are": lambda seen: settings_left(seen.left),
    "changes only what a saved erasure can hold": _kept_in_a_file,
    "does the same twice": _same_twice,
    "does something": _not_nothing,
}
