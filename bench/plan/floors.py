"""Floors with the budget of an attack: what chance finds with as many images.

An attack says how many images of a prompt may succeed (``most_images``), in the rounds that its parameters
allow; random tokens and other seeds get as many, the prompt's own included.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from bench.core.errors import ContractError, PluginError
from bench.core.foreign import contract
from bench.core.types import Concept
from bench.plugins.registry import Ref, create, resolved
from bench.sources.catalog import ModelInfo

FLOORS = ("random", "seed-search")
Budgets = Mapping[str, int]
"""The most images of a prompt, by the name of the attack that makes them, parameters included."""


def budgets(attacks: Sequence[Ref], concept: Concept, info: ModelInfo) -> Budgets:
    """Return the budget of each attack that says it; one that cannot be loaded has none.

    Raises:
        PluginError: What an attack says is no number of images.
    """
    found: dict[str, int] = {}
    for attack in attacks:
        try:
            full = resolved("attacks", attack, concept, info.world, info.defaults)
        except PluginError:  # its own cell says why
            continue
        images = most_images(full)
        if images and images > 1:
            found[str(attack)] = images
    return found


def most_images(attack: Ref) -> int | None:
    """Return how many images of a prompt an attack makes at most, the prompt's own included.

    Args:
        attack: As :func:`bench.plugins.registry.resolved` returns it.

    Returns:
        The number; ``None`` if the attack does not say it.

    Raises:
        PluginError: It says something else.
    """
    plugin = create("attacks", attack)
    if not hasattr(plugin, "most_images"):
        return None
    with contract(f"attack {attack.name}"):
        images = plugin.most_images()
    if type(images) is not int or images < 1:
        raise ContractError(
            f"attack {attack.name}: expected most_images to be a number from 1, got {images!r:.60}"
        )
    return images


def floors(known: Budgets) -> tuple[Ref, ...]:
    """Return the floors of these budgets, one pair for each number of images."""
    return tuple(
        Ref(name, {"draws": images - 1})
        for images in dict.fromkeys(known.values())
        for name in FLOORS
    )


def unmatched(attacks: Sequence[Ref], concept: Concept, info: ModelInfo) -> Iterator[str]:
    """Yield a line for each attack that floors cannot be matched to, as it does not say its images."""
    for attack in attacks:
        if attack.name in {"none", *FLOORS}:
            continue
        try:
            full = resolved("attacks", attack, concept, info.world, info.defaults)
        except PluginError:  # its own cell says why
            continue
        if most_images(full) is None:
            yield f"no floors of {attack}: it does not say how many images it makes (most_images)"


def in_words(known: Budgets) -> Iterator[str]:
    """Yield a line for each budget: whose it is, and which floors have it."""
    by_images: dict[int, list[str]] = defaultdict(list)
    for name, images in known.items():
        by_images[images].append(name)
    for images, names in by_images.items():
        yield (
            f"floors of {', '.join(names)}: {' and '.join(FLOORS)} with draws={images - 1}, at most "
            f"{images} images of a prompt, its own included"
        )
