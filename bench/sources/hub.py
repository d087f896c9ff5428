"""Hugging Face's hub: what its cache holds, and fetching.

A source is ``hub:owner/name`` for a model or ``hub-dataset:owner/name``, with or without ``/file`` and
``@revision``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from bench.core.errors import AssetError, SpecError

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
    """Return what the hub's client has kept, or one file of it, without asking the network.

    A repository's folder may be there in part: :func:`lacks` says what is not.
    """
    from huggingface_hub import snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import LocalEntryNotFoundError

    if name := file or source.file:
        found = try_to_load_from_cache(filename=name, **source.where)
        return Path(found) if isinstance(found, str) and Path(found).exists() else None
    none = ["-"]  # newer releases ask for every file that is allowed, without patterns for all
    try:
        return Path(snapshot_download(local_files_only=True, allow_patterns=none, **source.where))
    except LocalEntryNotFoundError:
        return None


def lacks(folder: Path, files: Sequence[str]) -> list[str]:
    """Return which files a folder lacks.

    Args:
        folder: Where they should be.
        files: Names or patterns; of ``"a|b"`` one must be there.

    Raises:
        OSError: The folder cannot be read.
    """
    return [
        names
        for names in files
        if not any(found.is_file() for name in names.split("|") for found in folder.glob(name))
    ]


def fetch(source: HubSource, files: Sequence[str] = (), *, needed: Sequence[str] = ()) -> Path:
    """Fetch a repository, or its files of these patterns, or a single one; return the local path.

    Args:
        source: What is fetched.
        files: Patterns of files that are fetched if the repository has them.
        needed: Names or patterns of files that it must have; of ``"a|b"`` the first that it has.

    Raises:
        AssetError: It cannot be reached, or there is no such thing.
    """
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # its retries are no news: the error below has the reason
    try:
        if source.file:
            return Path(hf_hub_download(filename=source.file, **source.where))
        patterns = [*_chosen(source, needed), *files]
        return Path(snapshot_download(allow_patterns=patterns or None, **source.where))
    except AssetError:
        raise
    except Exception as exc:  # of the client or of its HTTP library, which releases change
        raise AssetError(
            f"cannot fetch {source.repo} from the hub: {_reason(source, exc)}"
        ) from exc


def _chosen(source: HubSource, needed: Sequence[str]) -> list[str]:
    """Return of each "a|b" the pattern that is fetched: weights come in several formats."""
    if not needed:
        return []
    from huggingface_hub import HfApi

    there = HfApi().list_repo_files(source.repo, repo_type=source.kind, revision=source.revision)
    chosen = []
    for names in needed:
        found = [name for name in names.split("|") if any(fnmatch(file, name) for file in there)]
        if not found:
            raise AssetError(f"{source.repo} on the hub has no {names.replace('|', ' or ')}")
        chosen.append(found[0])
    return chosen


def _reason(source: HubSource, exc: Exception) -> str:
    """Say why the hub gave nothing, and what to do."""
    from huggingface_hub import errors

    page = f"https://huggingface.co/{'datasets/' * (source.kind == 'dataset')}{source.repo}"
    login = "log in with `hf auth login` or set HF_TOKEN"
    match exc:
        case errors.GatedRepoError():
            return f"it is gated: accept its licence at {page}, {login}, and fetch it again"
        case errors.RepositoryNotFoundError():
            return f"there is no such repository, or it is private: see {page}, or {login}"
        case errors.RevisionNotFoundError():
            return f"it has no revision {source.revision}: see {page}"
        case errors.LocalEntryNotFoundError() | errors.OfflineModeIsEnabled():
            pass  # no answer: the client's own words say which switch is set
        case errors.EntryNotFoundError():
            return f"it has no file {source.file}: see {page}"
    if getattr(getattr(exc, "response", None), "status_code", 0) in {401, 403}:
        return f"access is refused: accept its licence at {page}, {login}, and fetch it again"
    return str(exc).strip().partition("\n")[0].partition(". ")[0] or type(exc).__name__
