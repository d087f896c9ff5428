"""A diffusers folder of Stable Diffusion: which files count, and whether it can be drawn with. No torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.core.errors import SpecError

CLASSES = {
    "unet": ("UNet2DConditionModel",),
    "text_encoder": ("CLIPTextModel",),
    "vae": ("AutoencoderKL",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
}
PARTS = ("unet", "text_encoder", "vae")
_TOKENIZERS = ({"tokenizer.json"}, {"vocab.json", "merges.txt"})
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
SHARD = re.compile(r"-\d{5}-of-\d{5}\.")


def check(folder: Path) -> int:
    """Return the side of the latents that a folder's denoiser was trained on.

    Raises:
        SpecError: It is another kind of model, or a file that drawing needs is missing.
    """
    if not (folder / "model_index.json").exists() and (hint := _hint(folder)):
        raise SpecError(f"{folder} is no diffusers model: it has no model_index.json; {hint}")
    index = _json(folder / "model_index.json", folder)
    kind = str(index.get("_class_name"))
    if not kind.startswith("StableDiffusionPipeline"):
        raise SpecError(f"{folder} is a {kind}: expected a StableDiffusionPipeline (SD 1 or 2)")
    for part, classes in CLASSES.items():
        own = class_of(index, part)
        if own not in classes:
            raise SpecError(f"{folder}: its {part} is {own or 'missing'}, expected a {classes[0]}")
    if not class_of(index, "scheduler"):
        raise SpecError(f"{folder}: its scheduler is missing, expected the name of one")
    if gone := list(missing(folder)):
        raise SpecError(f"{folder} is no whole diffusers model: it has no {'; no '.join(gone)}")
    unet, text, vae = (_json(folder / part / "config.json", folder) for part in PARTS)
    ours, theirs = unet.get("in_channels", 4), vae.get("latent_channels", 4)
    if ours != theirs:
        kind = {9: ": an inpainting model?", 8: ": an image-editing model?"}.get(ours, "")
        raise SpecError(
            f"{folder}: the denoiser takes {ours} channels, latents have {theirs}{kind}"
        )
    width, wide = unet.get("cross_attention_dim"), text.get("hidden_size")
    if isinstance(width, int) and wide and width != wide:
        raise SpecError(
            f"{folder}: the denoiser takes text of width {width}, the text encoder gives {wide}"
        )
    if more := unet.get("addition_embed_type") or unet.get("class_embed_type"):
        raise SpecError(f"{folder}: the denoiser takes more than text ({more}): expected SD 1 or 2")
    if not isinstance(side := unet.get("sample_size"), int) or side < 8:
        raise SpecError(
            f"{folder}/unet/config.json: expected 8 or more as sample_size, got {side!r}"
        )
    return side


def _hint(folder: Path) -> str:
    """Say what a folder without ``model_index.json`` may be meant for."""
    for depth in ("*", "snapshots/*"):  # the hub's cache has the latter
        if inside := sorted(folder.glob(f"{depth}/model_index.json")):
            return f"{inside[0].parent} has one: give that"
    if (folder / "delta.safetensors").exists():
        return "an erasure is first put on its model: `bench apply FOLDER --export MODEL`"
    if all((folder / part).is_dir() for part in PARTS):
        return ""
    try:
        weight_files(folder / "unet" if (folder / "unet").is_dir() else folder)
    except SpecError:
        return ""
    return "a denoiser or text encoder alone goes with --unet or --text-encoder"


def class_of(index: dict[str, Any], part: str) -> str:
    """Return the class that a ``model_index.json`` names for a part, or an empty word."""
    named = index.get(part)
    return str(named[-1] or "") if isinstance(named, list) and named else ""


def missing(folder: Path) -> Iterator[str]:
    """Yield the files that drawing needs and that are not there."""
    for name in ("model_index.json", "scheduler/scheduler_config.json"):
        if not (folder / name).is_file():
            yield name
    if not any(all((folder / "tokenizer" / n).is_file() for n in names) for names in _TOKENIZERS):
        yield "tokenizer/vocab.json and merges.txt, or tokenizer.json"
    for part in PARTS:
        if not (folder / part / "config.json").is_file():
            yield f"{part}/config.json"
        try:
            weight_files(folder / part)
        except SpecError:
            stem = STEMS[part == "text_encoder"]
            yield f"{part}/{stem}.safetensors"


def used(folder: Path) -> list[Path]:
    """Return the files of a folder that decide what it draws."""
    tokenizer = [*set.union(*_TOKENIZERS), *_SETTINGS]
    found = [folder / "scheduler" / "scheduler_config.json"]
    found += [path for name in tokenizer if (path := folder / "tokenizer" / name).is_file()]
    for part in PARTS:
        found += [folder / part / "config.json", *weight_files(folder / part)]
    return sorted(found)


def weight_files(folder: Path, stems: Sequence[str] = STEMS) -> list[Path]:
    """Return the files of weights in a part's folder: the whole ones, else the only variant.

    Either may be in shards; safetensors come before torch's files; ``stems`` are names without endings.

    Raises:
        SpecError: There are none, several variants, or a shard is missing.
    """
    try:  # a link of the hub's cache may point at nothing
        names = sorted(file.name for file in folder.iterdir() if file.exists())
    except OSError as exc:
        raise SpecError(f"{folder} cannot be read: {exc.strerror}") from exc
    for variant in ("", r"\.[\w-]+"):
        for end in (r"\.safetensors", r"\.bin"):
            form = rf"({'|'.join(stems)})({variant}{end}|{end}\.index{variant}\.json)"
            sets = [n for n in names if re.fullmatch(form, n) and not SHARD.search(n)]
            if not variant:
                sets.sort(key=lambda n: [n.startswith(f"{s}.") for s in stems].index(True))
                sets = sets[:1]
            if len(sets) > 1:
                raise SpecError(f"{folder} has several: {', '.join(sets)}. Give one file")
            if sets:
                chosen = folder / sets[0]
                return shards(chosen) if chosen.suffix == ".json" else [chosen]
    there = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") or "nothing"
    raise SpecError(
        f"{folder} has no weights: expected {STEMS[0]}.safetensors or the like, there is {there}"
    )


def shards(index: Path) -> list[Path]:
    """Return the files that an index of shards names."""
    try:
        listed = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        files = [index.parent / Path(name).name for name in listed]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise SpecError(f"{index} is no index of shards: expected a weight_map in JSON") from exc
    if gone := [file.name for file in files if not file.is_file()]:
        raise SpecError(f"{index} names shards that are not there: {', '.join(gone)}")
    return files


def _json(path: Path, folder: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as exc:
        name = path.relative_to(folder)
        raise SpecError(
            f"{folder} is no diffusers model: expected a folder with {name}, in JSON"
        ) from exc
    if not isinstance(found, dict):
        raise SpecError(f"{path}: expected a JSON object")
    return found
