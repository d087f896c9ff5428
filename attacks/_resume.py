"""What a search has reached, kept on disk now and then, so that a killed one goes on from there.

A file holds the states of all prompts that a process works on at a time: a digest, values as JSON, tensors
as safetensors. It is replaced as a whole, and named by the attack's key and the process's prompts. A file
that is damaged, or of another attack, is as good as none.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import Adversarial, Context, Cost, Prompt

if TYPE_CHECKING:
    from torch import Tensor

PAUSE = 2.0
"""Seconds between two states."""
RATIO = 20
"""The pause is at least so many times what writing the last state took."""
_DIGEST = 32  # bytes


@dataclass(frozen=True)
class State:
    """Where the search for one prompt is.

    Args:
        steps: How far it is; of two states of a prompt the further one holds.
        values: What JSON can hold.
        tensors: The rest.
    """

    steps: int
    values: Mapping[str, Any]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


class Resume:
    """Keeps the states of a process's prompts.

    Args:
        ctx: Whose key names the attack, and whose ``workdir`` is used.
        ids: The prompts.
    """

    def __init__(self, ctx: Context, ids: Sequence[str]) -> None:
        self._key, self._ids = ctx.key, set(ids)
        self._folder = ctx.workdir / "states"
        name = sha256(json.dumps([ctx.key, *ids]).encode()).hexdigest()[:16]
        self._path = self._folder / f"{name}.state"
        self._old: list[Path] = []
        self._next = time.monotonic() + PAUSE

    def load(self) -> dict[str, State]:
        """Return the states that are there, by prompt."""
        found: dict[str, State] = {}
        for path in sorted(self._folder.glob("*.state")):
            states = _read(path, self._key)
            mine = [name for name in states if name in self._ids]  # in the batch's order
            if mine and {name for name in states if not finished(states[name])} <= self._ids:
                self._old.append(path)  # nobody else goes on from it: a newer one replaces it
            for name in mine:
                if name not in found or found[name].steps < states[name].steps:
                    found[name] = states[name]
        return found

    @property
    def due(self) -> bool:
        """Whether it is time to keep the states again."""
        return time.monotonic() >= self._next

    def keep(self, states: Mapping[str, State]) -> None:
        """Keep the states of prompts that are not finished; without any, keep nothing."""
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


def done(found: Adversarial) -> State:
    """Return the state of a prompt that is finished, a text; the harness may not have it yet."""
    row = {"prompt": asdict(found.prompt), "cost": asdict(found.cost), "trace": dict(found.trace)}
    return State(10**9, {"done": row})


def finished(state: State) -> Adversarial | None:
    """Return what :func:`done` has kept; nothing if the prompt is not finished."""
    row = state.values.get("done")
    return row and Adversarial(
        Prompt(**row["prompt"]), cost=Cost(**row["cost"]), trace=row["trace"]
    )


def _packed(key: str, states: Mapping[str, State]) -> bytes:
    from safetensors.torch import save

    rows = [{"id": n, "steps": s.steps, "values": dict(s.values)} for n, s in states.items()]
    head = json.dumps({"key": key, "rows": rows}).encode()
    tensors = {
        f"{i}|{name}": tensor.detach().cpu().contiguous().clone()
        for i, state in enumerate(states.values())
        for name, tensor in state.tensors.items()
    }
    body = len(head).to_bytes(8, "little") + head + save(tensors)
    return sha256(body).digest() + body


def _read(path: Path, key: str) -> dict[str, State]:
    """Return the states in a file; none if it is damaged or of another attack."""
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
            row["id"]: State(row["steps"], row["values"], tensors.get(i, {}))
            for i, row in enumerate(head["rows"])
        }
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return {}
