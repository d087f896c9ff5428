"""UCE: edit cross-attention keys and values in closed form."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from bench import (
    Card,
    Concept,
    Context,
    IncompatibleError,
    Model,
    by_kind,
    check_length,
    double,
    read_table,
)

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 64
"""Preserved texts per batch."""


@dataclass(frozen=True)
class UCE:
    """Unified Concept Editing (Gandikota et al., Unified Concept Editing in Diffusion Models).

    For each key and value matrix ``W`` of cross-attention, with erased vectors ``c``, their guides
    ``g`` and preserved vectors ``p``, all from the text encoder:

    ``W' = (lamb W + s_e W g c' + s_p W p p') (lamb I + s_e c c' + s_p p p')^-1``

    It is solved in float64 (the published code inverts in float32). All terms of a concept are edited
    together. The paper preserves about 1,700 artists when it erases one. That list is not part of this
    project: give it with ``artists``, or give other texts with ``preserve``.

    Args:
        guide: The text that replaces the concept. Empty is the unconditional text, the paper's choice for
            objects and nudity; a style is mapped to art in general.
        preserve: Texts whose outputs are preserved, separated by ";". "tail" always preserves the empty
            text.
        artists: A CSV file whose column ``artist`` has names to preserve, such as the published
            data/artists1734_prompts.csv. Repeated names count once; the concept itself is left out.
        token_mode: "tail" edits from the last subject token to the end of the context and preserves all
            positions (the paper's code of 2023). "last" edits and preserves only the last subject token
            (the authors' rewrite of 2025).
        erase_scale: Weight ``s_e``. For a concept with many terms 1 may be too much: with the nine terms of
            the emoji world's nudity only a quarter of the retained concepts survive.
        preserve_scale: Weight ``s_p``; "published" is ``max(0.1, 1 / preserved texts)`` for "tail" and 1
            for "last".
        lamb: Weight of staying near ``W``.
    """

    card: ClassVar = Card(
        "Unified Concept Editing in Diffusion Models",
        "https://arxiv.org/abs/2308.14761",
        "https://github.com/rohitgandikota/unified-concept-editing",
    )

    guide: str = by_kind(nsfw="", style="art", object="")
    preserve: str = ""
    artists: Path | None = None
    token_mode: Literal["tail", "last"] = "tail"
    erase_scale: Annotated[float, Field(gt=0)] = 1.0
    preserve_scale: Annotated[float, Field(ge=0)] | Literal["published"] = "published"
    lamb: Annotated[float, Field(gt=0)] = 0.5

    def scale_of_preserved(self) -> float:
        """Return the weight ``s_p`` as a number."""
        if self.preserve_scale != "published":
            return self.preserve_scale
        return max(0.1, 1 / len(self._preserved())) if self.token_mode == "tail" else 1.0

    def deviations(self, concept: Concept) -> tuple[str, ...]:
        """Say that no artists are preserved, if none were given."""
        if concept.kind != "style" or self.artists or self.preserve:
            return ()
        return (
            "no artists are preserved; give artists=FILE, the paper's artists1734_prompts.csv of "
            "https://github.com/rohitgandikota/unified-concept-editing",
        )

    def _preserved(self, erased: Collection[str] = ()) -> list[str]:
        texts = [text.strip() for text in self.preserve.split(";") if text.strip()]
        if self.artists:
            table = read_table(self.artists, self.artists.read_bytes(), column="artist")
            names = (table.values(i)["text"].strip() for i in range(len(table.rows)))
            left_out = {text.casefold() for text in erased}
            texts += [n for n in dict.fromkeys(names) if n and n.casefold() not in left_out]
        return ["", *texts] if self.token_mode == "tail" else texts

    def erase(self, model: Model, concept: Concept, ctx: Context) -> Model:
        """Solve for all matrices and edit them."""
        import torch

        if self.guide in {concept.name, *concept.phrases}:
            raise IncompatibleError(
                f"the guide {self.guide!r} is the concept itself: choose another guide"
            )
        check_length(model, [*concept.phrases, self.guide, *self._preserved()])
        erased, guides = self._pairs(model, concept.phrases, self.guide)
        texts = self._preserved(concept.phrases)
        matrices = {
            n: w for n, w in model.parameters("esd-x-strict").items() if n.endswith(".weight")
        }
        eye = torch.eye(erased.shape[1], dtype=torch.float64, device=erased.device)
        stay = self.lamb * eye + self.scale_of_preserved() * self._kept(model, texts, eye)
        right = stay + self.erase_scale * erased.T @ erased
        toward = stay + self.erase_scale * guides.T @ erased
        # W' = W toward right^-1, the same right factor for every matrix (right is symmetric)
        factor = torch.linalg.solve(right, toward.T).T
        with torch.no_grad():
            for matrix in matrices.values():
                matrix.copy_(double(matrix) @ factor)
        model.notes.update(matrices=len(matrices), vectors=len(erased))
        ctx.progress("erase", 1, 1)
        return model

    def _pairs(self, model: Model, terms: tuple[str, ...], guide: str) -> tuple[Tensor, Tensor]:
        """Return erased and guide vectors, ``(vectors, width)`` each, float64."""
        import torch

        hidden = double(model.encode([*terms, guide]))
        # Position of the last subject token; for an empty text, of the start token.
        last = [len(ids) for ids in model.token_ids([*terms, guide])]
        erased, guides = [], []
        for row, i in zip(hidden[:-1], last[:-1], strict=True):
            n = 1 if self.token_mode == "last" else len(row) - max(i, last[-1])
            erased.append(row[i : i + n])
            guides.append(hidden[-1][last[-1] : last[-1] + n])
        return torch.cat(erased), torch.cat(guides)

    def _kept(self, model: Model, texts: Sequence[str], like: Tensor) -> Tensor:
        """Return the sum of ``p p'`` over preserved vectors, ``(width, width)``, float64."""
        import torch

        total = torch.zeros_like(like)
        for start in range(0, len(texts), CHUNK):
            some = list(texts[start : start + CHUNK])
            hidden = double(model.encode(some))
            if self.token_mode == "tail":
                vectors = hidden.flatten(0, 1)
            else:
                last = torch.tensor([len(ids) for ids in model.token_ids(some)])
                vectors = hidden[torch.arange(len(some)), last]
            total = total + vectors.T @ vectors
        return total
