"""Neurons of the denoiser: Eq. 4 of Pruning for Robust Concept Erasing (arXiv 2405.16534).

A neuron is a channel of what enters the second convolution of a ResNet block, ``SiLU(norm2(h))``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from bench.core.devices import double
from bench.core.errors import IncompatibleError
from bench.core.memory import Room
from bench.core.protocols import Model
from bench.core.types import Prompt
from bench.models.hooks import inputs_of

Maps = dict[str, Tensor]
"""Activations by layer, each ``(prompts, channels, height, width)``."""


def neuron_layers(model: Model) -> dict[str, nn.Conv2d]:
    """Return ``conv2`` of every ResNet block, by name, in the denoiser's order.

    Raises:
        IncompatibleError: The denoiser has no such block.
    """
    layers = {
        name: module
        for name, module in model.pipe.unet.named_modules()
        if name.endswith(".conv2") and isinstance(module, nn.Conv2d)
    }
    if not layers:
        raise IncompatibleError(
            "the denoiser has no ResNet block with a conv2: no neurons to score"
        )
    return layers


@torch.no_grad()  # at each step of its own: two of these may be read in turn
def neuron_maps(model: Model, prompts: Sequence[Prompt]) -> Iterator[tuple[float, Maps]]:
    """Draw images; yield the timestep and the activations of each denoiser call, without guidance texts.

    The input of ``conv2`` is read, not the output of ``nonlinearity``, which a block calls three times.
    """
    cond = model.encode([p.text for p in prompts])
    guidance = torch.tensor([p.guidance for p in prompts])
    states = model.denoise(model.initial_noise([p.seed for p in prompts]), cond, guidance)
    before = 0.0
    # The rows of the prompts are the last ones in the batch.
    with inputs_of(neuron_layers(model), lambda x: x[-len(prompts) :].float()) as maps:
        for call, (t, _) in enumerate(states):
            if call:
                yield before, dict(maps)
            before = float(t)


def concept_scores(
    original: Model,
    erased: Model,
    prompts: Sequence[Prompt],
    *,
    absolute: bool = False,
    batch: int = 8,
) -> dict[str, Tensor]:
    """Return how much an erasure reduced each neuron (Eq. 4): ``mean(z_original - z_erased)``.

    The mean is over prompts, pixels and denoiser calls; ``absolute`` takes absolute differences first.
    Both models start from the same noise and follow their own trajectories.

    Returns:
        Scores ``(channels,)`` by layer.
    """

    def work(rows: slice) -> tuple[Counter[str], Maps]:
        """Add up some prompts' differences, and say how many there are."""
        counts, totals = Counter[str](), Maps()
        both = (neuron_maps(model, prompts[rows]) for model in (original, erased))
        for (_, before), (_, after) in zip(*both, strict=True):
            for name in before:
                z = before[name] - after[name]
                values = double(z.abs() if absolute else z).sum((0, 2, 3))
                totals[name] = totals[name] + values if name in totals else values
                counts[name] += z.shape[0] * z.shape[2] * z.shape[3]
        return counts, totals

    counts, sums = zip(*Room(batch).parts(len(prompts), work), strict=True)
    n = sum(counts, Counter[str]())
    return {name: torch.stack([s[name] for s in sums]).sum(0).cpu() / n[name] for name in n}


def zero_neurons(model: Model, chosen: Mapping[str, Sequence[int]]) -> None:
    """Switch neurons off by zeroing ``conv2.weight[:, k]``, which equals a zero input channel ``k``."""
    layers = neuron_layers(model)
    with torch.no_grad():
        for name, channels in chosen.items():
            layers[name].weight[:, list(channels)] = 0
