"""What neurons of an erased model do when a prompt is attacked: Eq. 4 and 5 of arXiv 2405.16534."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from bench.core.devices import double
from bench.core.types import Prompt, Score
from bench.models.diffusers import DiffusersModel
from bench.models.neurons import concept_scores, neuron_maps
from bench.store.metrics import Measurement, mean

TOP = 5  # neurons of each layer, as in the paper
BATCH = 8
Chosen = dict[str, Tensor]
"""The concept neurons of each layer: their indices, ``(top,)``."""
Pair = tuple[Prompt, Prompt]
"""A prompt, and what an attack made of it."""
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """How much neurons change when a prompt is attacked, at one denoiser call.

    Args:
        call: The call's number, from 1.
        timestep: Its training timestep.
        concept: Of the concept neurons: a mean over layers, with its interval over pairs.
        others: Of all other neurons, likewise.
    """

    call: int
    timestep: float
    concept: Measurement
    others: Measurement


def concept_neurons(
    original: DiffusersModel, erased: DiffusersModel, prompts: Sequence[Prompt], top: int = TOP
) -> Chosen:
    """Return the neurons of each layer whose activation an erasure reduces most (Eq. 4).

    Args:
        original: The model before erasure.
        erased: After it.
        prompts: Of the concept.
        top: How many of each layer; of a layer with fewer than twice as many, half of them.
    """
    scores = concept_scores(original, erased, prompts, batch=BATCH)
    return {
        layer: score.topk(min(top, len(score) // 2)).indices.cpu()
        for layer, score in scores.items()
    }


def sensitivity(
    erased: DiffusersModel, pairs: Sequence[Pair], chosen: Chosen, progress: Progress
) -> list[Sensitivity]:
    """Return ``mean |z(p_adv) - z(p)|`` (Eq. 5) at each denoiser call, of concept neurons and of others.

    The mean is over the pixels of a neuron, then over the neurons of a layer, then over layers, so that
    each layer counts alike in both groups. Both images start from the same noise.
    """
    values: dict[int, list[tuple[float, float]]] = defaultdict(list)
    timesteps: dict[int, float] = {}
    for start in range(0, len(pairs), BATCH):
        progress("neurons", start, len(pairs))
        part = pairs[start : start + BATCH]
        both = [p for p, _ in part] + [adversarial for _, adversarial in part]
        for call, (timestep, maps) in enumerate(neuron_maps(erased, both), 1):
            timesteps[call] = timestep
            groups = []
            for layer, z in maps.items():
                change = double((z[len(part) :] - z[: len(part)]).abs()).mean((2, 3)).cpu()
                mine = torch.zeros(change.shape[1], dtype=torch.bool)
                mine[chosen[layer]] = True
                groups.append(torch.stack([change[:, mine].mean(1), change[:, ~mine].mean(1)]))
            values[call] += [(float(a), float(b)) for a, b in torch.stack(groups).mean(0).T]
    progress("neurons", len(pairs), len(pairs))
    return [
        Sensitivity(
            call,
            timesteps[call],
            mean([Score(concept) for concept, _ in found]),
            mean([Score(others) for _, others in found]),
        )
        for call, found in values.items()
    ]


def heat(
    model: DiffusersModel, prompts: Sequence[Prompt], chosen: Chosen, call: int
) -> dict[str, Tensor]:
    """Return the activation of the concept neurons at a denoiser call: what is above zero, their mean.

    Returns:
        Maps ``(prompts, height, width)`` by layer, each as large as the image.
    """
    found: dict[str, list[Tensor]] = defaultdict(list)
    side = model.sampling.size
    for start in range(0, len(prompts), BATCH):
        for number, (_, maps) in enumerate(neuron_maps(model, prompts[start : start + BATCH]), 1):
            if number != call:
                continue
            for layer, z in maps.items():
                one = z[:, chosen[layer]].clamp(min=0).mean(1, keepdim=True)
                whole = functional.interpolate(
                    one, (side, side), mode="bilinear", align_corners=False
                )
                found[layer].append(whole[:, 0].cpu())
    return {layer: torch.cat(parts) for layer, parts in found.items()}


def relative(heats: Sequence[dict[str, Tensor]]) -> list[Tensor]:
    """Return heat maps ``(prompts, height, width)`` in units of the first model's highest in each image.

    Each layer is divided by its highest activation in the first, so that all layers count alike.
    """
    first = heats[0]
    scales = {layer: z.amax((1, 2), keepdim=True).clamp(min=1e-6) for layer, z in first.items()}
    whole = [
        torch.stack([each[layer] / scale for layer, scale in scales.items()]).mean(0)
        for each in heats
    ]
    most = whole[0].amax((1, 2), keepdim=True).clamp(min=1e-6)
    return [each / most for each in whole]
