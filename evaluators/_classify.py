"""What judges that classify whole pictures share: Hugging Face networks, labels and ranks."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import AssetError, ImageScorer, Sample, Score
from evaluators._each import each, finite

if TYPE_CHECKING:
    from torch import Tensor

Probabilities = Callable[[list[Any]], "Tensor"]
"""Maps PIL pictures to probabilities ``(pictures, classes)`` on the CPU."""


def hub_classifier(asset: str, folder: Path, device: str) -> tuple[Probabilities, tuple[str, ...]]:
    """Return a Hugging Face image classifier and the names of its classes.

    Raises:
        AssetError: The folder has no classifier, or some weights are missing.
    """
    import torch
    from transformers import AutoModelForImageClassification

    from bench.models import load_vision

    net, pixels = load_vision(AutoModelForImageClassification, folder, device, asset=asset)

    @torch.no_grad()
    def probabilities(images: list[Any]) -> Tensor:
        return finite(net(pixel_values=pixels(images)).logits.float().softmax(1).cpu())

    names = net.config.id2label
    return probabilities, tuple(names[i] for i in range(len(names)))


def class_names(asset: str, folder: Path) -> tuple[str, ...]:
    """Return the names of a classifier's classes without loading it.

    Raises:
        AssetError: The folder has no config.json that names them.
    """
    try:
        names = json.loads((folder / "config.json").read_bytes())["id2label"]
        return tuple(names[str(i)] for i in range(len(names)))
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise AssetError(
            f"{asset}={folder}: expected a classifier's config.json with id2label, got: {exc}"
        ) from exc


def ranked(probabilities: Tensor, target: int, names: tuple[str, ...], k: int) -> Score:
    """Return 1 if class ``target`` is among the ``k`` likeliest classes of one picture."""
    order = probabilities.argsort(descending=True, stable=True).tolist()
    rank = order.index(target) + 1
    top = {names[i]: round(float(probabilities[i]), 4) for i in order[: max(k, 5)]}
    chance = round(float(probabilities[target]), 4)
    return Score(
        float(rank <= k),
        {"found": names[order[0]], "probability": chance, "rank": rank, "top": top},
    )


def top_k(
    classify: Probabilities,
    names: tuple[str, ...],
    class_of: Callable[[str], int],
    k: int,
    batch_size: int,
) -> ImageScorer:
    """Return the scorer that gives 1 if the class of the prompt's label is among the ``k`` likeliest."""

    def verdicts(images: list[Any], samples: Sequence[Sample]) -> list[Score]:
        targets = [class_of(sample.prompt.label) for sample in samples]
        rows = zip(classify(images), targets, strict=True)
        return [ranked(row, target, names, k) for row, target in rows]

    return lambda samples: each(samples, verdicts, batch_size)


def plain(name: str) -> str:
    """Return a name in lower case, with one space in place of other signs than letters and digits."""
    return " ".join(re.findall(r"\w+", name.replace("_", " ").casefold()))


def near(name: str, known: list[str]) -> str:
    """Return known names that are similar, for a message."""
    found = get_close_matches(plain(name), known, n=4, cutoff=0.4)
    return ", ".join(found) or f"nothing like it, but {', '.join(known[:4])}, ..."
