"""What an erasure changed, as one safetensors file: small, reversible, independent of the method.

A tensor that a method only zeroed in places is stored as a mask: the flat indices of the zeros, or
one bit an entry, whichever is smaller. Every other changed tensor is stored whole.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from bench.errors import StoreError
from bench.models.diffusers import DiffusersModel

Delta = dict[str, Tensor]


def weights(model: DiffusersModel) -> Delta:
    """Return the denoiser's and the text encoder's tensors by name, without copying them."""
    return {
        f"{part}.{name}": tensor
        for part in ("unet", "text_encoder")
        for name, tensor in getattr(model.pipe, part).state_dict().items()
    }


def diff(base: DiffusersModel, erased: DiffusersModel) -> Delta:
    """Return what changed; an empty result means that the weights are equal."""
    delta: Delta = {}
    before = weights(base)
    for name, after in weights(erased).items():
        old = before[name].to(after.device)
        if torch.equal(old, after):
            continue
        changed = old != after
        if bool((after[changed] == 0).all()):
            flat = changed.flatten().cpu()
            indices = flat.nonzero().flatten().int()
            if 4 * len(indices) <= flat.numel() / 8:
                delta[f"{name}|zeros"] = indices
            else:
                delta[f"{name}|bits"] = torch.from_numpy(np.packbits(flat.numpy()))
        else:
            delta[f"{name}|value"] = after.detach().cpu().contiguous()
    return delta


def apply(model: DiffusersModel, delta: Delta) -> DiffusersModel:
    """Return a copy of the base model with a delta applied.

    Raises:
        StoreError: The delta was made for a model with other tensors.
    """
    erased = model.copy()
    tensors = weights(erased)
    for key, value in delta.items():
        name, _, kind = key.rpartition("|")
        target = tensors.get(name)
        if target is None or (kind == "value" and target.shape != value.shape):
            raise StoreError(f"the delta does not fit this model: {name} is not there or differs")
        if kind == "value":
            target.copy_(value)
        elif kind == "zeros":
            target.view(-1)[value.long().to(target.device)] = 0
        else:
            bits = np.unpackbits(value.numpy(), count=target.numel()).astype(bool)
            target.view(-1)[torch.from_numpy(bits).to(target.device)] = 0
    return erased


def revert(erased: DiffusersModel, delta: Delta, base: DiffusersModel) -> DiffusersModel:
    """Return a copy of an erased model with a delta taken back: bit-equal to what it was applied to.

    Raises:
        StoreError: The model is not the base with this delta.
    """
    expected, now = weights(apply(base, delta)), weights(erased)
    names = {key.rpartition("|")[0] for key in delta}
    for name in names:
        if name not in now or not torch.equal(now[name], expected[name].to(now[name].device)):
            raise StoreError(
                f"the delta cannot be taken back: {name} is not the base's with it applied"
            )
    restored, before = erased.copy(), weights(base)
    tensors = weights(restored)
    for name in names:
        tensors[name].copy_(before[name])
    return restored


def to_bytes(delta: Delta) -> bytes:
    """Return the safetensors form; equal deltas give equal bytes."""
    return save(dict(sorted(delta.items())))


def from_file(path: Path) -> Delta:
    """Read a delta.

    Raises:
        StoreError: The file is damaged.
    """
    try:
        return load(path.read_bytes())
    except (OSError, SafetensorError) as exc:
        raise StoreError(f"{path} is not a readable safetensors file ({exc}): delete it") from exc


def digest(delta: Delta) -> str:
    """Return a short digest of what changed."""
    return hashlib.sha256(to_bytes(delta)).hexdigest()[:16] if delta else "unchanged"
