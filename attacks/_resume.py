"""States of searches on disk, so that a search that was killed can resume.

One file holds the states of all prompts that a process works on: a digest, values as JSON, tensors as
safetensors. It is replaced as a whole. Its name comes from the attack's key and the process's prompts. A
file that is damaged or belongs to another attack is ignored.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import Context, digest

if TYPE_CHECKING:
    from torch import Tensor

PAUSE = 10.0
"""Seconds between two files, at least."""
RATIO = 20
"""The pause is at least this many times as long as writing the latest file took."""
_DIGEST = 32  # bytes


@dataclass(frozen=True)
class State:
    """State of the search for one prompt.

    Args:
        steps: Steps that were taken; if a prompt has two states, the one with more steps is used.
        values: JSON values.
        tensors: Tensors.
        done: Whether the search has ended.
    """

    steps: int
    values: Mapping[str, Any]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    done: bool = False


class Resume:
    """The states of a process's prompts.

    Args:
        ctx: Its key identifies the attack; files are in its ``workdir``.
        ids: Ids of the prompts.
    """

    def __init__(self, ctx: Context, ids: Sequence[str]) -> None:
        self._key, self._ids = ctx.key, set(ids)
        self._folder = ctx.workdir / "searches"
        self._path = self._folder / f"{digest([ctx.key, *ids])}.state"
        self._old: list[Path] = []
        self._next = time.monotonic() + PAUSE

    def load(self) -> dict[str, State]:
        """Return the states on disk, by prompt id, in the order in which they were kept."""
        found: dict[str, State] = {}
        for path in sorted(self._folder.glob("*.state")):
            states = _read(path, self._key)
            mine = [name for name in states if name in self._ids]
            if mine and {name for name in states if not states[name].done} <= self._ids:
                self._old.append(path)  # no other process needs it: the next file replaces it
            for name in mine:
                if name not in found or found[name].steps < states[name].steps:
                    found[name] = states[name]
        return found

    @property
    def due(self) -> bool:
        """Whether enough time has passed since the latest file."""
        return time.monotonic() >= self._next

    def keep(self, states: Mapping[str, State]) -> None:
        """Replace the states on disk; if there are none, delete the file."""
        start = time.monotonic()
        if states:
            self._folder.mkdir(parents=True, exist_ok=True)
            draft = self._path.with_suffix(".part")
            draft.write_bytes(_packed(self._key, states))
            draft.replace(self._path)
        else:
            self._path.unlink(missing_ok=True)
        for path in self._old:
            if path != self._path:
                path.unlink(missing_ok=True)
        self._old = []
        now = time.monotonic()
        self._next = now + max(PAUSE, RATIO * (now - start))


def _packed(key: str, states: Mapping[str, State]) -> bytes:
    from safetensors.torch import save

    rows = [[name, s.steps, dict(s.values), s.done] for name, s in states.items()]
    head = json.dumps({"key": key, "rows": rows}).encode()
    tensors = {
        f"{i}|{name}": tensor.detach().cpu().contiguous().clone()
        for i, state in enumerate(states.values())
        for name, tensor in state.tensors.items()
    }
    body = len(head).to_bytes(8, "little") + head + save(tensors)
    return sha256(body).digest() + body


def _read(path: Path, key: str) -> dict[str, State]:
    """Return the states in a file; none if it is damaged or belongs to another attack."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        data = path.read_bytes()
        body = data[_DIGEST:]
        if sha256(body).digest() != data[:_DIGEST]:
            return {}
        end = 8 + int.from_bytes(body[:8], "little")
        head = json.loads(body[8:end])
        if head["key"] != key:
            return {}
        tensors: dict[int, dict[str, Tensor]] = {}
        for name, tensor in load(body[end:]).items():
            place, _, part = name.partition("|")
            tensors.setdefault(int(place), {})[part] = tensor
        return {
            name: State(steps, values, tensors.get(i, {}), done)
            for i, (name, steps, values, done) in enumerate(head["rows"])
        }
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return {}
