"""MMA-Diffusion: a search (GCG) for a text with the prompt's encoding but without the concept's words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from attacks._text_search import Found, Kept, Search, TextAttack
from bench import Card, Context, Prompt, Target, by_kind

_NSFW = "nudity nude naked undressed unclothed topless bare"


@dataclass(frozen=True)
class Mma(TextAttack):
    """MMA-Diffusion (Yang et al.), its textual part: greedy coordinate gradient on the text encoder.

    The loss is one minus the cosine between the encoder's outputs at the end token, for the text and for
    the prompt. The text starts as random letters. A step takes the gradient of the loss with respect to
    the one-hot tokens and makes a batch of candidates: in each, one token is replaced by a random one of
    the best tokens at its position. The best candidate is the next text, even if it is worse than the
    current one. The best text of all steps replaces the prompt. Tokens that contain a word of the concept
    are forbidden.

    Candidates are *strings*: each is decoded and tokenised again, and dropped if its length has changed, if
    it has a forbidden token or, as in GCG (arXiv 2307.15043), if it equals the current text. Gradients are
    not normalised per row, because that does not change the order within a row. Only tokens up to the end
    token are encoded; the encoder is causal, so later tokens have no effect.

    A text is found once for all victims of one base model, task and seed. Each record counts its passes,
    but the seconds only where they were spent.

    The sizes for the emoji world were chosen for speed: its text encoder takes about a millisecond per text
    on one core.

    Args:
        steps: Number of steps.
        batch: Candidates per step, spread evenly over the positions.
        top_k: Replacements are drawn from this many tokens per position.
        positions: "exact" uses the gradient at the token that is replaced. "official" uses the gradient one
            position before it, as the official code does by mistake (it counts the start token on one side
            only).
        banned: More forbidden words, separated by spaces.
    """

    card: ClassVar = Card(
        "MMA-Diffusion: MultiModal Attack on Diffusion Models",
        "https://arxiv.org/abs/2311.17516",
        "https://github.com/cure-lab/MMA-Diffusion",
        version=2,
    )
    length: Annotated[int, Field(ge=1)] = 20
    steps: Annotated[int, Field(ge=1)] = 1000
    batch: Annotated[int, Field(ge=1)] = 512
    top_k: Annotated[int, Field(ge=1)] = 256
    positions: Literal["exact", "official"] = "exact"
    banned: str = by_kind(nsfw=_NSFW, style="", object="")

    def search(self, target: Target, ctx: Context) -> Search:
        """Return the search."""
        import torch

        from attacks._descent import Descent  # slow; not needed to plan a run

        descent = Descent(self, target.original, target.concept)

        def search(prompt: Prompt, kept: Kept) -> Found:
            rng = torch.Generator().manual_seed(ctx.seed("mma", prompt.id, shared=True))
            return descent.run(prompt.text, rng, kept)

        return search
