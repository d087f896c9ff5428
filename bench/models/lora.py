"""Fuses LoRA layers into weights: ``W + alpha / rank * up @ down`` (Hu et al., arXiv 2106.09685).

Read are the names of kohya (LECO and SPM use them), of diffusers, old and new, and of PEFT. Nothing is
left out in silence: a file that holds anything else is refused.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from bench.errors import SpecError

Find = Callable[[str], tuple[str, str]]
"""From a tensor's name in a file to the part of the model that has it, and its name there."""
_LORA = re.compile(r"(^|[._])lora[._]|\.lora_[AB]\.")
_KOHYA = re.compile(r"lora_(unet|te1?)_(.+)\.(lora_down\.weight|lora_up\.weight|alpha)")
_OLD = re.compile(r"(.+)\.processor\.(to_\w+)_lora\.(down|up)\.weight")
_DOTTED = re.compile(
    r"(.+)\.(lora_(?:down|up|A|B)|lora(?:_linear_layer)?\.(?:down|up))(?:\.\w+)?\.weight"
)
_DOWN = re.compile(r"(^|[._])(down(\.weight)?|A)$")


@dataclass(slots=True)
class _Layer:
    """The tensors of one layer: ``down (rank, in, ...)``, ``up (out, rank, ...)``."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    peft: bool = False


@dataclass(frozen=True, slots=True)
class _Alpha:
    """Alpha of all layers; with ``rank_stabilised`` it is divided by the root of the rank."""

    value: float
    rank_stabilised: bool


def is_lora(names: Mapping[str, object]) -> bool:
    """Say whether names of tensors are those of LoRA layers."""
    return any(_LORA.search(name) for name in names)


def fused(
    files: list[Path],
    given: Mapping[str, Tensor],
    part: str,
    find: Find,
    flat: Mapping[str, tuple[str, str]],
    weights: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], int]:
    """Return a part's weights with its LoRA layers fused, and how many tensors are of other parts.

    Args:
        files: Where the layers were read from: the first may say their alpha, in its metadata or in
            ``adapter_config.json`` beside it.
        given: The file's tensors by name.
        part: "unet" or "text_encoder".
        find: Where a dotted name belongs.
        flat: Where a name belongs whose dots are underscores, as kohya writes it.
        weights: The part's own tensors by the names that ``find`` gives.

    Raises:
        SpecError: A tensor is not understood, lacks its other half, or does not fit.
    """
    layers: dict[tuple[str, str], _Layer] = defaultdict(_Layer)
    for key, tensor in given.items():
        owner, name, role = _place(key, find, flat)
        if not owner:
            raise SpecError(
                f"{files[0]} is a LoRA, but {key} {tuple(tensor.shape)} is not understood: fuse it into "
                "the base with the program that made it (in diffusers: pipe.load_lora_weights(FILE), "
                "pipe.fuse_lora(), pipe.unload_lora_weights()) and give the saved denoiser"
            )
        layers[owner, name].tensors[role] = tensor
        layers[owner, name].peft |= key.startswith("base_model.")
    alpha = _alpha(files[0], beside=any(layer.peft for layer in layers.values()))
    own = {name: layer for (owner, name), layer in layers.items() if owner == part}
    if not own:
        raise SpecError(f"{files[0]} is a LoRA without a layer of the model's {part}")
    found = {
        name: _fuse(files[0], name, layer, weights[name], alpha) for name, layer in own.items()
    }
    return found, len(given) - sum(len(layer.tensors) for layer in own.values())


def _place(key: str, find: Find, flat: Mapping[str, tuple[str, str]]) -> tuple[str, str, str]:
    """Return part, weight and role ("down", "up" or "alpha") of a tensor; empty words if it has none."""
    if match := _KOHYA.fullmatch(key):
        owner, name = flat.get(match[2].removeprefix("text_model_"), ("", ""))
        role = match[3]
    elif match := _OLD.fullmatch(key):
        layer = "to_out.0" if match[2] == "to_out" else match[2]
        owner, name = find(f"{match[1]}.{layer}.weight")
        role = match[3]
    elif match := _DOTTED.fullmatch(key):
        owner, name = find(f"{match[1]}.weight")
        role = match[2]
    elif key.endswith(".alpha"):
        owner, name = find(f"{key.removesuffix('.alpha')}.weight")
        role = "alpha"
    else:
        return "", "", ""
    return owner, name, role if role == "alpha" else "down" if _DOWN.search(role) else "up"


def _fuse(file: Path, name: str, layer: _Layer, weight: Tensor, alpha: _Alpha | None) -> Tensor:
    parts = layer.tensors
    if not {"down", "up"} <= parts.keys():
        raise SpecError(f"{file} is a LoRA that lacks one half of its layer for {name}")
    down, up = (parts[role].float().flatten(1) for role in ("down", "up"))
    rank = len(down)
    if up.shape[1] != rank or len(up) != len(weight) or len(up) * down.shape[1] != weight.numel():
        raise SpecError(
            f"{file} is a LoRA that does not fit: its layer for {name} is {tuple(up.shape)} x "
            f"{tuple(down.shape)}, expected the shape {tuple(weight.shape)}"
        )
    if "alpha" in parts:
        scale = float(parts["alpha"]) / rank
    elif alpha:
        scale = alpha.value / (rank**0.5 if alpha.rank_stabilised else rank)
    elif layer.peft:
        raise SpecError(
            f"{file} is a PEFT LoRA whose strength is not known: give the folder with its "
            "adapter_config.json"
        )
    else:
        scale = 1.0  # diffusers' rule for files without alpha
    return weight + (scale * (up @ down)).view_as(weight).to(weight)


def _alpha(file: Path, *, beside: bool) -> _Alpha | None:
    """Return what PEFT's configuration says, beside a file or in the file's metadata.

    Raises:
        SpecError: It cannot be read, or asks for more than LoRA's plain formula.
    """
    config_file = file.parent / "adapter_config.json"
    try:
        beside = beside and config_file.is_file()
        texts = [config_file.read_text(encoding="utf-8")] if beside else list(_metadata(file))
        config: dict[str, Any] = {}
        for text in texts:  # diffusers' names have the part in front
            config |= {key.rpartition(".")[2]: value for key, value in json.loads(text).items()}
        if not config:
            return None
        more = ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "fan_in_fan_out")
        if asked := [key for key in more if config.get(key)]:
            raise SpecError(
                f"{file} is a PEFT adapter with {', '.join(asked)}: merge it with PEFT's "
                "merge_and_unload(), and give the saved weights"
            )
        return _Alpha(float(config["lora_alpha"]), bool(config.get("use_rslora")))
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
