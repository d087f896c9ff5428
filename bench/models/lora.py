"""Fuses LoRA layers into weights: ``W + alpha / rank * up @ down`` (Hu et al., arXiv 2106.09685).

It reads the names of kohya (LECO and SPM use them), of diffusers (old and new) and of PEFT. A file that
holds anything else is refused, so that nothing is left out silently.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from bench.core.errors import SpecError

Find = Callable[[str], tuple[str, str]]
"""From a tensor's name in a file to the part of the model that has it, and its name there."""
_LORA = re.compile(r"(^|[._])lora[._]|\.lora_[AB]\.")
_HALF = re.compile(r"(.+?)[._]lora(?:_linear_layer)?[._](down|up|A|B)(?:\.\w+)?\.weight")
_ALPHA = re.compile(r"(.+)\.(alpha)")
_KOHYA = re.compile(r"lora_(?:unet|te1?)_(?:text_model_)?(.+)")
_PEFT = {"A": "down", "B": "up"}


def is_lora(names: Mapping[str, object]) -> bool:
    """Say whether names of tensors are those of LoRA layers."""
    return any(_LORA.search(name) for name in names)


def fused(
    file: Path,
    given: Mapping[str, Tensor],
    part: str,
    find: Find,
    flat: Mapping[str, tuple[str, str]],
    weights: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], int]:
    """Return a part's weights with its LoRA layers fused, and how many tensors are of other parts.

    Args:
        file: The file of the layers, or the first of them: it may say their alpha, in its metadata or in
            ``adapter_config.json`` beside it.
        given: The file's tensors by name.
        part: "unet" or "text_encoder".
        find: Returns where a dotted name belongs.
        flat: Where a name belongs that kohya's code wrote, with underscores for dots.
        weights: The part's own tensors by the names that ``find`` gives.

    Raises:
        SpecError: A tensor is not understood, lacks its other half, or does not fit.
    """
    layers: dict[tuple[str, str], dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in given.items():
        owner, name, role = _place(key, find, flat)
        if not owner:
            raise SpecError(
                f"{file} is a LoRA, but {key} {tuple(tensor.shape)} is not understood: fuse it into "
                "the base with the program that made it (in diffusers: pipe.load_lora_weights(FILE), "
                "pipe.fuse_lora(), pipe.unload_lora_weights()) and give the saved denoiser"
            )
        layers[owner, name][role] = tensor
    own = {name: layer for (owner, name), layer in layers.items() if owner == part}
    if not own:
        raise SpecError(f"{file} is a LoRA without a layer of the model's {part}")
    strength = _strength(file, peft=any(key.startswith("base_model.") for key in given))
    found = {name: _fuse(file, name, layer, weights[name], strength) for name, layer in own.items()}
    return found, len(given) - sum(map(len, own.values()))


def _place(key: str, find: Find, flat: Mapping[str, tuple[str, str]]) -> tuple[str, str, str]:
    """Return part, weight and role ("down", "up" or "alpha") of a tensor; empty words if it has none."""
    match = _HALF.fullmatch(key) or _ALPHA.fullmatch(key)
    if not match:
        return "", "", ""
    layer, role = match.groups()
    if kohya := _KOHYA.fullmatch(layer):
        owner, name = flat.get(kohya[1], ("", ""))
    else:
        layer = layer.replace(".processor.", ".")  # diffusers' old names, which lack to_out's index
        owner, name = find(f"{layer}{'.0' if layer.endswith('.to_out') else ''}.weight")
    return owner, name, _PEFT.get(role, role)


def _fuse(
    file: Path,
    name: str,
    layer: Mapping[str, Tensor],
    weight: Tensor,
    strength: Callable[[int], float],
) -> Tensor:
    """Return a layer's weight with ``down (rank, in, ...)`` and ``up (out, rank, ...)`` fused into it."""
    if not {"down", "up"} <= layer.keys():
        raise SpecError(f"{file} is a LoRA that lacks one half of its layer for {name}")
    down, up = (layer[role].float().flatten(1) for role in ("down", "up"))
    rank = len(down)
    if up.shape[1] != rank or len(up) != len(weight) or len(up) * down.shape[1] != weight.numel():
        raise SpecError(
            f"{file} is a LoRA that does not fit: its layer for {name} is {tuple(up.shape)} x "
            f"{tuple(down.shape)}, expected the shape {tuple(weight.shape)}"
        )
    scale = float(layer["alpha"]) / rank if "alpha" in layer else strength(rank)
    return weight + (scale * (up @ down)).view_as(weight).to(weight)


def _strength(file: Path, *, peft: bool) -> Callable[[int], float]:
    """Return the scale of a layer without an alpha of its own, by its rank.

    PEFT's configuration says it, beside a file or in the file's metadata.

    Raises:
        SpecError: It is missing or cannot be read, or asks for more than LoRA's plain formula.
    """
    config_file = file.parent / "adapter_config.json"
    try:
        beside = peft and config_file.is_file()
        texts = [config_file.read_text(encoding="utf-8")] if beside else list(_metadata(file))
        config: dict[str, Any] = {}
        for text in texts:  # in metadata, the part's name stands before a key
            config |= {key.rpartition(".")[2]: value for key, value in json.loads(text).items()}
        if peft and not config:
            raise SpecError(
                f"{file} is a PEFT LoRA whose strength is not known: give the folder with its "
                "adapter_config.json"
            )
        if not config:
            return lambda rank: 1.0  # diffusers' rule
        more = ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "fan_in_fan_out")
        if asked := [key for key in more if config.get(key)]:
            raise SpecError(
                f"{file} is a PEFT adapter with {', '.join(asked)}: merge it with PEFT's "
                "merge_and_unload(), and give the saved weights"
            )
        alpha, root = float(config["lora_alpha"]), bool(config.get("use_rslora"))
        return lambda rank: alpha / (rank**0.5 if root else rank)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise SpecError(f"{file}: the LoRA's configuration cannot be read ({exc})") from exc


def _metadata(file: Path) -> Iterator[str]:
    """Yield the configuration that newer diffusers writes into a safetensors file."""
    with file.open("rb") as stream:
        if stream.read(9)[8:] != b"{":
            return
    with safe_open(file, "pt") as opened:
        if text := (opened.metadata() or {}).get("lora_adapter_metadata"):
            yield text
