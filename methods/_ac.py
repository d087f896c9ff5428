"""AC's data and objective, which AC and P-AC share (Kumari et al., arXiv 2303.13516)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from bench import (
    Batch,
    Concept,
    Context,
    Guidance,
    IncompatibleError,
    Model,
    PluginError,
    Prompt,
    Room,
    SpecError,
    digest,
    may_mention_minors,
)

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

ANCHORS = 200
GUIDANCE, SAMPLER, STEPS = 6.0, "dpm", 25  # how the published code draws the anchors
_ERASED = {
    "nudity": "nudity, nsfw"
}  # the name in the published commands, for a concept without terms

_FORMS = (
    "a photo of {x}", "a picture of {x}", "an image of {x}", "{x}", "a close up of {x}",
    "a bright photo of {x}", "an old photo of {x}", "a snapshot of {x}", "a photograph of {x}",
    "a realistic photo of {x}",
)  # fmt: skip
_PAINTINGS = ("a painting of {x}", "a picture of {x}", "an artwork with {x}", "a canvas with {x}")
_PLACES = (
    "on the beach", "in the sky", "in the forest", "at night", "in the snow", "in the city",
    "in a field", "in the desert", "by the sea", "in the mountains", "in winter", "at noon",
    "in the evening", "in spring", "in autumn", "on a sunny day", "on the grass", "in a meadow",
    "in the morning", "in the woods",
)  # fmt: skip
_MOTIFS = (
    "a cat", "a horse", "a car", "a house", "a castle", "a rose", "a sunflower", "an apple", "a guitar",
    "a crown", "a rocket", "a penguin",
)  # fmt: skip
_GROUPS = ("people", "a woman", "a man", "a body", "a couple", "a dancer", "a nurse", "a swimmer")


@dataclass(frozen=True, slots=True)
class Example:
    """A picture of an anchor, its prompt, and the phrase that is erased with it."""

    image: Picture
    text: str
    anchor: str
    phrase: str


def erased_phrases(concept: Concept) -> dict[str, list[str]]:
    """Return the erased phrases of each anchor.

    Raises:
        IncompatibleError: A phrase has no anchor, or is its own anchor.
    """
    names = concept.terms or (_ERASED.get(concept.name, concept.name),)
    phrases: dict[str, list[str]] = {}
    for name, anchor in zip(names, concept.anchors, strict=True):
        if not anchor:
            raise IncompatibleError(
                f"{name!r} has no anchor, the concept that replaces it: give --anchor"
            )
        if anchor in {name, concept.name}:
            raise IncompatibleError(f"the anchor of {name!r} is the concept itself: choose another")
        phrases.setdefault(anchor, []).append(name)
    return phrases


def anchor_prompts(anchor: str, kind: str, n: int = ANCHORS) -> list[str]:
    """Return this project's prompts for an anchor."""
    motifs: Sequence[str] = (f"a {anchor}",)
    if kind == "style":
        motifs = _MOTIFS
    elif kind == "nsfw":
        motifs = _GROUPS if anchor == "people" else (anchor,)
    forms = _PAINTINGS if kind == "style" else _FORMS
    texts = [f"{f.format(x=m)} {p}" for p in _PLACES for m in motifs for f in forms]
    Random(0).shuffle(texts)
    return texts[:n]


def with_concept(text: str, anchor: str, phrase: str, kind: str, rng: Random) -> str:
    """Rewrite an anchor prompt so that it asks for the concept, by the published rule of its kind."""
    if kind == "object":
        return text.replace(anchor, phrase)
    r = rng.randrange(3)
    if kind == "style":
        return f"{text}, in the style of {phrase}" if r == 0 else f"in {phrase}'s style, {text}"
    return (f"{phrase}, {text}", f"in {phrase} style, {text}", f"{text}, {phrase}")[r]


def given_prompts(path: Path, anchor: str, kind: str) -> list[str]:
    """Return the usable prompts of a text file for an anchor.

    Raises:
        SpecError: The file cannot be read or has no usable prompt.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as exc:
        raise SpecError(
            f"prompts={path}: expected a text file, one prompt per line: {exc}"
        ) from exc
    texts = [
        text
        for text in lines
        if text
        and (kind != "object" or anchor in text)
        and not (kind == "nsfw" and may_mention_minors(text))
    ]
    if not texts:
        raise SpecError(
            f"prompts={path}: expected prompts for {anchor!r}, one per line, got no usable one"
        )
    return texts


def anchor_examples(
    model: Model, concept: Concept, ctx: Context, *, images: int, prompts: Path | None = None
) -> list[Example]:
    """Return pictures of each anchor, which the model draws once and which are kept for other methods.

    As published: DPM-Solver with 25 steps, guidance 6; for nsfw concepts the erased phrases are the
    negative prompt. If an anchor has several phrases, they take turns.
    """
    painter, found = model.resampled(SAMPLER, STEPS), list[Example]()
    for anchor, phrases in erased_phrases(concept).items():
        own = given_prompts(prompts, anchor, concept.kind) if prompts else None
        texts = own or anchor_prompts(anchor, concept.kind)
        rows = [Prompt(str(i), texts[i % len(texts)], i, GUIDANCE) for i in range(images)]
        negative = ", ".join(phrases) if concept.kind == "nsfw" else ""
        painter.guidance = Guidance((negative,))
        name = f"anchors-{digest([texts, images, negative, GUIDANCE, SAMPLER, STEPS])}"
        kept = ctx.keep(name, partial(_pixels, painter, rows, ctx), shared=True)
        pictures = [Image.fromarray(array.cpu().numpy()) for array in kept["pixels"]]
        found += [
            Example(image, prompt.text, anchor, phrases[i % len(phrases)])
            for i, (image, prompt) in enumerate(zip(pictures, rows, strict=True))
        ]
    return found


def _pixels(painter: Model, prompts: Sequence[Prompt], ctx: Context) -> dict[str, Tensor]:
    """Draw the anchors' pictures, ``(images, height, width, 3)`` bytes."""
    drawn: list[Picture] = []
    for i in range(0, len(prompts), ctx.batch_size):
        drawn += painter.generate(prompts[i : i + ctx.batch_size])
        ctx.progress("anchors", len(drawn), len(prompts))
    if bad := [image.info["unscored"] for image in drawn if "unscored" in image.info]:
        raise PluginError(f"{len(bad)} of {len(drawn)} anchor images failed: {bad[0]}")
    return {"pixels": torch.from_numpy(np.stack([np.array(im.convert("RGB")) for im in drawn]))}


@dataclass(frozen=True, match_args=False)
class Settings(Protocol):
    """The parameters of the method that are read here; frozen, as they are there."""

    batch: int
    target: Literal["model", "noise"]
    teacher: Literal["student", "frozen"]
    border: int
    hflip: bool
    augment: bool
    prior: float


class AcObjective:
    """Predict for the concept what is predicted for its anchor.

    Args:
        settings: Of the method.
        model: The original model.
        kind: Kind of the concept.
        examples: Pictures of its anchors.
        seed: Seed of all draws.
    """

    def __init__(
        self, settings: Settings, model: Model, kind: str, examples: Sequence[Example], seed: int
    ) -> None:
        self.settings, self.kind, self.examples = settings, kind, list(examples)
        self.batch, self.prior = settings.batch, settings.prior
        self.room = Room(self.batch)  # for passes without gradients
        self.frozen = model.original() if settings.teacher == "frozen" else None
        self.rng, self.words = torch.Generator().manual_seed(seed), Random(seed)
        self.visits, self.prior_visits = self._visits(), self._visits()
        self.side: int = model.initial_noise([0]).shape[-1]
        if 2 * settings.border >= self.side:
            raise IncompatibleError(
                f"border={settings.border}: expected less than half of the latents' side, {self.side}"
            )

    def _visits(self) -> Iterator[Example]:
        """Yield the examples again and again, each time in a new order."""
        while True:
            for i in torch.randperm(len(self.examples), generator=self.rng).tolist():
                yield self.examples[i]

    def draw(self, student: Model) -> Batch:
        """Draw a batch; no gradient of its error passes through the start token."""
        visited = [next(self.visits) for _ in range(self.batch)]
        views = [self._view(example.image) for example in visited]
        images, masks, prefixes = (list(parts) for parts in zip(*views, strict=True))
        texts = [
            prefix + with_concept(e.text, e.anchor, e.phrase, self.kind, self.words)
            for e, prefix in zip(visited, prefixes, strict=True)
        ]
        if self.prior:
            others = [next(self.prior_visits) for _ in range(self.batch)]
            images += [self._flipped(example.image) for example in others]
            texts += [example.text for example in others]
        x0 = student.encode_images(images)
        noise = torch.randn(x0.shape, generator=self.rng).to(x0.device)
        t = torch.randint(1000, (len(x0),), generator=self.rng).to(x0.device)
        x, target = student.add_noise(x0, noise, t), noise[: self.batch]
        if self.settings.target == "model":
            target = self._predicted(student, x, t, student.encode([e.text for e in visited]))
        mask = torch.stack(masks)[:, None].to(x0.device)
        drawn = x, t, student.encode(texts), target, mask, noise
        within = partial(detached_start, student)
        return Batch(self.batch, partial(self._error, student, *drawn), within)

    def _predicted(self, student: Model, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """Return the teacher's prediction for the anchors, without gradients."""
        teacher = self.frozen or student

        def predict(rows: slice) -> Tensor:
            return teacher.predict_noise(x[rows], t[rows], cond[rows])

        with torch.no_grad():
            return torch.cat(list(self.room.parts(self.batch, predict)))

    def _error(
        self,
        student: Model,
        x: Tensor,
        t: Tensor,
        cond: Tensor,
        target: Tensor,
        mask: Tensor,
        noise: Tensor,
        rows: slice,
    ) -> Tensor:
        """Return the mean error of some rows, and of as many that preserve the prior."""
        n, others = rows.stop - rows.start, slice(self.batch + rows.start, self.batch + rows.stop)
        both = (torch.cat([part[rows], part[others]]) for part in (x, t, cond))
        predicted = student.predict_noise(*both)
        # The published loss divides by the mask's sum over pixels, not over channels.
        squares = (predicted[:n] - target[rows]).square() * mask[rows]
        error = (squares.sum((1, 2, 3)) / mask[rows].sum((1, 2, 3)).clamp(min=1)).mean()
        if self.prior:
            error = error + self.prior * (predicted[n:] - noise[others]).square().mean()
        return error

    def _flipped(self, image: Picture) -> Picture:
        return (
            ImageOps.mirror(image) if self.settings.hflip and self.words.random() < 0.5 else image
        )

    def _view(self, image: Picture) -> tuple[Picture, Tensor, str]:
        """Return an augmented image, the mask of latents that count, and words for the prompt."""
        image, rng, size = self._flipped(image), self.words, image.width
        scale = size
        if self.settings.augment:
            shrunk = rng.random() < 0.66
            scale = (
                rng.randint(size // 3, size)
                if shrunk
                else rng.randrange(int(1.2 * size), int(1.4 * size))
            )
        top, left = (rng.randint(0, abs(scale - size)) for _ in range(2))
        if scale != size:
            image = image.resize((scale, scale), Image.Resampling.BILINEAR)
        mask = torch.zeros(self.side, self.side)
        if scale > size:
            shown = image.crop((left, top, left + size, top + size))
            return shown, mask + 1, rng.choice(("zoomed in ", "close up "))
        shown = Image.new("RGB", (size, size), (128, 128, 128))  # 0 to the autoencoder
        shown.paste(image, (left, top))
        pixels, b = size // self.side, self.settings.border
        rows, columns = (
            slice(start // pixels + b, (start + scale) // pixels - b) for start in (top, left)
        )
        mask[rows, columns] = 1
        return shown, mask, rng.choice(("a far away ", "very small ")) if scale < 0.6 * size else ""


@contextmanager
def detached_start(model: Model) -> Iterator[None]:
    """Stop gradients through keys and values of the start token in cross-attention."""

    def hook(_: nn.Module, __: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return torch.cat([out[:, :1].detach(), out[:, 1:]], dim=1)

    hooks = [
        module.register_forward_hook(hook)
        for name, module in model.pipe.unet.named_modules()
        if name.endswith(("attn2.to_k", "attn2.to_v"))
    ]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()
