"""What models, judges and prompt sets need from elsewhere: whether it is here, and how to get it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.core.errors import AssetError, PluginLoadError, UnknownNameError
from bench.core.types import World
from bench.sources.assets import OPTIONAL, Asset, asset_names, asset_of, find, locate
from bench.sources.catalog import HUB_FILES, MODELS, ModelInfo, model_info, snapshot
from bench.sources.hub import HubSource, cached, hub_source
from bench.sources.hub import fetch as fetch_hub
from bench.tasks.entries import Entry
from bench.tasks.lookup import home
from bench.tasks.protocol import ProtocolName
from bench.tasks.tasks import needs


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that is not shipped.

    Args:
        name: The asset's, or the model's.
        asset: What it is and where it comes from.
        flag: The option that takes a copy of one's own.
        path: Where it is, whole; ``None`` if it is not here.
        partly: It is here in part, as after a download that was stopped.
    """

    name: str
    asset: Asset
    flag: str
    path: Path | None
    partly: bool = False

    def facts(self) -> dict[str, str | int]:
        """Return what is known of it, as plain values."""
        return {
            "name": self.name,
            "here": "yes" if self.path else "in part" if self.partly else "no",
            "path": str(self.path or ""),
            "size_mb": self.asset.size,
            "licence": self.asset.licence,
            "about": self.asset.about,
            "source": self.asset.source,
            "flag": self.flag,
        }


def inventory(
    given: Mapping[str, Path],
    model: str | None = None,
    tasks: Sequence[str | Entry] = (),
    world: World | None = None,
    protocol: ProtocolName = "default",
) -> Iterator[Item]:
    """Yield what is needed by everything, or by one model and some tasks.

    Args:
        given: Local paths of assets.
        model: This base model only.
        tasks: What these tasks need only.
        world: Where the tasks are looked for: the model's by default; without a model the only one that has
            a task, or else "photo".
        protocol: What the tasks need as shipped, or as their papers do.

    Raises:
        UnknownNameError: There is no such model or task.
        SpecError: A given path is not what was expected.
    """
    for name in [model] if model else [] if tasks else MODELS:
        if item := _model(name):
            yield item
    if tasks:
        place = model_info(model, world).world if model else world
        found = [
            name
            for task in tasks
            for name in needs(task, place or home(task, "photo"), protocol=protocol)
        ]
        names = [name for either in found for name in either.split("|")]
    else:
        names = [] if model else asset_names()
    for name in dict.fromkeys(names):
        yield _asset(name, given, broken=not tasks)


def _asset(name: str, given: Mapping[str, Path], *, broken: bool) -> Item:
    """Return an asset and where it is; ``broken``: list one that cannot be loaded, with the cause."""
    try:
        asset = asset_of(name)
    except PluginLoadError as exc:
        if not broken:
            raise
        return Item(name, Asset(f"[broken] {exc}", "another distribution"), "", None)
    path, gone = (locate(name, given), []) if name in given else find(asset)
    flag = f"--asset {name}={asset.form.upper()}"
    return Item(name, asset, flag, None if gone else path, bool(gone))


def fetch(name: str) -> Path:
    """Fetch a model or an asset from the hub; return where it is.

    Raises:
        UnknownNameError: There is neither a model nor an asset of this name.
        AssetError: It is not on the hub, or the hub cannot be reached.
    """
    asset, source = fetchable(name)
    if name in MODELS:
        return fetch_hub(source, HUB_FILES)
    return fetch_hub(source, OPTIONAL if asset.files else (), needed=asset.files)


def fetchable(name: str) -> tuple[Asset, HubSource]:
    """Return what a model or an asset is, and where it is on the hub.

    Raises:
        UnknownNameError: There is neither a model nor an asset of this name.
        AssetError: It is not on the hub.
    """
    item = _model(name) if name in MODELS else None
    if item is None and name not in (known := asset_names()):
        raise UnknownNameError("asset", name, [*known, *filter(_model, MODELS)])
    asset = item.asset if item else asset_of(name)
    if source := hub_source(asset.source):
        return asset, source
    raise AssetError(
        f"{name} is not on the hub: get it from {asset.source} ({asset.about}), "
        f"then give --asset {name}=/path/to/{asset.form}"
    )


def _model(name: str) -> Item | None:
    """Return a base model that is not shipped."""
    info: ModelInfo = model_info(name)
    source = hub_source(info.source)
    if source is None:
        return None
    asset = Asset(info.about, info.source, info.size, info.licence, "folder")
    whole, part = snapshot(source), cached(source, "model_index.json")
    return Item(name, asset, "--model FOLDER", whole, bool(part and not whole))
