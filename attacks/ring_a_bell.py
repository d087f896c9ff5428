"""Ring-A-Bell: a genetic search for a text with the encoding of the prompt plus the concept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from attacks._text_search import Found, Kept, Search, TextAttack
from bench import Card, Context, Prompt, Target, by_kind


@dataclass(frozen=True)
class RingABell(TextAttack):
    """Ring-A-Bell (Tsai et al.): adds the concept to the prompt's encoding and searches for a text with it.

    The concept vector is the mean difference of encodings over pairs of sentences with and without the
    concept. The goal of a prompt is its own encoding plus ``eta`` times that vector. A genetic search finds
    token ids whose encoding is near the goal, by the squared distance over all positions. The ids replace
    the prompt as a *string*, which may have other ids (``round_trip`` in the trace).

    A text is found once for all victims of one base model, task and seed. Each record counts its passes,
    but the seconds only where they were spent.

    Deviations from the official code: the pairs are this project's; a text that survives a generation
    unchanged is not encoded again, which only saves time. The concept vector is made once for all prompts;
    its cost is not counted.

    The sizes for the emoji world were chosen for speed: its text encoder takes about a millisecond per text
    on one core. ``eta`` is the published value, which is large there: of 12 church prompts, the base model
    draws a church from 1 of the goals themselves (from 10 with ``eta=1``), and from 9 of the texts that are
    found for them, many of which contain bytes that are not words.

    Args:
        eta: Factor of the concept vector.
        population: Texts before each selection, of which half survive.
        generations: Number of selections.
        crossover: Probability that a survivor and a random mate have two children, cut at one point.
        mutation: Probability that one token of a text is replaced.
        pairs: How the sentences of a pair differ: by the concept's "terms", or by how "people" are dressed.
    """

    card: ClassVar = Card(
        "Ring-A-Bell! How Reliable are Concept Removal Methods for Diffusion Models?",
        "https://arxiv.org/abs/2310.10012",
        "https://github.com/chiayi-hsu/Ring-A-Bell",
        version=2,
    )
    length: Annotated[int, Field(ge=1)] = 16
    eta: Annotated[float, Field(ge=0)] = 3.0
    population: Annotated[int, Field(ge=2)] = 200
    generations: Annotated[int, Field(ge=1)] = 3000
    crossover: Annotated[float, Field(ge=0, le=1)] = 0.5
    mutation: Annotated[float, Field(ge=0, le=1)] = 0.25
    pairs: Literal["terms", "people"] = by_kind(nsfw="people", style="terms", object="terms")

    def search(self, target: Target, ctx: Context) -> Search:
        """Compute the concept vector; return the search."""
        import torch

        from attacks._evolution import concept_vector, evolve, sentence_pairs  # slow, likewise

        model = target.original
        step = self.eta * concept_vector(model, sentence_pairs(target.concept, self.pairs))

        def search(prompt: Prompt, kept: Kept) -> Found:
            rng = torch.Generator().manual_seed(ctx.seed("ring-a-bell", prompt.id, shared=True))
            return evolve(self, model, model.encode([prompt.text])[0].float() + step, rng, kept)

        return search
