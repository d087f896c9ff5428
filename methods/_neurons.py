"""Neurons of the denoiser: Eq. 4 and 5 of Pruning for Robust Concept Erasing (arXiv 2405.16534).

A neuron is a channel of what enters the second convolution of a ResNet block, ``SiLU(norm2(h))``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bench import IncompatibleError, Model, Prompt

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


def neuron_maps(model: Model, prompts: Sequence[Prompt], every: int = 1) -> list[Maps]:
    """Draw images and return the conditional branch's maps at every n-th denoiser call.

    The input of ``conv2`` is read, not the output of ``nonlinearity``, which a block calls three times.
    """
    maps: Maps = {}

    def keep(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            maps[name] = inputs[0][-len(prompts) :].detach().float()  # the prompt's rows are last

        return hook

    hooks = [conv.register_forward_pre_hook(keep(n)) for n, conv in neuron_layers(model).items()]
    found: list[Maps] = []
    try:
        cond = model.encode([p.text for p in prompts])
        guidance = torch.tensor([p.guidance for p in prompts])
        for call, _ in enumerate(
            model.denoise(model.noise([p.seed for p in prompts]), cond, guidance)
        ):
            if call > 0 and (call - 1) % every == 0:
                found.append(dict(maps))
    finally:
        for hook in hooks:
            hook.remove()
    return found


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
    return _mean(
        (
            {name: before[name] - after[name] for name in before}
            for part in _batches(prompts, batch)
            for before, after in zip(
                neuron_maps(original, part), neuron_maps(erased, part), strict=True
            )
        ),
        absolute=absolute,
    )


def sensitivity(
    model: Model, pairs: Sequence[tuple[Prompt, Prompt]], *, every: int = 10, batch: int = 8
) -> dict[str, Tensor]:
    """Return how far adversarial prompts move each neuron (Eq. 5): ``mean |z(p_adv) - z(p)|``.

    Args:
        model: The erased model.
        pairs: Each prompt and its adversarial version.
        every: Denoiser calls between two readings; the paper reads every 10 of 50.
        batch: Pairs at once.
    """
    return _mean(
        (
            {name: attacked[name] - clean[name] for name in clean}
            for part in _batches(pairs, batch)
            for clean, attacked in zip(
                neuron_maps(model, [p for p, _ in part], every),
                neuron_maps(model, [p for _, p in part], every),
                strict=True,
            )
        ),
        absolute=True,
    )


def zero_neurons(model: Model, chosen: Mapping[str, Sequence[int]]) -> None:
    """Switch neurons off: a zero input channel of ``conv2`` equals a zero ``conv2.weight[:, k]``."""
    layers = neuron_layers(model)
    with torch.no_grad():
        for name, channels in chosen.items():
            layers[name].weight[:, list(channels)] = 0


def _batches(items: Sequence[Any], size: int) -> Iterable[Sequence[Any]]:
    return (items[i : i + size] for i in range(0, len(items), size))


def _mean(differences: Iterable[Maps], *, absolute: bool) -> dict[str, Tensor]:
    totals: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    for maps in differences:
        for name, z in maps.items():
            values = (z.abs() if absolute else z).double()
            totals[name] = totals.get(name, torch.tensor(0.0)) + values.sum((0, 2, 3)).cpu()
            counts[name] = counts.get(name, 0) + z.shape[0] * z.shape[2] * z.shape[3]
    return {name: total / counts[name] for name, total in totals.items()}
