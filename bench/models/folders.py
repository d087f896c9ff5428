"""Reads diffusers folders and single-file checkpoints of Stable Diffusion, and writes folders.

A weight that is missing in the files is an error: the library would leave it random.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizerFast

from bench.core.errors import AssetError, SpecError, raised
from bench.models.checkpoints import bare, read_tensors
from bench.sources.folders import PARTS, class_of

Tensors = dict[str, Tensor]
_EXTRA = re.compile(r"position_ids$|^text_projection\.|^logit_scale$")  # not needed to draw


def load_folder(
    folder: Path, dtype: torch.dtype, weights: Mapping[str, Tensors] | None = None
) -> Any:
    """Return the pipeline of a diffusers folder, without its safety checker and other additions.

    Args:
        folder: As :func:`bench.sources.folders.check` approves it.
        dtype: Type of the weights.
        weights: Each part's tensors, in place of those in the folder.

    Raises:
        AssetError: A part's configuration cannot be read, or its weights are not all there or have other
            shapes.
    """
    try:
        modules: dict[str, Any] = {part: _module(part, folder / part) for part in PARTS}
        tokenizer = CLIPTokenizerFast.from_pretrained(folder / "tokenizer")
        index = json.loads((folder / "model_index.json").read_bytes())
        kind = getattr(diffusers, class_of(index, "scheduler"))
        scheduler = kind.from_pretrained(folder / "scheduler")
    except Exception as exc:  # for an unknown configuration the libraries raise any type
        raise AssetError(f"cannot load {folder}: {raised(exc)}") from exc
    for part, module in modules.items():
        given = weights[part] if weights else read_tensors(folder / part)
        _fill(module, given, dtype, f"{folder}/{part}")
    config = modules["text_encoder"].config
    if len(tokenizer) > config.vocab_size:
        raise AssetError(
            f"{folder}: its tokenizer has {len(tokenizer)} tokens, its text encoder {config.vocab_size}"
        )
    tokenizer.model_max_length = min(tokenizer.model_max_length, config.max_position_embeddings)
    return pipeline(tokenizer=tokenizer, scheduler=scheduler, **modules)


def pipeline(**parts: Any) -> StableDiffusionPipeline:
    """Return a pipeline of parts, without the safety checker."""
    with warnings.catch_warnings():  # it mends old settings of a scheduler, and prints them all
        warnings.simplefilter("ignore", FutureWarning)
        return StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )


def _module(part: str, folder: Path) -> nn.Module:
    """Return a part without its weights."""
    if part == "text_encoder":  # it has buffers that are in no file
        with torch.random.fork_rng(devices=[]):
            return CLIPTextModel(CLIPTextConfig.from_pretrained(folder))
    kind = UNet2DConditionModel if part == "unet" else AutoencoderKL
    with torch.device("meta"):
        module: nn.Module = kind.from_config(kind.load_config(folder))
    return module


def _fill(module: nn.Module, given: Tensors, dtype: torch.dtype, where: str) -> None:
    """Put tensors into a module; both must have the same names and shapes."""
    mine = {bare(name): (name, tensor) for name, tensor in module.state_dict().items()}
    found = {bare(name): tensor for name, tensor in given.items() if not _EXTRA.search(bare(name))}
    unfit = [n for n, (_, t) in mine.items() if n not in found or found[n].shape != t.shape]
    if unfit:
        raise AssetError(
            f"{where}: {len(unfit)} of {len(mine)} weights are missing or of another shape, and would be "
            f"random: {', '.join(unfit[:3])}"
        )
    if more := [name for name in found if name not in mine]:
        raise AssetError(
            f"{where}: {len(more)} weights are not in the model that its config.json describes: "
            f"{', '.join(more[:3])}"
        )
    if odd := [name for name in mine if not found[name].is_floating_point()]:
        raise AssetError(f"{where}: {odd[0]} is quantised ({found[odd[0]].dtype}); expected floats")
    new = {name: found[bare].to(dtype, copy=True) for bare, (name, _) in mine.items()}
    module.load_state_dict(new, assign=True)
    module.to(dtype)


# ---------------------------------------------------------------------- single-file checkpoints
_LDM = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "cond_stage_model.",
}


def text_width(tensors: Tensors, path: str) -> int:
    """Return the width of the text that a checkpoint in CompVis's layout takes: 768 in SD 1, 1024 in SD 2.

    Raises:
        SpecError: It is no checkpoint of Stable Diffusion 1 or 2.
    """
    first = tensors.get(f"{_LDM['unet']}input_blocks.0.0.weight")
    found = next(
        (t for n, t in tensors.items() if n.startswith(_LDM["unet"]) and "attn2.to_k" in n), None
    )
    text = any(name.startswith(_LDM["text_encoder"]) for name in tensors)
    if first is None or found is None or not text or first.dim() != 4 or found.dim() != 2:
        if any(name.startswith("conditioner.") for name in tensors):
            raise SpecError(f"{path} is a Stable Diffusion XL: expected Stable Diffusion 1 or 2")
        raise SpecError(
            f"{path} is no whole checkpoint of Stable Diffusion 1 or 2: expected tensors named "
            f"{', '.join(f'{prefix}*' for prefix in _LDM.values())}, got "
            f"{', '.join(list(tensors)[:3])}. A denoiser alone goes with --unet"
        )
    channels = first.shape[1]
    if channels in {8, 9}:
        kind = "an inpainting" if channels == 9 else "an image-editing"
        raise SpecError(f"{path}: the denoiser takes {channels} channels: {kind} model?")
    return int(found.shape[1])


def load_file_model(path: Path, tensors: Tensors, config: Path, dtype: torch.dtype) -> Any:
    """Return the pipeline of a checkpoint in CompVis's layout, with the configuration of a folder.

    Raises:
        AssetError: Its tensors are not those of the configuration.
    """
    from diffusers.loaders import single_file_utils as library

    unet, vae = (
        json.loads((config / part / "config.json").read_bytes()) for part in ("unet", "vae")
    )
    own = {p: {n: t for n, t in tensors.items() if n.startswith(_LDM[p])} for p in PARTS}
    try:
        weights = {
            "unet": library.convert_ldm_unet_checkpoint(dict(own["unet"]), unet),
            "vae": library.convert_ldm_vae_checkpoint(dict(own["vae"]), vae),
            "text_encoder": _text(own["text_encoder"], config / "text_encoder"),
        }
    except (KeyError, ValueError, IndexError) as exc:
        raise AssetError(
            f"{path} is not of the shapes that {config} describes: {raised(exc)}"
        ) from exc
    for part, found in weights.items():
        if part != "text_encoder" and len(found) != len(own[part]):
            raise AssetError(
                f"{path}: {len(found)} of {len(own[part])} tensors of its {part} are known"
            )
    try:
        return load_folder(config, dtype, weights)
    except AssetError as exc:
        raise AssetError(f"cannot load {path} by the configuration {exc}") from exc


def _text(own: Tensors, config: Path) -> Tensors:
    """Return the tensors of a text encoder: CLIP's, or OpenCLIP's of SD 2 under CLIP's names."""
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

    prefix = f"{_LDM['text_encoder']}model."
    if any(name.startswith(prefix) for name in own):
        found: Tensors = convert_open_clip_checkpoint(
            _module("text_encoder", config), dict(own), prefix
        )
        return found
    return {name.removeprefix(f"{_LDM['text_encoder']}transformer."): t for name, t in own.items()}


# ---------------------------------------------------------------------- writing
def save_folder(pipe: Any, folder: Path) -> None:
    """Write a pipeline as a diffusers folder that transformers 4 and 5 read in the same way.

    Transformers 4 reads only those tensors of a text encoder whose names begin with ``text_model.``, and
    needs a tokenizer's vocabulary and merges in two files; 5 reads both forms.
    """
    pipe.save_pretrained(folder, safe_serialization=True)
    text = folder / "text_encoder" / "model.safetensors"
    tensors = {f"text_model.{bare(name)}": tensor for name, tensor in load_file(text).items()}
    save_file(tensors, text, {"format": "pt"})
    pipe.tokenizer.backend_tokenizer.model.save(str(folder / "tokenizer"))
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace('"CLIPTokenizerFast"', '"CLIPTokenizer"'))
