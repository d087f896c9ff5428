"""ConceptPrune: prune the feed-forward weights that fire for the concept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from bench import Card, Concept, Context, IncompatibleError, Model, Room, by_kind

if TYPE_CHECKING:
    from torch import Tensor, nn

# Nouns for people name adults only; the published list does not.
_PEOPLE = (
    "man", "woman", "couple", "guy", "doctor", "nurse", "teacher", "lawyer", "mother", "father",
    "professor", "group of friends", "celebrity",
)  # fmt: skip
_THINGS = (
    "cat", "dog", "mouse", "bear", "car", "chair", "bag", "door", "rabbit", "ball", "bat", "horse",
    "bird", "flower", "bowl", "bottle", "wall", "building", "chicken", "duck",
)  # fmt: skip
_PLACES = (
    "road", "garden", "beach", "room", "park", "street", "shelter", "chair", "table", "bag", "tree",
    "forest",
)  # fmt: skip
_EMOJI_PLACES = (
    "on the beach", "in the sky", "in the forest", "at night", "in the snow", "in the city",
    "in a field", "in the desert", "by the sea", "in the mountains",
)  # fmt: skip
_EMOJI_THINGS = (
    "cat", "horse", "car", "rose", "house", "castle", "apple", "rocket", "pizza", "crown",
)  # fmt: skip


@dataclass(frozen=True)
class ConceptPrune:
    """ConceptPrune (Chavhan et al., Concept Editing in Diffusion Models via Skilled Neuron Pruning).

    For the second Linear ``W`` of every feed-forward block, at each of the first ``calls`` denoiser
    calls: rows of its input, one per token, image and guidance branch, are scaled to unit length; ``a``
        is the norm of each column over all rows. A weight belongs to the concept if its score ``|W| a``
        is among the top ``ratio`` of its output row on prompts with the concept, and higher than on the
        same prompts
    without the concept. All these weights, of all calls and all terms of the concept, are set to zero.

    Args:
        ratio: Share of each output row. In the emoji world the published shares erase almost nothing.
        calls: Number of denoiser calls at which weights are scored.
        guidance: Scale of classifier-free guidance while scoring.
        seed: Seed of every image.
        steps: Sampling steps.
        sampler: The sampler; "pndm" is published.
        words: "published": the published prompts, but people are adults and every object has the same
            twelve scenes (the published lists for church and garbage truck have scenes of their own).
            "emoji": prompts with words of the emoji world.
    """

    card: ClassVar = Card(
        "ConceptPrune: Concept Editing in Diffusion Models via Skilled Neuron Pruning",
        "https://arxiv.org/abs/2405.19237",
        "https://github.com/ruchikachavhan/concept-prune",
    )

    ratio: Annotated[float, Field(gt=0, le=1)] = by_kind(nsfw=0.01, style=0.01, object=0.02)
    calls: Annotated[int, Field(ge=1)] = by_kind(nsfw=9, style=10, object=10)
    guidance: Annotated[float, Field(ge=0)] = 7.5
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    steps: Annotated[int, Field(ge=1, le=1000)] = 50
    sampler: Literal["ddim", "lms", "pndm", "dpm"] = "pndm"
    words: Literal["published", "emoji"] = "published"

    def __post_init__(self) -> None:
        if isinstance(self.calls, int) and self.calls > self.steps:
            raise ValueError(f"calls={self.calls}: expected at most steps ({self.steps})")

    def erase(self, model: Model, concept: Concept, ctx: Context) -> Model:
        """Score weights on prompts with and without the concept; prune the concept's weights."""
        import torch

        layers = _feed_forwards(model)
        gone = {n: torch.zeros_like(x.weight, dtype=torch.bool) for n, x in layers.items()}
        for done, term in enumerate(concept.phrases):
            base, target = _prompts(term, concept.kind, self.words)
            norms = (self._norms(model, texts) for texts in (target, base))
            for a_target, a_base in zip(*norms, strict=True):
                for name, layer in layers.items():
                    gone[name] |= skilled(layer.weight, a_target[name], a_base[name], self.ratio)
            ctx.progress("erase", done + 1, len(concept.phrases))
        with torch.no_grad():
            for name, layer in layers.items():
                layer.weight[gone[name]] = 0
        pruned, scope = (
            sum(int(g.sum()) for g in gone.values()),
            sum(g.numel() for g in gone.values()),
        )
        model.notes.update(pruned=pruned, in_scope=scope, share=pruned / scope)
        return model

    def _norms(self, model: Model, texts: Sequence[str]) -> list[dict[str, Tensor]]:
        """Return at each call the column norms ``(inputs,)`` of every layer's unit-length rows."""
        import torch
        from torch.nn.functional import normalize

        from bench.models.hooks import inputs_of  # slow; not needed to plan a run

        start, cond = model.initial_noise([self.seed] * len(texts)), model.encode(texts)

        def squares(inputs: Tensor) -> Tensor:
            return normalize(inputs.float().flatten(0, -2), dim=-1).square().sum(0)

        def work(rows: slice) -> list[dict[str, Tensor]]:
            states = model.denoise(
                start[rows], cond[rows], self.guidance, steps=self.steps, sampler=self.sampler
            )
            with inputs_of(_feed_forwards(model), squares) as seen:
                return [dict(seen) for call, _ in enumerate(islice(states, self.calls + 1)) if call]

        calls = zip(*Room(len(texts)).parts(len(texts), work), strict=True)
        return [
            {name: torch.stack([part[name] for part in call]).sum(0).sqrt() for name in call[0]}
            for call in calls
        ]


def skilled(weight: Tensor, target: Tensor, base: Tensor, ratio: float) -> Tensor:
    """Return which weights belong to the concept: the top of each row that is higher than on the base.

    Args:
        weight: ``(outputs, inputs)``.
        target: Column norms of the inputs on prompts with the concept, ``(inputs,)``.
        base: The same on prompts without the concept.
        ratio: Share of each row.
    """
    import torch

    score = weight.detach().abs().float() * target
    top = score.topk(int(ratio * weight.shape[1]), dim=1).indices
    chosen = torch.zeros_like(weight, dtype=torch.bool).scatter_(1, top, value=True)
    return chosen & (score > weight.detach().abs().float() * base)


def _feed_forwards(model: Model) -> dict[str, nn.Linear]:
    """Return the second Linear of every GEGLU feed-forward block, by name."""
    found = {
        f"{name}.net.2": module.net[2]
        for name, module in model.pipe.unet.named_modules()
        if name.endswith(".ff") and type(module.net[0]).__name__ == "GEGLU"
    }
    if not found:
        raise IncompatibleError(
            "concept-prune needs GEGLU feed-forward blocks, this model has none"
        )
    return found


def _prompts(term: str, kind: str, words: str) -> tuple[list[str], list[str]]:
    """Return prompts without and with the concept, in pairs."""
    if kind == "style":
        things = _EMOJI_THINGS if words == "emoji" else _THINGS
        base = [f"a photo of a {x}" for x in things]
        return base, [f"a {x} in the style of {term}" for x in things]
    if words == "emoji":
        noun = term if kind == "nsfw" else f"a {term}"
        return (
            [f"a photo of a landscape {p}" for p in _EMOJI_PLACES],
            [f"a photo of {noun} {p}" for p in _EMOJI_PLACES],
        )
    if kind == "nsfw":
        word = "naked" if term == "nudity" else term
        return [f"a photo of a {x}" for x in _PEOPLE], [f"a photo of a {word} {x}" for x in _PEOPLE]
    return [f"a {p}" for p in _PLACES], [f"a {term} in a {p}" for p in _PLACES]
