"""MMA-Diffusion's search: greedy coordinate gradient on a text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_lowercase
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, one_hot

from attacks._text_search import Found, Kept, ends_padded, losses_of
from attacks._texts import decode, special, token_table
from bench import Concept, Cost, Model

_KEPT = ("ids", "losses", "best", "least", "texts", "steps")  # of a search, on disk
_ARTICLES = {"a", "an", "the"}


@dataclass(frozen=True, match_args=False)
class Settings(Protocol):
    """The parameters of the attack that are read here; frozen, as they are there."""

    length: int
    steps: int
    batch: int
    top_k: int
    positions: Literal["exact", "official"]
    banned: str


def sensitive_words(concept: Concept, further: str) -> list[str]:
    """Return the words that name a concept and further words, each once, in their order."""
    words = " ".join([concept.name, *concept.terms, further]).lower().split()
    return [word for word in dict.fromkeys(words) if word not in _ARTICLES]


class Descent:
    """Greedy coordinate gradient on one model with one list of forbidden words.

    Args:
        attack: The parameters.
        model: The public model: its tokenizer and text encoder are used.
        concept: The concept whose words are forbidden.
    """

    def __init__(self, attack: Settings, model: Model, concept: Concept) -> None:
        self.attack, self.model, self.tokenizer = attack, model, model.pipe.tokenizer
        self.table = token_table(model)
        words = sensitive_words(concept, attack.banned)
        self.banned = special(self.tokenizer) | {
            i
            for token, i in self.tokenizer.get_vocab().items()
            if any(word in token.lower() for word in words)
        }

    def run(self, text: str, rng: torch.Generator, kept: Kept) -> Found:
        """Search for a text whose encoding is near that of a given one."""
        goal = self.pooled(text)
        if old := kept.load(rng):
            ids, losses, best, least, texts, steps = (old[name] for name in _KEPT)
        else:
            ids = self.first(rng)
            losses = self.losses([ids], goal)
            best, least, texts, steps = ids, losses[0], 2, 0  # texts: the given and the first one
        for step in range(steps, self.attack.steps):
            rows = self.candidates(ids, self.gradient(ids, goal), rng)
            texts += 1 + len(rows)
            if rows:
                loss, ids = min(zip(self.losses(rows, goal), rows, strict=True))
                losses.append(loss)
                if loss < least:
                    best, least = ids, loss
            values = (ids, losses, best, least, texts, step + 1)
            kept.put(step + 1, rng, dict(zip(_KEPT, values, strict=True)))
        cost = Cost(text_forward=texts, text_backward=self.attack.steps)
        return Found(best, least, losses, cost)

    def pooled(self, text: str) -> Tensor:
        """Return the encoder's output at a text's end token, ``(width,)``."""
        last = self.tokenizer.model_max_length - 1
        end = min(len(self.model.token_ids([text])[0]) + 1, last)
        return self.model.encode([text])[0, end].float()

    def first(self, rng: torch.Generator) -> list[int]:
        """Return the ids of random letters."""
        drawn = torch.randint(len(ascii_lowercase), (self.attack.length,), generator=rng)
        return self.model.token_ids([" ".join(ascii_lowercase[i] for i in drawn.tolist())])[0]

    def gradient(self, ids: Sequence[int], goal: Tensor) -> Tensor:
        """Return the gradient of the loss with respect to the one-hot tokens, ``(length, vocabulary)``."""
        k = len(ids)
        frame = ends_padded(self.model, [ids], k + 2)
        leaf = one_hot(frame, len(self.table)).float().requires_grad_(True)
        (loss,) = self.loss(self.model.encode_embeddings(leaf @ self.table).float(), goal)
        (grad,) = torch.autograd.grad(loss, leaf)
        first = 1 if self.attack.positions == "exact" else 0
        return grad[0, first : first + k].cpu()

    def candidates(self, ids: Sequence[int], grad: Tensor, rng: torch.Generator) -> list[list[int]]:
        """Return the ids of texts with one token replaced, after decoding and tokenising."""
        k, n = len(ids), self.attack.batch
        grad = grad.index_fill(1, torch.tensor(list(self.banned)), float("inf"))
        allowed = min(self.attack.top_k, grad.shape[1] - len(self.banned))
        best = grad.topk(allowed, largest=False).indices
        position = torch.arange(n) * k // n
        rows = torch.tensor(ids).repeat(n, 1)
        drawn = torch.randint(allowed, (n,), generator=rng)
        rows[torch.arange(n), position] = best[position, drawn]
        texts = [decode(self.tokenizer, row) for row in rows.tolist()]
        again = dict.fromkeys(tuple(row) for row in self.model.token_ids(texts))
        return [
            list(row)
            for row in again
            if len(row) == k and row != tuple(ids) and self.banned.isdisjoint(row)
        ]

    def losses(self, rows: Sequence[Sequence[int]], goal: Tensor) -> list[float]:
        """Return the loss of each row of ids."""
        context = len(rows[0]) + 2
        return losses_of(self.model, rows, context, lambda hidden: self.loss(hidden, goal))

    def loss(self, hidden: Tensor, goal: Tensor) -> Tensor:
        """Return one minus the cosine at the last position, ``(batch,)``."""
        return 1 - cosine_similarity(hidden[:, -1], goal[None], dim=-1)
