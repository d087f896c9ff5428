"""Loads CLIP and other networks that look at images, in one way for judges, methods and attacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from torch import Tensor

from bench.core.errors import AssetError, first_line

TOKENS = 77
Pixels = Callable[[Sequence[Any]], Tensor]
"""Turns PIL images into what a network reads, ``(images, 3, height, width)``, where the network is."""
Tokens = Callable[[Sequence[str]], Mapping[str, Tensor]]
"""Turns texts into CLIP's arguments ``input_ids`` and ``attention_mask``, ``(texts, tokens)``."""


def cleaned(texts: Sequence[str]) -> list[str]:
    """Return texts with ftfy's repairs of encodings and typography, as CLIP's first tokenizer read them.

    Curly quotes become straight, full-width letters plain, HTML entities characters. Transformers did so
    before version 5.
    """
    import ftfy

    return [ftfy.fix_text(text) for text in texts]


def load_vision(
    kind: Any, folder: Path | str, device: Any = "cpu", *, asset: str = ""
) -> tuple[Any, Pixels]:
    """Return a frozen network of transformers and the function that prepares its images.

    Weights are safetensors, or a ``.bin`` file that holds nothing but tensors; they are read in fp32.
    Images are prepared by the folder's processor in its Pillow form, whatever form transformers prefers:
    published numbers were computed before the torchvision form existed, whose pixels differ by up to one
    grey level.

    Args:
        kind: Class of the network, such as ``transformers.CLIPModel``.
        folder: Its files, or the id of a model on the hub.
        device: Where it is put.
        asset: The name under which the user gave the folder, for messages.

    Raises:
        AssetError: The folder has no such network, or lacks some of its weights.
    """
    where = f"{asset}={folder}" if asset else str(folder)
    net, report, processor = _read(kind, folder, where)
    entries = (*report["missing_keys"], *report["mismatched_keys"])
    unfit = sorted({e if isinstance(e, str) else e[0] for e in entries})  # some have shapes beside
    if unfit:
        raise AssetError(
            f"{where}: expected all weights of a {kind.__name__}, but {len(unfit)} are missing or of "
            f"another shape, the first is {unfit[0]}"
        )
    net.eval().requires_grad_(False).to(device)

    def pixels(images: Sequence[Any]) -> Tensor:
        rgb = [image.convert("RGB") for image in images]
        return processor(rgb, return_tensors="pt").pixel_values.to(device)

    return net, pixels


def _read(kind: Any, folder: Path | str, where: str) -> tuple[Any, Mapping[str, Any], Any]:
    """Return a network, what the library says of its weights, and its image processor."""
    import torch

    try:
        net, report = kind.from_pretrained(
            folder,
            weights_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, in words
            torch_dtype=torch.float32,
        )
        processor = _processor(folder)
    except Exception as exc:  # every format of weights fails in a way of its own
        reason = first_line(exc)
        if any(isinstance(cause, UnpicklingError) for cause in _causes(exc)):
            reason = "its .bin file holds more than tensors and is not read; give safetensors"
        raise AssetError(f"{where}: expected files that {kind.__name__} loads: {reason}") from exc
    return net, report, processor


def load_tokens(folder: Path | str, device: Any = "cpu") -> Tokens:
    """Return the function that tokenises texts for CLIP; what is beyond 77 tokens is cut off.

    Raises:
        AssetError: The folder has no tokenizer.
    """
    from transformers import CLIPTokenizer

    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder)
    except (OSError, ValueError, TypeError) as exc:
        reason = first_line(exc)
        raise AssetError(f"{folder}: expected CLIP's tokenizer: {reason}") from exc

    def tokens(texts: Sequence[str]) -> Mapping[str, Tensor]:
        return tokenizer(
            cleaned(texts), padding=True, truncation=True, max_length=TOKENS, return_tensors="pt"
        ).to(device)

    return tokens


def _causes(exc: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and those that led to it."""
    while exc:
        yield exc
        exc = exc.__context__


def _processor(folder: Path | str) -> Any:
    import transformers

    # Releases up to 5.2 know no backends; later ones will drop the old word.
    backends = hasattr(transformers, "CLIPImageProcessorPil")
    pil: dict[str, Any] = {"backend": "pil"} if backends else {"use_fast": False}
    return transformers.AutoImageProcessor.from_pretrained(folder, **pil)
