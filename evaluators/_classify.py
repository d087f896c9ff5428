"""What judges that classify a whole picture share: Hugging Face networks, labels and ranks."""

from __future__ import annotations

import re
from collections.abc import Callable
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import AssetError, Score

if TYPE_CHECKING:
    from torch import Tensor

Probabilities = Callable[[list[Any]], "Tensor"]
"""Maps PIL pictures to probabilities ``(pictures, classes)`` on the CPU."""


def hub_processor(folder: Path) -> Any:
    """Return a folder's image processor, the PIL one, whatever the default of the release is.

    Published numbers are older than the torchvision one, whose pixels differ by up to a grey level.
    """
    from transformers import AutoImageProcessor

    old = version("transformers").startswith("4.")
    pil: dict[str, Any] = {"use_fast": False} if old else {"backend": "pil"}
    return AutoImageProcessor.from_pretrained(folder, local_files_only=True, **pil)


def hub_classifier(asset: str, folder: Path, device: str) -> tuple[Probabilities, tuple[str, ...]]:
    """Return a Hugging Face image classifier and the names of its classes.

    Raises:
        AssetError: The folder holds none.
    """
    import torch
    from transformers import AutoModelForImageClassification

    try:
        processor = hub_processor(folder)
        net = AutoModelForImageClassification.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as exc:
        reason = str(exc).splitlines()[0]
        raise AssetError(f"{asset}={folder}: expected an image classifier: {reason}") from exc
    net.eval().to(device)

    @torch.no_grad()
    def probabilities(images: list[Any]) -> Tensor:
        pixels = processor([i.convert("RGB") for i in images], return_tensors="pt").pixel_values
        return net(pixel_values=pixels.to(device)).logits.float().softmax(1).cpu()

    names = net.config.id2label
    return probabilities, tuple(names[i] for i in range(len(names)))


def ranked(probabilities: Tensor, target: int, names: tuple[str, ...], k: int) -> Score:
    """Return 1 if class ``target`` is among the ``k`` likeliest of one picture's."""
    order = probabilities.argsort(descending=True, stable=True).tolist()
    rank = order.index(target) + 1
    top = {names[i]: round(float(probabilities[i]), 4) for i in order[: max(k, 5)]}
    chance = round(float(probabilities[target]), 4)
    return Score(
        float(rank <= k),
        {"found": names[order[0]], "probability": chance, "rank": rank, "top": top},
    )


def plain(name: str) -> str:
    """Return a name in lower case with single spaces for whatever is no letter or digit."""
    return " ".join(re.findall(r"\w+", name.replace("_", " ").casefold()))


def near(name: str, known: list[str]) -> str:
    """Return a few known names like this one, for a message."""
    found = get_close_matches(plain(name), known, n=4, cutoff=0.4)
    return ", ".join(found) or f"nothing like it, but {', '.join(known[:4])}, ..."
