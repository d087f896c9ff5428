"""Hugging Face's hub: what its cache holds, and fetching.

A source is ``hub:owner/name`` for a model or ``hub-dataset:owner/name``, with or without ``/file`` and
``@revision``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bench.errors import AssetError, SpecError

_SOURCE = re.compile(r"hub(-dataset)?:([^/@]+/[^/@]+)(?:/([^@]+))?(?:@(.+))?")


@dataclass(frozen=True, slots=True)
class HubSource:
    """What a source names; without ``file`` it is the whole repository."""

    kind: Literal["model", "dataset"]
    repo: str
    file: str = ""
    revision: str | None = None

    @property
    def where(self) -> dict[str, Any]:
        """The client's arguments for the repository."""
        return {"repo_id": self.repo, "repo_type": self.kind, "revision": self.revision}


def hub_source(source: str) -> HubSource | None:
    """Return the parts of a hub source, or ``None`` if the source is something else.

    Raises:
        SpecError: It begins like a hub source but is none.
    """
    if not source.startswith(("hub:", "hub-dataset:")):
        return None
    if not (match := _SOURCE.fullmatch(source)):
        raise SpecError(f"expected hub:owner/name, with /file and @revision or not, got {source!r}")
    dataset, repo, file, revision = match.groups()
    return HubSource("dataset" if dataset else "model", repo, file or "", revision)


def cached(source: HubSource, file: str = "") -> Path | None:
    """Return what the hub's client has kept, or one file of it, without asking the network."""
    from huggingface_hub import snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import LocalEntryNotFoundError

    if name := file or source.file:
        found = try_to_load_from_cache(filename=name, **source.where)
        return Path(found) if isinstance(found, str) else None
    try:
        return Path(snapshot_download(local_files_only=True, **source.where))
    except LocalEntryNotFoundError:
        return None


def fetch(source: HubSource, files: tuple[str, ...] = ()) -> Path:
    """Fetch a repository, or its files of these patterns, or a single one; return the local path.

    Raises:
        AssetError: It cannot be reached, or there is no such thing.
    """
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # its retries are no news: the error below has the reason
    try:
        if source.file:
            return Path(hf_hub_download(filename=source.file, **source.where))
        return Path(snapshot_download(allow_patterns=list(files) or None, **source.where))
    except (OSError, ValueError, HfHubHTTPError) as exc:
        reason = str(exc).strip().partition("\n")[0].partition(". ")[0]
        raise AssetError(f"cannot fetch {source.repo} from the hub: {reason}") from exc
