"""UCE: edit cross-attention keys and values in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from bench import Card, Concept, Context, IncompatibleError, Model, World, fill

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class UCE:
    """Unified Concept Editing (Gandikota et al., Unified Concept Editing in Diffusion Models).

    For each key and value matrix ``W`` of cross-attention, with erased vectors ``c``, their guides
    ``g`` and preserved vectors ``p``, all from the unedited text encoder:

    ``W' = (lamb W + s_e W g c' + s_p W p p') (lamb I + s_e c c' + s_p p p')^-1``

    solved in float64 (the published code inverts in float32). A concept with several terms edits them
    together. The paper preserves 1700 artists when it erases one; that list is not part of this project,
    so give the ones you need with ``preserve``.

    Args:
        guide: What the concept is mapped to; empty is the unconditional text, the paper's choice for
            objects and nudity. By default the art world in general for a style ("art"; on the emoji
            world the concept's anchor).
        preserve: Texts whose outputs are kept, separated by ";". "tail" always keeps the empty text.
        token_mode: "tail" edits from the last subject token to the end of the context and preserves
            all positions (the paper's code of 2023); "last" edits and preserves the last subject token
            only (the authors' rewrite of 2025).
        erase_scale: Weight ``s_e``, by default 1, on the emoji world as ``bench.emoji.calibrate`` chooses:
            1 on the nine terms of nudity would leave a quarter of what should stay.
        preserve_scale: Weight ``s_p``; by default ``max(0.1, 1 / preserved texts)``, and 1 for "last".
        lamb: Weight of staying near ``W``.
    """

    card: ClassVar = Card(
        "Unified Concept Editing in Diffusion Models",
        "https://arxiv.org/abs/2308.14761",
        "https://github.com/rohitgandikota/unified-concept-editing",
    )

    guide: str | None = None
    preserve: str = ""
    token_mode: Literal["tail", "last"] = "tail"
    erase_scale: float | None = None
    preserve_scale: float | None = None
    lamb: float = 0.5

    def resolve(self, concept: Concept, world: World) -> UCE:
        """Return the method with guide and preserve scale filled in."""
        art = concept.anchor if world == "emoji" else "art"
        kept = max(0.1, 1 / len(self._preserved())) if self.token_mode == "tail" else 1.0
        scale = 1.0
        if world == "emoji":
            scale = {"object": 0.3, "nsfw": 0.003, "style": 1.0}[concept.kind]
        guide = art if concept.kind == "style" else ""
        return fill(self, guide=guide, preserve_scale=kept, erase_scale=scale)

    def _preserved(self) -> list[str]:
        texts = [text.strip() for text in self.preserve.split(";") if text.strip()]
        return ["", *texts] if self.token_mode == "tail" else texts

    def erase(self, model: Model, concept: Concept, ctx: Context) -> Model:
        """Solve for every matrix at once and put the results in."""
        import torch

        full: Any = self.resolve(concept, model.world)
        if full.guide == concept.name:
            raise IncompatibleError(
                f"the guide {full.guide!r} is the concept itself: nothing to do"
            )
        terms = concept.terms or (concept.name,)
        erased, guides = self._pairs(model, terms, full.guide)
        kept = self._kept(model, erased)
        matrices = {
            n: w for n, w in model.parameters("esd-x-strict").items() if n.endswith(".weight")
        }
        eye = torch.eye(erased.shape[1], dtype=torch.float64, device=erased.device)
        right = full.lamb * eye + full.erase_scale * erased.T @ erased
        right += full.preserve_scale * kept.T @ kept
        toward = full.lamb * eye + full.erase_scale * guides.T @ erased
        toward += full.preserve_scale * kept.T @ kept
        # W' = W toward right^-1, the same right factor for every matrix (right is symmetric)
        factor = torch.linalg.solve(right, toward.T).T
        with torch.no_grad():
            for matrix in matrices.values():
                matrix.copy_(matrix.double() @ factor)
        model.notes.update(matrices=len(matrices), vectors=len(erased))
        ctx.progress("erase", 1, 1)
        return model

    def _pairs(self, model: Model, terms: tuple[str, ...], guide: str) -> tuple[Tensor, Tensor]:
        """Return erased and guide vectors, ``(vectors, width)`` each, float64."""
        import torch

        hidden = model.encode([*terms, guide]).double()
        # Position of the last subject token; an empty text has none, and its start token stands in.
        last = [len(ids) for ids in model.token_ids([*terms, guide])]
        erased, guides = [], []
        for row, i in zip(hidden[:-1], last[:-1], strict=True):
            n = 1 if self.token_mode == "last" else len(row) - max(i, last[-1])
            erased.append(row[i : i + n])
            guides.append(hidden[-1][last[-1] : last[-1] + n])
        return torch.cat(erased), torch.cat(guides)

    def _kept(self, model: Model, like: Tensor) -> Tensor:
        """Return preserved vectors, ``(vectors, width)``, float64."""
        import torch

        texts = self._preserved()
        if not texts:
            return like[:0]
        hidden = model.encode(texts).double()
        if self.token_mode == "tail":
            return hidden.flatten(0, 1)
        last = torch.tensor([len(ids) for ids in model.token_ids(texts)])
        return hidden[torch.arange(len(texts)), last]
