"""ConceptPrune: prune the feed-forward weights that fire for the concept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from bench import Card, Concept, Context, IncompatibleError, Model, Prompt, by_kind

if TYPE_CHECKING:
    from torch import Tensor

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
    "cat",
    "horse",
    "car",
    "rose",
    "house",
    "castle",
    "apple",
    "rocket",
    "pizza",
    "crown",
)


@dataclass(frozen=True)
class ConceptPrune:
    """ConceptPrune (Chavhan et al., Concept Editing in Diffusion Models via Skilled Neuron Pruning).

    For the second Linear ``W`` of every feed-forward block, at each of the first ``calls`` denoiser
    calls: rows of its input, one per token, image and guidance branch, are scaled to unit length; ``a``
    is the norm of each column over all rows. A weight is the concept's if its score ``|W| a`` is among
    the top ``ratio`` of its output row on prompts with the concept and higher than on the same prompts
    without it. The union over calls, and over the terms of a concept that has several, is zeroed.

    Args:
        ratio: Share of each output row. On the emoji world the published shares erase next to nothing.
        calls: Denoiser calls that are looked at.
        guidance: Classifier-free guidance while looking.
        seed: Seed of every image, the same for both sides.
        steps: Sampling steps.
        sampler: "pndm" is published.
        words: "published" are the published prompts, save that people are adults, and that every object
            has the same twelve scenes (the published lists for church and garbage truck have their
            own). "emoji" are prompts of what the emoji world knows.
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
        """Score both sides at each call, take the union, prune."""
        import torch

        layers = _feed_forwards(model)
        gone = {name: torch.zeros_like(w, dtype=torch.bool) for name, w in layers.items()}
        for done, term in enumerate(concept.phrases):
            base, target = _prompts(term, concept.kind, self.words)
            norms = (self._norms(model, texts, self.calls) for texts in (target, base))
            for a_target, a_base in zip(*norms, strict=True):
                for name, w in layers.items():
                    gone[name] |= skilled(w, a_target[name], a_base[name], self.ratio)
            ctx.progress("erase", done + 1, len(concept.phrases))
        with torch.no_grad():
            for name, w in layers.items():
                w[gone[name]] = 0
        pruned, scope = (
            sum(int(g.sum()) for g in gone.values()),
            sum(g.numel() for g in gone.values()),
        )
        model.notes.update(pruned=pruned, in_scope=scope, share=pruned / scope)
        return model

    def _norms(self, model: Model, texts: Sequence[str], calls: int) -> list[dict[str, Tensor]]:
        """Return at each call the column norms ``(inputs,)`` of every layer's unit-length rows."""
        import torch

        squares: dict[str, Tensor] = {}

        def keep(name: str) -> Any:
            def hook(_: Any, inputs: tuple[Tensor, ...]) -> None:
                rows = inputs[0].detach().float().flatten(0, -2)
                unit = torch.nn.functional.normalize(rows, dim=-1)
                squares[name] = unit.square().sum(0)

            return hook

        modules = dict(model.pipe.unet.named_modules())
        hooks = [
            modules[name.removesuffix(".weight")].register_forward_pre_hook(keep(name))
            for name in _feed_forwards(model)
        ]
        found: list[dict[str, Tensor]] = []
        try:
            prompts = [
                Prompt(str(i), text, self.seed, self.guidance) for i, text in enumerate(texts)
            ]
            states = model.denoise(
                model.noise([p.seed for p in prompts]),
                model.encode(texts),
                self.guidance,
                steps=self.steps,
                sampler=self.sampler,
            )
            for call, _ in enumerate(states):
                if call:
                    found.append({name: s.sqrt() for name, s in squares.items()})
                if call == calls:
                    break
        finally:
            for hook in hooks:
                hook.remove()
        return found


def skilled(weight: Tensor, target: Tensor, base: Tensor, ratio: float) -> Tensor:
    """Return which weights are the concept's: top of their row, and more active than on the base.

    Args:
        weight: ``(outputs, inputs)``.
        target: Column norms of the inputs on prompts with the concept, ``(inputs,)``.
        base: The same without the concept.
        ratio: Share of each row.
    """
    import torch

    score = weight.detach().abs().float() * target
    top = score.topk(int(ratio * weight.shape[1]), dim=1).indices
    chosen = torch.zeros_like(weight, dtype=torch.bool).scatter_(1, top, value=True)
    return chosen & (score > weight.detach().abs().float() * base)


def _feed_forwards(model: Model) -> dict[str, Any]:
    """Return the second Linear's weight of every GEGLU feed-forward block, by parameter name."""
    found = {
        f"{name}.net.2.weight": module.net[2].weight
        for name, module in model.pipe.unet.named_modules()
        if name.endswith(".ff") and type(module.net[0]).__name__ == "GEGLU"
    }
    if not found:
        raise IncompatibleError(
            "concept-prune needs GEGLU feed-forward blocks; this model has none"
        )
    return found


def _prompts(term: str, kind: str, words: str) -> tuple[list[str], list[str]]:
    """Return prompts without and with the concept, in pairs."""
    if words == "emoji":
        if kind == "style":
            base = [f"a photo of a {x}" for x in _EMOJI_THINGS]
            return base, [f"a {x} in the style of {term}" for x in _EMOJI_THINGS]
        noun = term if kind == "nsfw" else f"a {term}"
        return (
            [f"a photo of a landscape {p}" for p in _EMOJI_PLACES],
            [f"a photo of {noun} {p}" for p in _EMOJI_PLACES],
        )
    if kind == "nsfw":
        word = "naked" if term == "nudity" else term
        return [f"a photo of a {x}" for x in _PEOPLE], [f"a photo of a {word} {x}" for x in _PEOPLE]
    if kind == "style":
        base = [f"a photo of a {x}" for x in _THINGS]
        return base, [f"a {x} in the style of {term}" for x in _THINGS]
    return [f"a {p}" for p in _PLACES], [f"a {term} in a {p}" for p in _PLACES]
