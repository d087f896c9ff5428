"""What an erasure changed, as one safetensors file: small, reversible, independent of the method.

A tensor in which a method only set entries to zero is stored as a mask: the flat indices of these entries,
or one bit per entry, whichever is smaller. Every other changed tensor is stored whole, in half precision
where that changes no value.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from bench.core.digest import UNCHANGED
from bench.core.errors import ContractError, StoreError
from bench.models.checkpoints import bare, what_is
from bench.models.diffusers import DiffusersModel
from bench.sources.folders import PARTS

Delta = dict[str, Tensor]
_CODES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}  # what safetensors calls types, in the order in which it writes them
_HALVES = (torch.float16, torch.bfloat16)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_HARMLESS = {"training", "gradient_checkpointing"}  # attributes of a module that change no image
_SIMPLE = (bool, int, float, str, Tensor)
_ALLOWED = (
    "a method may change the values of the weights of denoiser, text encoder and autoencoder, "
    "the guidance and the screen, nothing else"
)


def weights(model: DiffusersModel) -> Delta:
    """Return every tensor of denoiser, text encoder and autoencoder by name, without copying it.

    Names do not depend on the version of transformers: the prefix ``text_model.`` of version 4 is removed.
    """
    return {
        f"{part}.{bare(name)}": tensor
        for part in PARTS
        for name, tensor in getattr(model.pipe, part).state_dict().items()
    }


def private(model: DiffusersModel) -> DiffusersModel:
    """Return a copy that shares no weights, tokenizer or scheduler with the model.

    A method gets such a copy, so that it cannot change the base. (Other copies share the autoencoder.)
    """
    twin = model.copy()
    for name in ("vae", "tokenizer", "scheduler"):
        setattr(twin.pipe, name, deepcopy(getattr(model.pipe, name)))
    twin.source = model
    return twin


def check(base: DiffusersModel, erased: DiffusersModel) -> None:
    """Refuse an erased model that is not the base with other values of its weights.

    A delta holds values only: any other change would be lost, and the model would be judged without it.

    Raises:
        ContractError: Tensors, modules, hooks, settings, tokenizer or scheduler are not the base's.
    """
    if found := next(_unlike(base, erased), None):
        raise ContractError(f"{found}: {_ALLOWED}")


def diff(base: DiffusersModel, erased: DiffusersModel) -> Delta:
    """Return the delta from the base to the erased model; it is empty if the weights are equal.

    Values are not copied: they are the erased model's own, where they are.

    Raises:
        ContractError: As for :func:`check`, or a changed tensor is not finite.
    """
    check(base, erased)
    delta: Delta = {}
    before = weights(base)
    for name, after in weights(erased).items():
        old = before[name].to(after.device)
        if torch.equal(old, after):
            continue
        if not bool(torch.isfinite(after).all()):
            raise ContractError(
                f"the erased weights are not finite (nan or inf): {name}, "
                f"{int((~torch.isfinite(after)).sum())} of its {after.numel()} values"
            )
        changed = old != after
        if bool((after[changed] == 0).all()):
            flat = changed.flatten().cpu()
            indices = flat.nonzero().flatten().int()
            if 4 * len(indices) <= flat.numel() / 8:
                delta[f"{name}|zeros"] = indices
            else:
                delta[f"{name}|bits"] = torch.from_numpy(np.packbits(flat.numpy()))
        else:
            delta[f"{name}|value"] = after.detach()
    return delta


def _unlike(base: DiffusersModel, erased: DiffusersModel) -> Iterator[str]:
    """Yield in words each change of an erased model that a delta cannot hold."""
    for part in PARTS:
        yield from _unlike_tensors(part, getattr(base.pipe, part), getattr(erased.pipe, part))
    before, after = facts(base), facts(erased)
    for name in {**before, **after}:
        if before.get(name) != after.get(name):
            yield f"{name} is not the base's"


def _unlike_tensors(part: str, old: nn.Module, new: nn.Module) -> Iterator[str]:
    before, after = old.state_dict(), new.state_dict()
    if added := [name for name in after if name not in before]:
        lora = any("lora" in name.lower() for name in added)
        advice = " (fuse it first: pipe.fuse_lora(), pipe.unload_lora_weights())" if lora else ""
        yield f"{part} has {len(added)} tensors that the base lacks, first {added[0]}{advice}"
    if gone := [name for name in before if name not in after]:
        yield f"{part} lacks {len(gone)} tensors of the base, first {gone[0]}"
    for name, tensor in after.items():
        wanted, got = _form(before[name]), _form(tensor)
        if wanted != got:
            yield f"{part}.{name}: expected {wanted}, got {got}"


def _form(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def facts(model: DiffusersModel) -> dict[str, object]:
    """Return everything that decides what a model draws, except weights, guidance and screen.

    Keys are the names that messages use. Values do not change when the model does.
    """
    pipe = model.pipe
    found: dict[str, object] = {
        "the class or an attribute of the model": (type(model), *sorted(vars(model))),
        "the way of drawing": (model.world, model.sampling),
        "the noise schedule": _plain(vars(model.schedule)),
        "the scheduler": (type(pipe.scheduler), _settings(pipe.scheduler.config)),
        "the tokenizer": (
            type(pipe.tokenizer),
            pipe.tokenizer.model_max_length,
            pipe.tokenizer.get_vocab(),
        ),
    }
    for part in PARTS:
        whole = getattr(pipe, part)
        found[f"the configuration of {part}"] = _settings(whole.config)
        saved = whole.state_dict().keys()
        for name, tensor in whole.named_buffers():
            if name not in saved:
                found[f"the buffer {part}.{name}"] = _plain(tensor)
        for name, module in whole.named_modules():
            where = f"{part}.{name}".rstrip(".")
            found[f"the class of {where}"] = type(module)
            found[f"a hook of {where}"] = [len(getattr(module, hooks)) for hooks in _HOOKS]
            found[f"a setting or the code of {where}"] = {
                key: _plain(value)
                for key, value in vars(module).items()
                if not key.startswith("_") and key not in _HARMLESS
            }
    return found


def _plain(value: object) -> object:
    """Return plain data that is equal for equal values, and does not change when the value does."""
    match value:
        case bool() | int() | float() | str() | None:
            return value
        case list() | tuple():
            return [_plain(v) for v in value]
        case dict():
            return {str(k): _plain(v) for k, v in value.items()}
        case Tensor():
            return _form(value), value.tolist()
        case type() | FunctionType() | MethodType():
            return value.__module__, value.__qualname__
    parts = getattr(value, "__dict__", {}).items()
    return type(value), {k: _plain(v) for k, v in parts if isinstance(v, _SIMPLE)}


def _settings(config: Any) -> dict[str, object]:
    values = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    return {key: _plain(value) for key, value in values.items() if not key.startswith("_")}


def apply(model: DiffusersModel, delta: Delta) -> DiffusersModel:
    """Return a copy of the base model with a delta applied, cast to the model's type.

    Raises:
        StoreError: The delta was made for a model with other tensors, or is damaged.
    """
    erased = private(model) if _changes_vae(delta) else model.copy()
    tensors = weights(erased)
    _check_delta(delta, tensors)
    for key, value in delta.items():
        name, _, kind = key.rpartition("|")
        target = tensors[name]
        if kind == "value":
            target.copy_(value)
            continue
        if kind == "zeros":
            gone = torch.zeros(target.numel(), dtype=torch.bool)
            gone[value.long()] = True
        else:
            gone = torch.from_numpy(np.unpackbits(value.numpy(), count=target.numel())).bool()
        target.masked_fill_(gone.view(target.shape).to(target.device), 0)
    return erased


def _check_delta(delta: Delta, tensors: Delta) -> None:
    """Refuse a delta that does not fit a model's tensors as a whole."""
    seen: set[str] = set()
    for key, value in delta.items():
        name, _, kind = key.rpartition("|")
        target = tensors.get(name)
        if target is None:
            raise StoreError(f"the delta does not fit this model, which has no {name or key}")
        if name in seen:
            raise StoreError(f"the delta is damaged: it changes {name} twice")
        seen.add(name)
        if wrong := _misfit(kind, value, target):
            raise StoreError(f"the delta does not fit this model or is damaged: {key}: {wrong}")


def _misfit(kind: str, value: Tensor, target: Tensor) -> str:
    """Return what is wrong with one tensor of a delta, or an empty text."""
    size, got = target.numel(), _form(value)
    wrong = ""
    match kind:
        case "value":
            if target.shape != value.shape or not value.is_floating_point():
                wrong = f"expected {_form(target)}, got {got}"
            elif not bool(torch.isfinite(value).all()):
                wrong = "it is not finite"
        case "zeros":
            if value.dtype != torch.int32 or value.ndim != 1 or not len(value):
                wrong = f"expected indices, int32, got {got}"
            elif bool((value.diff() <= 0).any()) or not 0 <= int(value[0]) <= int(value[-1]) < size:
                wrong = f"expected rising indices from 0 to {size - 1}"
        case "bits":
            if value.dtype != torch.uint8 or value.shape != ((size + 7) // 8,):
                wrong = f"expected {size} bits in {(size + 7) // 8} bytes, got {got}"
            elif np.unpackbits(value.numpy())[size:].any():
                wrong = f"it has bits beyond {size}"
        case _:
            wrong = f"expected value, zeros or bits, got {kind!r}"
    return wrong


def revert(erased: DiffusersModel, delta: Delta, base: DiffusersModel) -> DiffusersModel:
    """Return a copy of an erased model without a delta, bit-equal to the model before it was applied.

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
    restored = private(erased) if _changes_vae(delta) else erased.copy()
    before = weights(base)
    tensors = weights(restored)
    for name in names:
        tensors[name].copy_(before[name])
    return restored


def _changes_vae(delta: Delta) -> bool:
    return any(key.startswith("vae.") for key in delta)


@dataclass(frozen=True, slots=True)
class Form:
    """The safetensors form of a delta, made tensor by tensor; the library's takes copies of all at once.

    Args:
        header: What a file begins with.
        tensors: What follows, and the types in which it is written.
    """

    header: bytes
    tensors: tuple[tuple[Tensor, torch.dtype], ...]

    @property
    def size(self) -> int:
        """Bytes of all pieces."""
        return len(self.header) + sum(t.numel() * dtype.itemsize for t, dtype in self.tensors)

    def pieces(self) -> Iterator[memoryview]:
        """Yield the bytes, one tensor at a time; equal deltas give equal bytes."""
        yield memoryview(self.header)
        for tensor, dtype in self.tensors:
            flat = tensor.detach().to("cpu", dtype).contiguous().flatten()
            yield flat.view(torch.uint8).numpy().data


def stored(delta: Delta) -> Form:
    """Return a delta's form in a file: in half precision where no value changes."""
    entries = {}
    for key, tensor in delta.items():
        half = _half(tensor) if key.endswith("|value") else None
        entries[f"{key.removesuffix('value')}half" if half else key] = tensor, half or tensor.dtype
    return _form_of(entries)


def _half(tensor: Tensor) -> torch.dtype | None:
    """Return the type of half precision that holds all of a tensor's values, if one does."""
    if tensor.dtype == torch.float32:
        for dtype in _HALVES:
            if torch.equal(tensor.to(dtype).float(), tensor):
                return dtype
    return None


def _form_of(entries: dict[str, tuple[Tensor, torch.dtype]]) -> Form:
    """Return the form of tensors, in the library's order: by type, then by name."""
    order = list(_CODES)
    rows = sorted(entries.items(), key=lambda row: (order.index(row[1][1]), row[0]))
    start, header = 0, {}
    for key, (tensor, dtype) in rows:
        end = start + tensor.numel() * dtype.itemsize
        header[key] = {
            "dtype": _CODES[dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(8 * math.ceil(len(text) / 8))
    return Form(len(text).to_bytes(8, "little") + text, tuple(entry for _, entry in rows))


def to_bytes(delta: Delta) -> bytes:
    """Return a delta's file as a whole."""
    return b"".join(stored(delta).pieces())


def from_bytes(data: bytes) -> Delta:
    """Return the delta of a file's bytes.

    Raises:
        StoreError: They are damaged.
    """
    try:
        found = load(data)
    except (SafetensorError, ValueError, KeyError) as exc:
        raise StoreError(f"it is not a readable safetensors file ({exc})") from exc
    delta: Delta = {}
    for key, tensor in found.items():
        name, _, kind = key.rpartition("|")
        small = kind == "half" and tensor.dtype in _HALVES
        whole = f"{name}|value" if small else key
        if whole in delta:
            raise StoreError(f"the delta is damaged: it changes {name} twice")
        delta[whole] = tensor.float() if small else tensor
    return delta


def from_file(path: Path) -> Delta:
    """Read a delta.

    Raises:
        StoreError: The file is damaged.
    """
    try:
        data = path.read_bytes()
        if data[8:9] != b"{":
            raise StoreError(f"it is not a readable safetensors file: it is {what_is(data[:64])}")
        return from_bytes(data)
    except (OSError, StoreError) as exc:
        raise StoreError(f"{path}: {exc}") from exc


def digest(delta: Delta) -> str:
    """Return a short digest of what changed, whatever types a file holds it in."""
    if not delta:
        return UNCHANGED
    total = hashlib.sha256()
    for piece in _form_of({key: (t, t.dtype) for key, t in delta.items()}).pieces():
        total.update(piece)
    return total.hexdigest()[:16]
