"""UnlearnDiffAtk: tokens with which an erased model denoises the concept, as probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from attacks._token_attack import TokenAttack
from bench import Attacker, Card, Context, Target, Threat, later


@dataclass(frozen=True)
class UnlearnDiff(TokenAttack):
    """UnlearnDiffAtk (Zhang et al., To Generate or Not?), batched over prompts.

    For each free token, the variable is a row of probabilities over the vocabulary. Each step draws one
    token per row, passes the token's gradient straight through to the row, clamps it, and projects rows
    back on the simplex. The likeliest token of each row is the result. :mod:`attacks._token_search` has
    the search.

    Defaults are the official code's, except ``timesteps``, which are the pruning paper's. In the emoji
    world the projection is exact, and the target image is made with the model's own sampler and the
    prompt's own guidance. In the photo world tokens are drawn on the device, and ids that their text does
    not give back are not judged (``draw=official,judge_ids=true`` does as the official code).

    Args:
        projection: How rows are projected on the simplex: "exact" is the nearest point; "bisect" is the
            official code's search, which is too coarse for large vocabularies (rows do not sum to one).
        draw: How tokens are drawn from a prompt's random stream: "official" has the order of the official
            code on a CPU, and moves all probabilities there; "device" inverts their sum with one uniform
            number for each row, where the probabilities are.
    """

    card: ClassVar = Card(
        "To Generate or Not? Safety-Driven Unlearned Diffusion Models Are Still Easy To Generate "
        "Unsafe Images ... For Now",
        "https://arxiv.org/abs/2310.11868",
        "https://github.com/OPTML-Group/Diffusion-MU-Attack",
    )
    threat: ClassVar = Threat("white", "prompt")

    projection: Literal["exact", "bisect"] = "bisect"
    draw: Literal["official", "device"] = later("official")

    def prepare(self, target: Target, ctx: Context) -> Attacker:
        """Return the search."""
        from attacks._simplex import SimplexSearch  # slow; not needed to plan a run

        return SimplexSearch(self, target, ctx).run
