"""How cells are computed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.core.digest import digest
from bench.core.types import Context
from bench.sources.assets import finder
from bench.store.artifacts import Artifacts

if TYPE_CHECKING:
    from torch import Tensor

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Settings:
    """How cells are computed. Nothing here changes a result by more than rounding.

    Args:
        device: Where tensors live.
        batch_size: Images made or attacked at once.
        keep_images: Keep images on disk; ``None``: all but those of streamed tasks.
        keep_unsafe: Keep images of photographs for an nsfw concept as they are; else blurred only.
        artifacts: The cache.
        assets: The user's paths of assets.
        progress: Called as ``progress(stage, done, total)``.
        shard: Images of a streamed task that are held at once.
        recompute: Let passes with gradients keep few activations and compute them again (gradient
            checkpointing); ``None``: where memory is short.
        compiled: Draw and attack with a compiled denoiser.
        split: A cell's prompts that are attacked as one part, so that workers can share them; 0: all. How
            a cell is split decides the last bits, not who takes which part.
    """

    device: str = "cpu"
    batch_size: int = 64
    keep_images: bool | None = None
    keep_unsafe: bool = False
    artifacts: Artifacts = field(default_factory=Artifacts)
    assets: Mapping[str, Path] = field(default_factory=dict)
    progress: Progress = lambda stage, done, total: None
    shard: int = 256
    recompute: bool | None = None
    compiled: bool = False
    split: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return what another process needs to attack with the same settings."""
        return {
            "device": self.device,
            "batch_size": self.batch_size,
            "cache": str(self.artifacts.root),
            "since": self.artifacts.since,
            "compiled": self.compiled,
            "assets": {name: str(path) for name, path in self.assets.items()},
        }

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Settings:
        """Return settings that :meth:`to_json` wrote."""
        return cls(
            raw["device"],
            raw["batch_size"],
            artifacts=Artifacts(Path(raw["cache"]), raw["since"]),
            compiled=raw["compiled"],
            assets={name: Path(path) for name, path in raw["assets"].items()},
        )

    def context(self, key: str, shared: str) -> Context:
        """Return what a plug-in may use in the stage of that name; ``shared`` names what others use too."""
        own, common = self.artifacts.work(key), self.artifacts.work(shared)
        self.artifacts.drop_older(own)

        def keep(
            name: str, make: Callable[[], dict[str, Tensor]], *, shared: bool = False
        ) -> dict[str, Tensor]:
            from safetensors.torch import load, save

            path = (common if shared else own) / f"{name}.safetensors"
            alone = (
                self.artifacts.lock(digest([common.name, name]), name) if shared else nullcontext()
            )
            with alone:
                data = self.artifacts.keep(path, lambda: save(tensors(make())))
            return {name: tensor.to(self.device) for name, tensor in load(data).items()}

        return Context(
            key,
            self.device,
            own,
            self.batch_size,
            self.progress,
            finder(self.assets),
            keep,
            shared,
        )


def tensors(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors as a file takes them."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in found.items()}


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add the seconds of a block to a stage's."""
    start = time.perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start
