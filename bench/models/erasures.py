"""Puts a saved erasure on a model, takes it back, and exports models.

A saved erasure is ``delta.safetensors`` and ``card.json``: anybody with the base model can use it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from bench.core.errors import SpecError, StoreError
from bench.models import DiffusersModel, delta, load_model, save_folder
from bench.sources.catalog import revision
from bench.sources.folders import PARTS


def applied(path: Path, model: str, *, force: bool = False) -> DiffusersModel:
    """Return a model with a saved erasure applied to it.

    Args:
        path: The delta, or its folder.
        model: The base model, as :func:`bench.sources.catalog.model_info` takes it.
        force: Apply it even if the card does not say that it was made for this model.

    Raises:
        SpecError: The erasure changes no weights, or was made for another model.
        StoreError: There is no such erasure, it is damaged, or it does not fit the model.
    """
    change = _read(path, model, "--model", force=force)
    return delta.apply(load_model(model), change)


def reverted(path: Path, model: str, base: str, *, force: bool = False) -> DiffusersModel:
    """Return an erased model without its erasure, bit-equal to the base.

    Raises:
        SpecError, StoreError: As for :func:`applied`, or the model is not the base with this erasure.
    """
    change = _read(path, base, "--base", force=force)
    return delta.revert(load_model(model), change, load_model(base))


def check_export(folder: Path) -> None:
    """Refuse a folder that a model cannot be written to, before anything is computed.

    Raises:
        SpecError: It is a file, or a folder that is not empty.
    """
    try:
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return
    except OSError as exc:
        raise SpecError(f"--export {folder} cannot be used: {exc.strerror}") from exc
    what = "holds files" if folder.is_dir() else "is a file"
    raise SpecError(f"--export {folder} {what}: expected a new or an empty folder")


def export(model: DiffusersModel, folder: Path) -> None:
    """Write a model as a diffusers folder, whole or not at all.

    Raises:
        SpecError: As :func:`check_export`.
        StoreError: It cannot be written.
    """
    check_export(folder)
    _write(model.pipe, folder)


def kept(pipe: Any, folder: Path) -> Path:
    """Return where a pipeline in memory is kept, written there if it is not yet: its weights name it.

    Raises:
        StoreError: It cannot be written.
    """
    schedule = {k: v for k, v in pipe.scheduler.config.items() if not k.startswith("_")}
    total = hashlib.sha256(repr(sorted(schedule.items())).encode())
    for part in PARTS:
        for name, tensor in sorted(getattr(pipe, part).state_dict().items()):
            total.update(f"{part} {name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    place = folder / total.hexdigest()[:16]
    if not place.exists():
        _write(pipe, place)
    return place


def _write(pipe: Any, folder: Path) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as draft:
            whole = Path(draft, "model")
            save_folder(pipe, whole)
            whole.replace(folder)
    except OSError as exc:
        raise StoreError(f"cannot write {folder}: {exc.strerror or exc}") from exc


def _read(path: Path, model: str, flag: str, *, force: bool) -> delta.Delta:
    """Return a delta whose card describes it and the model."""
    file = path / "delta.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise StoreError(f"there is no delta at {file}: give what `bench erase --out` wrote")
    change = delta.from_file(file)
    card = _card(file.with_name("card.json"))
    if card:
        _check_card(file, card, change)
    if not change:
        raise SpecError(f"{file} is empty: it changes no weight, so there is nothing to apply")
    if force:
        return change
    if not card:
        raise SpecError(
            f"{file} has no card.json beside it, which says for which model it is: "
            f"give --force to use it on {model}"
        )
    made_for, at = card["base"]["model"], card["base"]["revision"].partition("@")[0]
    if (got := revision(model)) != at:
        raise SpecError(
            f"{file} was made for {made_for} at {at}, {model} is at {got}: "
            f"give {flag} {made_for}, or --force to use it all the same"
        )
    return change


def _check_card(file: Path, card: dict[str, Any], change: delta.Delta) -> None:
    if card["sampler_time"]:
        raise SpecError(
            f"{file}: {card['method']['name']} changes how images are sampled, no weights: "
            "nothing to apply"
        )
    if (got := delta.digest(change)) != card["digest"]:
        raise StoreError(
            f"{file} is not what its card describes: expected digest {card['digest']}, got {got}"
        )


def _card(path: Path) -> dict[str, Any]:
    """Return a card's content, empty if there is no card."""
    if not path.exists():
        return {}
    try:
        card = json.loads(path.read_bytes())
        kinds = {"digest": str, "sampler_time": bool, "base": dict, "method": dict}
        texts = [card["base"]["model"], card["base"]["revision"], card["method"]["name"]]
        good = all(isinstance(card[key], kind) for key, kind in kinds.items())
        if not good or not all(isinstance(text, str) for text in texts):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as exc:
        raise StoreError(
            f"{path} is no card of an erasure: expected what `bench erase --out` wrote"
        ) from exc
    return dict(card)
