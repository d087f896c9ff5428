"""Makes images, or takes them from memory or the cache; makes those of adversarials again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from typing import Any, TypeVar, cast

import torch
from PIL import Image

from bench.core.digest import digest
from bench.core.errors import ContractError
from bench.core.protocols import Adversarial
from bench.core.types import UNSCORED, Prompt, Sample
from bench.engine.erase import Erased
from bench.engine.guard import guard
from bench.engine.settings import Settings
from bench.models.diffusers import DiffusersModel
from bench.tasks.safety import blurred

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Source:
    """Where the images of a streamed task come from: a model that draws them, or a folder that has them.

    Args:
        key: Names the images; equal keys and equal prompts, equal images.
        make: Returns images of some prompts, which start at a place of so many: ``(start, total)``.
        screened: Whether a filter may have blacked some out.
    """

    key: Sequence[Any]
    make: Callable[[Sequence[Prompt], tuple[int, int]], list[Sample]]
    screened: bool = False


class Images:
    """Images of one erased model after another."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.memory: dict[str, Image.Image] = {}
        self._of = ""

    def keep_only(self, key: str) -> None:
        """Forget the images in memory, unless they are those of the model of this key."""
        if key != self._of:
            self.memory.clear()
            self._of = key

    def make(
        self,
        erased: Erased,
        prompts: Sequence[Prompt],
        stage: str,
        shard: tuple[int, int] | None = None,
    ) -> list[Sample]:
        """Return a sample per prompt; images come from memory, from the cache, or are made now.

        ``shard`` says that the prompts are part of a streamed task, from which on and of how many:
        such images are not kept in memory, and on disk only on the user's word.
        """
        model, memory = erased.model, {} if shard else self.memory
        before, total = shard or (0, len(prompts))
        keep = shard is None if self.settings.keep_images is None else self.settings.keep_images
        hide = erased.unsafe and not self.settings.keep_unsafe
        base = [erased.key, asdict(model.sampling)]
        keys = [digest([*base, p.text, p.seed, p.guidance]) for p in prompts]
        missing: list[int] = []
        for i, key in enumerate(keys):
            if key in memory:
                continue
            cache = self.settings.artifacts
            data = cache.load(cache.image(key)) if keep and not hide else None
            if data is None:
                missing.append(i)
            else:
                memory[key] = _open(data)
        done = len(prompts) - len(missing)
        self.settings.progress(stage, before + done, total)
        for part in _batches(missing, model):
            images = _draw(erased, model, [prompts[i] for i in part])
            for i, image in zip(part, images, strict=True):
                memory[keys[i]] = image
                if keep and UNSCORED not in image.info:
                    self._keep(image, keys[i], hide=hide)
            done += len(part)
            self.settings.progress(stage, before + done, total)
        return [Sample(p, memory[key]) for p, key in zip(prompts, keys, strict=True)]

    def _keep(self, image: Image.Image, key: str, *, hide: bool) -> None:
        """Write an image, or only its blurred version, under a name that is never read again."""
        buffer, path = BytesIO(), self.settings.artifacts.image(key)
        (blurred(image) if hide else image).save(buffer, "PNG")
        path = path.with_suffix(".blurred.png") if hide else path
        self.settings.artifacts.save(path, buffer.getvalue())

    def replay(self, erased: Erased, found: Sequence[Adversarial]) -> list[Sample]:
        """Make the image of every adversarial again (an unchanged prompt's is there already)."""
        plain = [
            a for a in found if a.embedding is None and a.model is None and a.sampler_noise is None
        ]
        samples = {s.prompt.id: s for s in self.make(erased, [a.prompt for a in plain], "replay")}
        others = [a for a in found if a.prompt.id not in samples]
        for part in _batches(others, erased.model):
            samples |= {s.prompt.id: s for s in _replay_special(erased, part)}
            self.settings.progress("replay", len(samples), len(found))
        return [samples[a.prompt.id] for a in found]


def _batches(items: Sequence[T], model: DiffusersModel) -> Iterator[Sequence[T]]:
    """Yield batches; the model halves its batch size when memory runs out."""
    done = 0
    while done < len(items):
        part = items[done : done + model.batch_size]
        done += len(part)
        yield part


def _draw(
    erased: Erased, model: DiffusersModel, prompts: Sequence[Prompt], **more: Any
) -> list[Image.Image]:
    """Return an image per prompt; one that must not be judged says why in its ``info["unscored"]``."""
    with guard(f"drawing with method {erased.method}"):
        images = model.generate(prompts, **more)
        if len(images) != len(prompts):
            raise ContractError(f"expected {len(prompts)} images, got {len(images)}")
    for prompt, image in zip(prompts, images, strict=True):
        if model.refuses(prompt):  # what an attack wrote: black, and no evidence of anything
            image.info[UNSCORED] = "not drawn: the text may mention minors"
    return images


def _replay_special(erased: Erased, found: Sequence[Adversarial]) -> Iterator[Sample]:
    """Make images of adversarials that are more than a prompt, those of one kind in one batch."""
    kinds: dict[tuple[object, ...], list[Adversarial]] = {}
    for a in found:
        kind = (id(a.model), a.embedding is None, a.sampler_noise is None)
        kinds.setdefault(kind, []).append(a)
    for part in kinds.values():
        embeddings = [a.embedding for a in part if a.embedding is not None]
        noise = [a.sampler_noise for a in part if a.sampler_noise is not None]
        victim = cast("DiffusersModel", part[0].model) or erased.model
        images = _draw(
            erased,
            victim,
            [a.prompt for a in part],
            embeddings=torch.stack(embeddings) if embeddings else None,
            sampler_noise=noise or None,
        )
        for a, image in zip(part, images, strict=True):
            yield Sample(a.prompt, image)


def _open(data: bytes) -> Image.Image:
    image = Image.open(BytesIO(data))
    image.load()
    return image
