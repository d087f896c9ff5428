"""AC's data and objective, which AC and P-AC share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from random import Random
from typing import Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bench import Concept, Context, Guidance, IncompatibleError, Model, Prompt

Target = Literal["model", "noise"]
Teacher = Literal["student", "frozen"]
ANCHORS = 200

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


def anchor_prompts(concept: Concept, n: int = ANCHORS) -> list[str]:
    """Return prompts for the anchor concept, written for this project.

    Raises:
        IncompatibleError: The concept has no anchor, or is its own anchor.
    """
    anchor = concept.anchor
    if not anchor:
        raise IncompatibleError(f"{concept.name!r} has no anchor concept to be mapped to")
    if anchor == concept.name:
        raise IncompatibleError(
            f"the anchor of {concept.name!r} is the concept itself: choose another"
        )
    motifs: Sequence[str] = (f"a {anchor}",)
    if concept.kind == "style":
        motifs = _MOTIFS
    elif concept.kind == "nsfw":
        motifs = _GROUPS if anchor == "people" else (anchor,)
    forms = _PAINTINGS if concept.kind == "style" else _FORMS
    texts = [f"{f.format(x=m)} {p}" for p in _PLACES for m in motifs for f in forms]
    Random(0).shuffle(texts)
    return texts[:n]


def with_concept(anchor: str, concept: Concept, rng: Random, index: int = 0) -> str:
    """Rewrite an anchor prompt so that it asks for the concept (the published rules by kind).

    ``index`` picks one of several terms in turn.
    """
    name = concept.phrases[index % len(concept.phrases)]
    if concept.kind == "object":
        return anchor.replace(concept.anchor, name)
    r = rng.randrange(3)
    if concept.kind == "style":
        return f"{anchor}, in the style of {name}" if r == 0 else f"in {name}'s style, {anchor}"
    return (f"{name}, {anchor}", f"in {name} style, {anchor}", f"{anchor}, {name}")[r]


def anchor_latents(
    model: Model, concept: Concept, ctx: Context, *, images: int, guidance: float = 6.0
) -> tuple[list[str], Tensor]:
    """Return anchor prompts and the latents ``(images, c, h, w)`` of pictures that the model makes of them.

    Made once for a base model and kept; for nsfw concepts the concept is the negative prompt.
    """
    texts = anchor_prompts(concept)
    prompts = [Prompt(str(i), texts[i % len(texts)], i, guidance) for i in range(images)]
    negative = concept.name if concept.kind == "nsfw" else ""
    key = hashlib.sha256(json.dumps([texts, images, guidance, negative]).encode()).hexdigest()[:16]
    path = (ctx.basedir or ctx.workdir) / f"anchors-{key}.safetensors"
    if path.exists():
        latents = load_file(path)["latents"].to(model.device)
    else:
        painter = model.copy()
        painter.guidance = Guidance((negative,))
        parts = []
        for i in range(0, images, ctx.batch_size):
            parts.append(model.encode_images(painter.generate(prompts[i : i + ctx.batch_size])))
            ctx.progress("anchors", min(i + ctx.batch_size, images), images)
        latents = torch.cat(parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".tmp")
        save_file({"latents": latents.cpu().contiguous()}, draft)
        draft.replace(path)
    return [p.text for p in prompts], latents


class AcObjective:
    """Predict for the concept what is predicted for its anchor (Kumari et al., arXiv 2303.13516).

    Args:
        model: The original.
        concept: What is erased; its anchor must be set.
        texts: Anchor prompt of each image.
        latents: Their latents, ``(images, c, h, w)``.
        batch: Images in a step.
        target: "model": the anchor's prediction; "noise": the noise that was added.
        teacher: Whose prediction: the student's own without gradient (the published code) or the
            original's (Eq. 3 of the pruning paper).
        border: Latent pixels at the edge that do not count; 1 is published.
        hflip: Mirror half of the images.
        seed: Seed of every draw.
    """

    def __init__(
        self,
        model: Model,
        concept: Concept,
        texts: Sequence[str],
        latents: Tensor,
        *,
        batch: int,
        target: Target,
        teacher: Teacher,
        border: int,
        hflip: bool,
        seed: int,
    ) -> None:
        self.latents, self.batch, self.hflip = latents, batch, hflip
        self.target, self.frozen = target, model.copy() if teacher == "frozen" else None
        self.rng = torch.Generator().manual_seed(seed)
        words, self.texts = Random(seed), list(texts)
        rewritten = [with_concept(text, concept, words, i) for i, text in enumerate(texts)]
        self.anchors = _encode_once(model, self.texts)
        self.concepts = _encode_once(model, rewritten)
        h, w = latents.shape[-2:]
        self.mask = torch.zeros(1, 1, h, w, device=latents.device)
        self.mask[..., border : h - border, border : w - border] = 1

    def loss(self, student: Model) -> Tensor:
        """Return the loss of one batch. Its gradient does not pass through the start token."""
        index = torch.randint(len(self.latents), (self.batch,), generator=self.rng)
        x0 = self.latents[index]
        if self.hflip:
            mirrored = torch.rand(self.batch, generator=self.rng) < 0.5
            x0 = torch.where(mirrored.view(-1, 1, 1, 1).to(x0.device), x0.flip(-1), x0)
        noise = torch.randn(x0.shape, generator=self.rng).to(x0.device)
        t = torch.randint(1000, (self.batch,), generator=self.rng).to(x0.device)
        x = student.add_noise(x0, noise, t)
        target = noise
        if self.target == "model":
            with torch.no_grad():
                target = (self.frozen or student).predict_noise(x, t, self.anchors[index])
        self._drawn = x, t, self.concepts[index], target
        return self.error(student)

    def error(self, student: Model) -> Tensor:
        """Return a student's error on the batch that was drawn last."""
        x, t, cond, target = self._drawn
        with detached_start(student):
            predicted = student.predict_noise(x, t, cond)
        # The published loss divides by the mask's sum over pixels, not over channels.
        error: Tensor = ((predicted - target).square() * self.mask).sum((1, 2, 3)) / self.mask.sum()
        return error.mean()


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


def _encode_once(model: Model, texts: Sequence[str]) -> Tensor:
    """Encode every different text once; return a row per text."""
    unique = list(dict.fromkeys(texts))
    row = {text: i for i, text in enumerate(unique)}
    parts = [model.encode(unique[i : i + 64]) for i in range(0, len(unique), 64)]
    return torch.cat(parts)[[row[text] for text in texts]]
