"""Reads the weights of a denoiser or text encoder that was erased elsewhere. Nothing is unpickled.

What the field publishes: a whole state dict or only the trained tensors, by the names of diffusers, of
transformers 4 or 5, or of the CompVis code; as safetensors, a torch file, or a diffusers folder.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from bench.errors import SpecError

Part = Literal["unet", "text_encoder"]
_LDM = {"unet": "model.diffusion_model.", "text_encoder": "cond_stage_model.transformer."}
_PREFIXES = ("module.", "unet.", "text_encoder.", "text_model.")
_NAMES = ("diffusion_pytorch_model", "model", "pytorch_model")


def load_part(pipe: Any, part: Part, path: Path) -> int:
    """Put a file's tensors into a pipeline's denoiser or text encoder; return how many.

    Raises:
        SpecError: The file cannot be read, or does not fit: no tensor is changed then.
    """
    module: nn.Module = getattr(pipe, part)
    mine = {_bare(name): tensor for name, tensor in module.state_dict().items()}
    given = _named(read_tensors(_file(path, part), part), part, module)
    unfit = [n for n, t in given.items() if n not in mine or mine[n].shape != t.shape]
    if unfit or not given:
        first = ", ".join(f"{n} {tuple(given[n].shape)}" for n in unfit[:3])
        raise SpecError(
            f"{path} does not fit the model's {part}: {len(given) - len(unfit)} of {len(given)} "
            f"tensors fit; the first that do not: {first or 'none, it is empty'}"
        )
    with torch.no_grad():
        for name, tensor in given.items():
            mine[name].copy_(tensor)
    return len(given)


def read_tensors(path: Path, part: Part | None = None) -> dict[str, Tensor]:
    """Read the tensors of a safetensors or torch file, nested dicts flattened, by name.

    Raises:
        SpecError: There is no such file, it is damaged, or only unpickling could read it.
    """
    try:
        data = load_file(path) if path.suffix == ".safetensors" else _torch_load(path)
    except pickle.UnpicklingError as exc:
        raise SpecError(
            f"{path} holds more than tensors: reading it means running what is in it, "
            "which is refused. Save its state dict as safetensors"
        ) from exc
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError) as exc:
        reason = str(exc).strip().partition("\n")[0]
        raise SpecError(f"{path} is not a readable file of tensors: {reason}") from exc
    tensors = _flat(_inner(data, part))
    if not tensors:
        raise SpecError(f"{path} holds no tensors")
    return tensors


def _torch_load(path: Path) -> Any:
    with path.open("rb") as stream:
        zipped = stream.read(2) == b"PK"
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)


def _file(path: Path, part: Part) -> Path:
    """Return the weights of a diffusers folder, or of the part's folder in it; a file as it is."""
    if not path.is_dir():
        return path
    folder = path / part if (path / part).is_dir() else path
    files = [folder / f"{name}{end}" for name in _NAMES for end in (".safetensors", ".bin")]
    for file in files:
        if file.is_file():
            return file
    raise SpecError(f"{path} has no weights: expected {files[0].name} or {files[1].name} in it")


def _inner(data: Any, part: Part | None) -> Any:
    """Return the state dict that a training script wrapped."""
    for key in (part, "state_dict"):
        if isinstance(data, Mapping) and key in data and isinstance(data[key], Mapping):
            return _inner(data[key], part)
    return data


def _flat(data: Any, prefix: str = "") -> dict[str, Tensor]:
    """Return the tensors of a dict, and of the dicts in it (``{module: state dict}``), by name."""
    found: dict[str, Tensor] = {}
    for key, value in data.items() if isinstance(data, Mapping) else ():
        if isinstance(value, Tensor):
            found[f"{prefix}{key}"] = value
        elif isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
    return found


def _named(tensors: dict[str, Tensor], part: Part, module: nn.Module) -> dict[str, Tensor]:
    """Return tensors under the bare names of a module; those of CompVis's code are translated."""
    ldm = _LDM[part]
    if any(name.startswith(ldm) for name in tensors):  # may be a whole model: take the part only
        tensors = {n: t for n, t in tensors.items() if n.startswith(ldm)}
        if part == "unet":
            from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

            tensors = convert_ldm_unet_checkpoint(tensors, module.config)
        else:
            tensors = {n.removeprefix(ldm): t for n, t in tensors.items()}
    bare = {_bare(name): tensor for name, tensor in tensors.items()}
    bare.pop("embeddings.position_ids", None)  # a buffer of transformers 4, the same everywhere
    return bare


def _bare(name: str) -> str:
    """Return a tensor's name without what wrappers and library versions put in front of it."""
    for prefix in _PREFIXES:
        if name.startswith(prefix):
            return _bare(name.removeprefix(prefix))
    return name
