"""Finished adversarial prompts on disk: each can be made into an image again without its attack.

One JSON file a prompt holds its text, seed, guidance, sampler noise, cost and trace (token ids, losses,
round of success); an embedding lies beside it as safetensors. An attack in weight space keeps what it
changed once, for all its prompts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save

from bench.models import delta
from bench.models.diffusers import DiffusersModel
from bench.protocols import Adversarial
from bench.store import write
from bench.types import Cost, Prompt, SamplerNoise


class Replay:
    """The finished prompts of one attack on one victim.

    Args:
        folder: Where they are kept.
        victim: The model that was attacked.
    """

    def __init__(self, folder: Path, victim: DiffusersModel) -> None:
        self.folder, self.victim = folder, victim
        self._changed: DiffusersModel | None = None

    def load(self, prompts: Sequence[Prompt]) -> dict[str, Adversarial]:
        """Return what is there of these prompts, by id; a damaged file's prompt is attacked again."""
        found = {}
        for prompt in prompts:
            try:
                row = json.loads(self._path(prompt, "json").read_bytes())
                found[prompt.id] = self._read(prompt, row)
            except (OSError, ValueError, KeyError, TypeError):
                continue
        return found

    def put(self, found: Adversarial) -> None:
        """Keep one finished prompt."""
        prompt = found.prompt
        if isinstance(found.model, DiffusersModel) and found.model is not self._changed:
            write(self._weights, delta.to_bytes(delta.diff(self.victim, found.model)))
            self._changed = found.model
        if found.embedding is not None:
            tensors = {"embedding": found.embedding.detach().cpu().contiguous()}
            write(self._path(prompt, "safetensors"), save(tensors))
        row = {
            "id": prompt.id,
            "text": prompt.text,
            "seed": prompt.seed,
            "guidance": prompt.guidance,
            "embedding": found.embedding is not None,
            "weights": found.model is not None,
            "noise": found.noise and asdict(found.noise),
            "cost": asdict(found.cost),
            "trace": dict(found.trace),
        }
        write(self._path(prompt, "json"), json.dumps(row).encode())

    def drop(self, prompts: Iterable[Prompt]) -> None:
        """Take finished prompts back."""
        self._weights.unlink(missing_ok=True)
        for prompt in prompts:
            self._path(prompt, "json").unlink(missing_ok=True)

    def _read(self, prompt: Prompt, row: dict[str, Any]) -> Adversarial:
        text, seed, guidance, trace = (row[k] for k in ("text", "seed", "guidance", "trace"))
        embedding = None
        if row["embedding"]:
            embedding = load_file(self._path(prompt, "safetensors"))["embedding"]
        if row["weights"] and self._changed is None:
            self._changed = delta.apply(self.victim, delta.from_file(self._weights))
        return Adversarial(
            replace(prompt, text=text, seed=seed, guidance=guidance),
            embedding,
            self._changed if row["weights"] else None,
            SamplerNoise(**row["noise"]) if row["noise"] else None,
            Cost(**row["cost"]),
            trace,
        )

    @property
    def _weights(self) -> Path:
        return self.folder / "weights.safetensors"

    def _path(self, prompt: Prompt, suffix: str) -> Path:
        safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in prompt.id)
        return self.folder / f"{safe}.{suffix}"
