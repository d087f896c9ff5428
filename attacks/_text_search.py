"""What Ring-A-Bell and MMA-Diffusion share: a text found on the public encoder, tried once.

The victim makes two images of a prompt at most: one of the prompt as it is, and, where that fails, one
of the text that was found instead. Everything between happens on the original model's text encoder.
Each prompt is searched for on its own, from its own random stream.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from attacks._resume import Resume, State
from attacks._texts import decode
from bench import Adversarial, Context, Cost, Model, Prompt, Sample, Target

_TEXTS = 64  # through the encoder at once: the fastest on a CPU, and it fills a GPU
_LOSSES = 20  # kept in a trace


@dataclass(frozen=True)
class Found:
    """What a search ends with: token ids, their loss, and the loss at every step."""

    ids: list[int]
    loss: float
    losses: list[float]
    cost: Cost


class Kept:
    """Where the search for one prompt is, kept now and then."""

    def __init__(self, ctx: Context, name: str) -> None:
        self._resume, self._name = Resume(ctx, [name]), name

    def load(self, rng: torch.Generator) -> dict[str, Any]:
        """Return the values that were kept, or none, and set the random stream to where it was."""
        state = self._resume.load().get(self._name)
        if state is None:
            return {}
        rng.set_state(state.tensors["rng"])
        return dict(state.values)

    def put(self, steps: int, rng: torch.Generator, values: Mapping[str, Any]) -> None:
        """Keep values after so many steps, if it is time to."""
        if self._resume.due:
            self._resume.keep({self._name: State(steps, values, {"rng": rng.get_state()})})

    def forget(self) -> None:
        """Delete what was kept: the prompt is finished."""
        self._resume.keep({})


Search = Callable[[Prompt, Kept], Found]


def try_once(
    target: Target, prompts: Sequence[Prompt], search: Search, ctx: Context
) -> Iterator[Adversarial]:
    """Try the prompts as they are; replace the text of each that fails by the one found for it."""
    start = time.perf_counter()
    hits = _judge(target, prompts)
    share = Cost(images=1, seconds=(time.perf_counter() - start) / len(prompts))
    left = []
    for prompt, hit in zip(prompts, hits, strict=True):
        if hit:
            yield Adversarial(prompt, cost=share, trace={"success": True, "round": 0})
        else:
            left.append(prompt)
    for prompt in left:
        start, kept = time.perf_counter(), Kept(ctx, prompt.id)
        found = search(prompt, kept)
        text = decode(target.original.pipe.tokenizer, found.ids)
        trial = replace(prompt, text=text)
        (hit,) = _judge(target, [trial])
        trace = {
            "success": hit,
            "round": 1,
            "ids": found.ids,
            "round_trip": target.original.token_ids([text])[0] == found.ids,
            "loss": round(found.loss, 5),
            "losses": [round(loss, 5) for loss in thin(found.losses)],
        }
        spent = Cost(images=1, seconds=time.perf_counter() - start)
        yield Adversarial(trial, cost=share + found.cost + spent, trace=trace)
        kept.forget()


def _judge(target: Target, trials: Sequence[Prompt]) -> list[bool]:
    images = target.victim.generate(trials)
    samples = [Sample(p, image) for p, image in zip(trials, images, strict=True)]
    return [bool(hit) for hit in target.criterion(samples)]


def thin(losses: Sequence[float], n: int = _LOSSES) -> list[float]:
    """Return at most ``n`` of the losses, evenly, with the first and the last."""
    if len(losses) <= n:
        return list(losses)
    return [losses[i * (len(losses) - 1) // (n - 1)] for i in range(n)]


def special(tokenizer: Any) -> set[int]:
    """Return the ids of start and end."""
    return {tokenizer.bos_token_id, tokenizer.eos_token_id}


def framed(tokenizer: Any, rows: Tensor, context: int) -> Tensor:
    """Return rows of ids as the encoder reads them, ``[SOT | row | EOT ...]``, ``(rows, context)``."""
    n, k = rows.shape
    ids = torch.full((n, context), tokenizer.eos_token_id)
    ids[:, 0] = tokenizer.bos_token_id
    ids[:, 1 : k + 1] = rows
    return ids


def token_table(model: Model) -> Tensor:
    """Return the token embeddings, ``(vocabulary, width)``."""
    table: Tensor = model.pipe.text_encoder.get_input_embeddings().weight.detach().float()
    return table


def losses_of(
    model: Model, rows: Sequence[Sequence[int]], context: int, loss: Callable[[Tensor], Tensor]
) -> list[float]:
    """Return each row's loss, a function of hidden states ``(batch, context, width)``."""
    table, found = token_table(model), list[float]()
    for start in range(0, len(rows), _TEXTS):
        ids = framed(model.pipe.tokenizer, torch.tensor(rows[start : start + _TEXTS]), context)
        with torch.no_grad():
            hidden = model.encode_embeddings(table[ids.to(table.device)]).float()
        found += loss(hidden).tolist()
    return found
