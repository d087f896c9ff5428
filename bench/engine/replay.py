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

from safetensors.torch import load, save

from bench.core.protocols import Adversarial
from bench.core.types import Cost, Prompt, SamplerNoise
from bench.models import delta
from bench.models.diffusers import DiffusersModel
from bench.store.artifacts import Artifacts
from bench.store.record import Row


class Replay:
    """The finished prompts of one attack on one victim.

    Args:
        cache: Where they are kept.
        key: The attack's.
        victim: The model that was attacked.
    """

    def __init__(self, cache: Artifacts, key: str, victim: DiffusersModel) -> None:
        self.cache, self.key, self.victim = cache, key, victim
        self._changed: DiffusersModel | None = None

    def load(self, prompts: Sequence[Prompt]) -> dict[str, Adversarial]:
        """Return the finished ones of these prompts by id; one that lacks a part is unfinished."""
        found = {}
        for prompt in prompts:
            data = self.cache.load(self.path(prompt))
            adversarial = data and self._read(prompt, json.loads(data))
            if adversarial:
                found[prompt.id] = adversarial
        return found

    def put(self, found: Adversarial) -> None:
        """Keep one finished prompt."""
        prompt, path = found.prompt, self.path(found.prompt)
        if isinstance(found.model, DiffusersModel) and found.model is not self._changed:
            change = delta.diff(self.victim, found.model)
            self.cache.save_parts(self._weights, delta.stored(change).pieces())
            self._changed = found.model
        if found.embedding is not None:
            tensors = {"embedding": found.embedding.detach().cpu().contiguous()}
            self.cache.save(path.with_suffix(".safetensors"), save(tensors))
        row = {
            "id": prompt.id,
            "text": prompt.text,
            "seed": prompt.seed,
            "guidance": prompt.guidance,
            "embedding": found.embedding is not None,
            "weights": found.model is not None,
            "noise": found.sampler_noise and asdict(found.sampler_noise),
            "cost": asdict(found.cost),
            "trace": dict(found.trace),
        }
        self.cache.save(path, json.dumps(row).encode())

    def drop(self, prompts: Iterable[Prompt]) -> None:
        """Delete finished prompts."""
        self._weights.unlink(missing_ok=True)
        for prompt in prompts:
            self.path(prompt).unlink(missing_ok=True)

    def path(self, prompt: Prompt) -> Path:
        """Return the file of a finished prompt."""
        return self.cache.attack(self.key, prompt.id)

    def _read(self, prompt: Prompt, row: dict[str, Any]) -> Adversarial | None:
        text, seed, guidance, trace = (row[k] for k in ("text", "seed", "guidance", "trace"))
        embedding = None
        if row["embedding"]:
            data = self.cache.load(self.path(prompt).with_suffix(".safetensors"))
            if data is None:
                return None
            embedding = load(data)["embedding"]
        if row["weights"] and self._changed is None:
            data = self.cache.load(self._weights)
            if data is None:
                return None
            self._changed = delta.apply(self.victim, delta.from_bytes(data))
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
        return self.cache.root / "attacks" / self.key / "weights.safetensors"


def of_row(prompt: Prompt, row: Row) -> Adversarial:
    """Return what an attack found as a record's row says it; without an attack, the prompt itself."""
    text, seed, guidance = row.adversarial, row.adversarial_seed, row.adversarial_guidance
    found = replace(
        prompt,
        text=prompt.text if text is None else text,
        seed=prompt.seed if seed is None else seed,
        guidance=prompt.guidance if guidance is None else guidance,
    )
    return Adversarial(found, sampler_noise=row.adversarial_noise)
