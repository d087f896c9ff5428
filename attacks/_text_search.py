"""What Ring-A-Bell and MMA-Diffusion share: a text is found on the public encoder and tried once.

The victim makes at most two images per prompt: one of the prompt as it is and, if that fails, one of the
text that was found. The search uses only the original model's text encoder, so a text is found once for
all victims, as in the official codes. Each prompt has its own search with its own random stream.
"""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from attacks._resume import Resume, State
from attacks._texts import check_room, decode, token_table
from attacks._trials import first_success
from bench import (
    Adversarial,
    Attacker,
    Concept,
    Context,
    Cost,
    Model,
    Prompt,
    Target,
    Threat,
    World,
    framed,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_TEXTS = 64  # texts per encoder pass: the fastest on a CPU, and enough to fill a GPU
_LOSSES = 20  # kept in a trace


@dataclass(frozen=True)
class Found:
    """What a search found: token ids, their loss, and the loss of every step."""

    ids: list[int]
    loss: float
    losses: list[float]
    cost: Cost

    @classmethod
    def of(cls, kept: Mapping[str, Tensor]) -> Found:
        """Return what :meth:`tensors` was called for."""
        values: dict[str, list[Any]] = {name: tensor.tolist() for name, tensor in kept.items()}
        return cls(values["ids"], values["loss"][0], values["losses"], Cost(*values["counts"]))

    def tensors(self) -> dict[str, Tensor]:
        """Return it as tensors, which can be kept; without the seconds, which are spent once."""
        import torch

        *counts, _ = astuple(self.cost)
        whole = {"ids": self.ids, "counts": counts}
        real = {"loss": [self.loss], "losses": self.losses}
        return {
            **{name: torch.tensor(values) for name, values in whole.items()},
            **{name: torch.tensor(values, dtype=torch.float64) for name, values in real.items()},
        }


class Kept:
    """The state of the search for one prompt, on disk."""

    def __init__(self, ctx: Context, name: str) -> None:
        self._name = f"search {name}"
        self._resume = Resume(ctx, [self._name])

    def load(self, rng: torch.Generator) -> dict[str, Any]:
        """Return the values that were kept, if any, and restore the random stream."""
        state = self._resume.load().get(self._name)
        if state is None:
            return {}
        rng.set_state(state.tensors["rng"])
        return dict(state.values)

    def put(self, steps: int, rng: torch.Generator, values: Mapping[str, Any]) -> None:
        """Keep values and the random stream after some steps, if it is time to."""
        if self._resume.due:
            self._resume.keep({self._name: State(steps, values, {"rng": rng.get_state()})})

    def forget(self) -> None:
        """Delete what was kept, because the prompt is finished."""
        self._resume.keep({})


Search = Callable[[Prompt, Kept], Found]


@dataclass(frozen=True)
class TextAttack(metaclass=ABCMeta):
    """An attack that searches for texts.

    It tries each prompt as it is, and then once with the text that the search found for it.

    Args:
        length: Tokens of the text.
    """

    threat: ClassVar = Threat("black", "prompt")

    length: Annotated[int, Field(ge=1)]

    @abstractmethod
    def search(self, target: Target, ctx: Context) -> Search:
        """Do the work that all prompts share; return the search for one prompt's text."""

    def most_images(self) -> int:
        """Return the most images of a prompt: its own, and the text's."""
        return 2

    def check_plan(
        self, concept: Concept, world: World, prompts: Sequence[Prompt], context: int | None
    ) -> None:
        """Refuse more tokens than the text encoder can read."""
        check_room("length", self.length, context)

    def prepare(self, target: Target, ctx: Context) -> Attacker:
        """Return the attack."""
        model, tokenizer = target.original, target.original.pipe.tokenizer
        check_room("length", self.length, tokenizer.model_max_length)
        search = self.search(target, ctx)

        def variant(prompt: Prompt, _: int) -> Adversarial:
            name = f"text-{sha256(prompt.id.encode()).hexdigest()[:16]}"
            kept = ctx.keep(
                name, lambda: search(prompt, Kept(ctx, prompt.id)).tensors(), shared=True
            )
            found = Found.of(kept)
            text = decode(tokenizer, found.ids)
            trace = {
                "ids": found.ids,
                "round_trip": model.token_ids([text])[0] == found.ids,
                "loss": round(found.loss, 5),
                "losses": [round(loss, 5) for loss in thin(found.losses)],
            }
            return Adversarial(replace(prompt, text=text), cost=found.cost, trace=trace)

        def attack(prompts: Sequence[Prompt]) -> Iterator[Adversarial]:
            for adversarial in first_success(target, prompts, variant, 1, ctx, alone=True):
                yield adversarial
                Kept(ctx, adversarial.prompt.id).forget()

        return attack


def thin(losses: Sequence[float], n: int = _LOSSES) -> list[float]:
    """Return at most ``n`` of the losses, evenly spaced, with the first and the last."""
    if len(losses) <= n:
        return list(losses)
    return [losses[i * (len(losses) - 1) // (n - 1)] for i in range(n)]


def ends_padded(model: Model, rows: Sequence[Sequence[int]], context: int) -> Tensor:
    """Return rows of ids as the encoder reads them, padded with end tokens, ``(rows, context)``."""
    import torch

    tokenizer = model.pipe.tokenizer
    end = tokenizer.eos_token_id
    framed_rows = [framed(tokenizer, row, padding=end, length=context) for row in rows]
    return torch.tensor(framed_rows, device=token_table(model).device)


def losses_of(
    model: Model, rows: Sequence[Sequence[int]], context: int, loss: Callable[[Tensor], Tensor]
) -> list[float]:
    """Return the loss of each row of ids; ``loss`` takes hidden states ``(batch, context, width)``."""
    import torch

    table, found = token_table(model), list[float]()
    for start in range(0, len(rows), _TEXTS):
        ids = ends_padded(model, rows[start : start + _TEXTS], context)
        with torch.no_grad():
            hidden = model.encode_embeddings(table[ids]).float()
        found += loss(hidden).tolist()
    return found
