"""Reads the weights of a denoiser or text encoder that was erased elsewhere. Nothing is unpickled.

It reads what papers publish: a whole state dict, only the trained tensors, or LoRA layers; with the names
of diffusers, of transformers 4 or 5, or of the CompVis code, under any wrapper's prefix; as safetensors, as
a torch file, or as a diffusers folder, whole, in shards or as a variant. A file's content decides what it
is, not its ending. A file is read as a whole or refused, and the message names what is not understood.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from bench.core.errors import SpecError, first_line
from bench.models import lora
from bench.sources import folders

Part = Literal["unet", "text_encoder"]
_STEMS = (*folders.STEMS, "pytorch_lora_weights", "adapter_model")
# In names of tensors that a whole checkpoint holds for other parts of a model.
_ELSEWHERE = {
    "unet": {"vae", "first_stage_model", "cond_stage_model", "text_encoder", "model_ema"},
    "text_encoder": {
        "vae", "first_stage_model", "unet", "diffusion_model", "model_ema", "vision_model",
    },
}  # fmt: skip
_OTHER_FLAG = {
    "unet": "a text encoder goes with --text-encoder",
    "text_encoder": "a denoiser goes with --unet",
}
# The noise schedule and counters of CompVis's code, a buffer of transformers 4, CLIP's other tensors.
_NO_WEIGHTS = re.compile(
    r"(^|\.)(betas|(\w+_)?alphas_cumprod(_prev)?|posterior_\w+|logvar|lvlb_weights|scale_factor"
    r"|position_ids|logit_scale|visual_projection\.weight|text_projection\.weight)$"
)
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_BLOCKS = {  # names of diffusers and of CompVis
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_WRAPPERS = re.compile(r"\b_(orig_mod|fsdp_wrapped_module|checkpoint_wrapped_module)\.")
_LAYOUTS = (  # what is in a name, what such a file is, what to do
    (r"hada_|lokr_|oft_|dora_scale|lora_magnitude", "a LyCORIS or DoRA adapter",
     "merge it into the base with the program that made it, and give the merged weights"),
    (r"\|(zeros|bits|value|half)$", "an erasure that bench saved",
     "`bench apply FOLDER --export MODEL`, and give MODEL/unet"),
    (r"control_model\.|controlnet", "a ControlNet", "an added network cannot be judged here"),
    (r"emb_params|string_to_param|^<.*>$", "a textual inversion", "it changes no weights"),
    (r"exp_avg", "the state of an optimiser", "save the model's state dict"),
    (r"resblocks\.", "OpenCLIP's text encoder", "convert the model with diffusers' StableDiffusionPipeline."
     "from_single_file(PATH).save_pretrained(FOLDER), and give FOLDER"),
    (r"double_blocks|joint_blocks|single_transformer_blocks", "a transformer's denoiser",
     "only Stable Diffusion 1 and 2 can be judged"),
    (r"add_embedding\.|label_emb\.|conditioner\.", "Stable Diffusion XL's",
     "only Stable Diffusion 1 and 2 can be judged"),
)  # fmt: skip
_BEGINNINGS = (
    (b"version https://git-lfs",
     "a pointer of git-lfs, not the file: fetch it with `git lfs pull`"),
    (b"<", "a web page: download the file itself"),
    (b"GGUF", "a GGUF file: save the state dict as safetensors"),
    (b"\x89HDF", "an HDF5 file: save the state dict as safetensors"),
    ((b"Rar!", b"7z\xbc\xaf", b"\x1f\x8b"), "an archive: unpack it"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a file changed in a model.

    Args:
        tensors: How many tensors of the model it sets.
        changed: How many of them had other values before.
        layout: "weights" or "LoRA".
        elsewhere: Tensors of the file that belong to other parts of a model, which were not read.
    """

    tensors: int
    changed: int
    layout: str
    elsewhere: int = 0


def load_part(pipe: Any, part: Part, path: Path) -> Loaded:
    """Put a file's tensors into a pipeline's denoiser or text encoder.

    Raises:
        SpecError: The file cannot be read, or one of its tensors does not fit; then nothing is changed.
    """
    source = path / part if (path / part).is_dir() else path
    given, table = read_tensors(source), _table(pipe)
    module: nn.Module = getattr(pipe, part)
    target = {bare(name): tensor for name, tensor in module.state_dict().items()}
    if lora.is_lora(given):
        flat = {n.removesuffix(".weight").replace(".", "_"): place for n, place in table.items()}
        find = partial(_place, table)
        found, elsewhere = lora.fused(weight_files(source)[0], given, part, find, flat, target)
        layout = "LoRA"
    else:
        found, elsewhere = _own(path, given, table, part, target)
        layout = "weights"
    changed = 0
    with torch.no_grad():
        for name, tensor in found.items():
            new = tensor.to(target[name])
            changed += not torch.equal(new, target[name])
            target[name].copy_(new)
    return Loaded(len(found), changed, layout, elsewhere)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file, or of a diffusers or transformers folder, by their full names.

    A file may be safetensors or torch's, whatever its name, and may hold nested dicts; a folder may hold
    shards or one variant.

    Raises:
        SpecError: There is no such file, it is damaged, or only unpickling could read it.
    """
    tensors: dict[str, Tensor] = {}
    for file in weight_files(path):
        tensors |= _flat(_read(file))
    if not tensors:
        raise SpecError(f"{path} holds no tensors with names: expected a state dict")
    return tensors


def weight_files(path: Path) -> list[Path]:
    """Return the files of weights in a diffusers or transformers folder; for a file, the file itself.

    Raises:
        SpecError: There are none, several sets of them, or a shard is missing.
    """
    if path.is_dir():
        return folders.weight_files(path, _STEMS)
    if path.name.endswith(".json"):
        return folders.shards(path)
    if folders.SHARD.search(path.name):
        raise SpecError(f"{path} is one shard of several: give the folder with its index.json")
    return [path]


def _read(path: Path) -> Any:
    try:
        with path.open("rb") as stream:
            head = stream.read(64)
            if head[8:9] == b"{":
                return load_file(path)
            kind = _archive(path) if head[:2] == b"PK" else ""
            packed = head[:2] == b"PK" and not kind
            if packed and path.suffix != ".safetensors":  # torch.load goes by the ending
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            if packed or head[:1] == b"\x80":
                stream.seek(0)
                return torch.load(stream, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as exc:
        if "truncated" in str(exc):
            raise SpecError(f"{path} is damaged: it ends too early") from exc
        raise SpecError(
            f"{path} holds more than tensors: reading it means running what is in it, "
            "which is refused. Save its state dict as safetensors"
        ) from exc
    except (OSError, SafetensorError) as exc:
        raise SpecError(f"{path} is not a readable file of tensors: {first_line(exc)}") from exc
    except Exception as exc:  # for a damaged file torch raises any type
        raise SpecError(f"{path} is a damaged torch file: {first_line(exc)}") from exc
    raise SpecError(f"{path} is not a readable file of tensors: it is {kind or what_is(head)}")


def what_is(head: bytes) -> str:
    """Say what a file is that holds no tensors, by its first bytes."""
    kinds = (words for beginning, words in _BEGINNINGS if head.lstrip().startswith(beginning))
    return next(kinds, "neither safetensors nor a torch file" if head else "empty")


def _archive(path: Path) -> str:
    """Say what a zip file is that is not one of torch's; what is damaged is left to torch."""
    try:
        with zipfile.ZipFile(path) as opened:
            names = {name.rpartition("/")[2] for name in opened.namelist()}
    except zipfile.BadZipFile:
        return ""
    if "constants.pkl" in names:
        return "a TorchScript program: save the state dict of its model as safetensors"
    if any(name.endswith(".npy") for name in names):
        return "numpy's: save the state dict as safetensors"
    return "" if "data.pkl" in names else "an archive: unpack it"


def _flat(data: Any, prefix: str = "") -> dict[str, Tensor]:
    """Return the tensors of a dict, and of the dicts in it (``{module: state dict}``), by name."""
    found: dict[str, Tensor] = {}
    for key, value in data.items() if isinstance(data, Mapping) else ():
        if isinstance(value, Tensor):
            dense = value if value.layout == torch.strided else value.to_dense()
            found[_WRAPPERS.sub("", f"{prefix}{key}")] = dense
        elif isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
    return found


def _own(
    path: Path,
    given: Mapping[str, Tensor],
    table: Mapping[str, tuple[str, str]],
    part: Part,
    target: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], int]:
    """Return a file's tensors of a part by their bare names, and how many are of other parts.

    The bare name is the longest end of the full name that a part of the model has: wrappers and scripts put
    anything in front.
    """
    found: dict[str, str] = {}
    unfit: dict[str, str] = {}  # full names, and the shape that was expected
    elsewhere = 0
    for key, tensor in given.items():
        owner, name = _place(table, key)
        if set(key.removesuffix(name).split(".")) & _ELSEWHERE[part]:
            elsewhere += 1
        elif owner == part:
            if name in found:
                raise SpecError(
                    f"{path} holds two copies: {found[name]} and {key}. Save the state dict that "
                    "is to be judged"
                )
            found[name] = key
            if tensor.shape != target[name].shape or not tensor.is_floating_point():
                unfit[key] = f", expected {tuple(target[name].shape)}"
        elif owner:
            elsewhere += 1
        elif not _NO_WEIGHTS.search(key):
            unfit[key] = ""
    if unfit or not found:
        raise SpecError(_misfit(path, part, given, unfit or dict.fromkeys(given, ""), elsewhere))
    return {name: given[key] for name, key in found.items()}, elsewhere


def _misfit(
    path: Path, part: str, given: Mapping[str, Tensor], unfit: Mapping[str, str], elsewhere: int
) -> str:
    """Say which tensors do not fit, and what the file seems to be."""
    total = len(given) - elsewhere or len(given)
    first = "; ".join(f"{key} {_form(given[key])}{unfit[key]}" for key in list(unfit)[:3])
    text = (
        f"{path} does not fit the model's {part}: {total - len(unfit)} of {total} tensors fit; "
        f"the first that do not: {first}"
    )
    for pattern, kind, advice in _LAYOUTS:
        if any(re.search(pattern, key) for key in unfit):
            return f"{text}. It looks like {kind}: {advice}"
    if any(form and not given[key].is_floating_point() for key, form in unfit.items()):
        return f"{text}. Give weights that are not quantised"
    if elsewhere == len(given):
        return f"{text}. They are of other parts of a model: {_OTHER_FLAG[part]}"
    if any(given[key].shape[1:2] == (9,) and "conv_in" in key for key in unfit):
        return f"{text}. It looks like an inpainting denoiser: only text-to-image can be judged"
    return text


def _form(tensor: Tensor) -> str:
    kind = "" if tensor.is_floating_point() else f" {str(tensor.dtype).removeprefix('torch.')}"
    return f"{tuple(tensor.shape)}{kind}"


def _table(pipe: Any) -> dict[str, tuple[str, str]]:
    """Return the part and bare name of every tensor of a pipeline, for each of its names in files."""
    names: dict[str, tuple[str, str]] = {}
    for part in ("vae", "text_encoder", "unet"):
        names |= {b: (part, b) for b in map(bare, getattr(pipe, part).state_dict())}
    return names | {theirs: ("unet", ours) for theirs, ours in compvis_names(pipe.unet).items()}


def _place(table: Mapping[str, tuple[str, str]], key: str) -> tuple[str, str]:
    """Return part and bare name for the longest known end of a dotted name, or two empty words."""
    parts = key.split(".")
    ends = (".".join(parts[i:]) for i in range(len(parts)))
    return next((table[end] for end in ends if end in table), ("", ""))


def bare(name: str) -> str:
    """Return a tensor's name as diffusers and transformers 5 write it today."""
    name = name.removeprefix("text_model.")
    head, _, last = name.rpartition(".")
    block, _, layer = head.rpartition(".")
    return f"{block}.{_OLD_ATTENTION[layer]}.{last}" if layer in _OLD_ATTENTION else name


def compvis_names(unet: nn.Module) -> dict[str, str]:
    """Return a denoiser's names of tensors for the names that the CompVis code gives them."""
    blocks = _compvis_blocks(unet)
    names: dict[str, str] = {}
    for ours, module in unet.named_modules():
        if theirs := blocks.get(ours):
            for name in module.state_dict():
                layer, _, rest = name.partition(".")
                if ".resnets." in ours:
                    layer = _RESNET[layer]
                names[".".join(filter(None, (theirs, layer, rest)))] = f"{ours}.{name}"
    return names


def _compvis_blocks(unet: nn.Module) -> dict[str, str]:
    """Return the CompVis code's name for each of a denoiser's modules."""
    names = dict(_BLOCKS)
    sides = (("down_blocks", "input_blocks", 1), ("up_blocks", "output_blocks", 0))
    for ours, theirs, first in sides:
        at = first
        for b, block in enumerate(getattr(unet, ours)):
            attentions = len(getattr(block, "attentions", ()))
            for r in range(len(block.resnets)):
                names[f"{ours}.{b}.resnets.{r}"] = f"{theirs}.{at}.0"
                if r < attentions:
                    names[f"{ours}.{b}.attentions.{r}"] = f"{theirs}.{at}.1"
                at += 1
            if getattr(block, "downsamplers", None):  # a block of its own
                names[f"{ours}.{b}.downsamplers.0.conv"] = f"{theirs}.{at}.0.op"
                at += 1
            if getattr(block, "upsamplers", None):  # the last module of the block before
                last = f"{at - 1}.{2 if attentions else 1}"
                names[f"{ours}.{b}.upsamplers.0.conv"] = f"{theirs}.{last}.conv"
    return names
