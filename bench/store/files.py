"""Writes files so that no reader sees half a file, even if the process is killed."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable
from pathlib import Path

from bench.core.errors import StoreError


def write(path: Path, *parts: bytes) -> None:
    """Write a file, whole or not at all.

    Raises:
        StoreError: The folder cannot be written.
    """
    write_parts(path, parts)


def write_parts(
    path: Path, parts: Iterable[bytes | memoryview], *, named: Path | None = None
) -> None:
    """Write a file whose parts are made while it is written, whole or not at all.

    Args:
        path: The file.
        parts: Of its content.
        named: What an error names in place of the file.

    Raises:
        StoreError: The folder cannot be written.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as stream:
            stream.writelines(parts)
        draft.replace(path)
    except OSError as exc:
        full = exc.errno in {errno.ENOSPC, errno.EDQUOT}
        advice = "free space there and give the same command again, or " if full else ""
        raise StoreError(
            f"cannot write {named or path}: {exc.strerror or exc}; {advice}choose another folder"
        ) from exc
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)  # if it is there still


def probe(folder: Path) -> None:
    """Write something and take it away again, the folder with it if it was not there.

    Raises:
        StoreError: Nothing can be written to the folder.
    """
    path = folder / f".{os.getpid()}.probe"
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    write_parts(path, [bytes(4096)], named=folder)
    path.unlink(missing_ok=True)
    for place in made:
        with contextlib.suppress(OSError):  # somebody else uses it by now
            place.rmdir()
