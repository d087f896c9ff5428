"""The loop that UnlearnDiffAtk and P4D share: free tokens, moved by the denoiser's error, batched.

For each prompt: if it already succeeds, it is done. Else, for each timestep from low noise to high, a
number of Adam steps on a variable that stands for free tokens; then the variable is read as token ids,
decoded to a *string*, an image is made from that string, and the prompt is done if the judge finds the
concept. Variable and Adam's moments are carried over from timestep to timestep.

Prompts are independent: each has its own draws (from its own seed, restarted at each timestep as the
official code does on a CPU) and its own optimiser state, so the batch does not matter. A prompt that is
done leaves the batch and the next one takes its place.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import InitVar, dataclass, field, replace
from typing import Any, Literal, Self, TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bench import (
    Adversarial,
    Concept,
    Context,
    Cost,
    Model,
    Prompt,
    Sample,
    Target,
    World,
    fill,
)

Preset = Literal["pruning", "official"]
PRESETS = {"pruning": range(10, 1000, 100), "official": range(10, 1000, 20)}
"""Attacked timesteps: the pruning paper's ten, UnlearnDiffAtk's fifty."""

Insertion = Literal["prefix", "suffix", "mid", "insert", "per-k-words", "replace"]
LongPrompts = Literal["skip", "cut"]
LONGEST = 60  # tokens with start and end; UnlearnDiffAtk's data set leaves longer prompts out
Item = TypeVar("Item")
_WORDS = 3  # prompt tokens between two free ones, for "per-k-words"
_FREE = -1  # stands for a free token among ids


def arrange(prompt: Sequence[Item], free: Sequence[Item], insertion: Insertion) -> list[Item]:
    """Return a prompt's tokens with the free ones among them, without start and end.

    prefix: in front. suffix: behind. mid: in the middle. insert: one after every ``L // (k + 1)``
    prompt tokens. per-k-words: one before every three prompt tokens. replace: they alone.
    """
    old, new = list(prompt), list(free)
    match insertion:
        case "prefix":
            return new + old
        case "suffix":
            return old + new
        case "mid":
            half = len(old) // 2
            return old[:half] + new + old[half:]
        case "insert":
            gap = len(old) // (len(new) + 1)
            mixed = [x for i, a in enumerate(new) for x in (*old[i * gap : (i + 1) * gap], a)]
            return mixed + old[len(new) * gap :]
        case "per-k-words":
            mixed = [x for i, a in enumerate(new) for x in (a, *old[i * _WORDS : (i + 1) * _WORDS])]
            return mixed + old[len(new) * _WORDS :]
        case "replace":
            return new


@dataclass
class Slot:
    """One prompt under attack."""

    prompt: Prompt
    ids: list[int]
    context: Tensor  # all token ids, with start, end, padding and places of free tokens
    latent: Tensor
    variable: Tensor  # one row per free token
    adam: Adam
    round: int = 0
    cost: Cost = field(default_factory=lambda: Cost(images=1))
    losses: list[float] = field(default_factory=list)
    found: list[int] = field(default_factory=list)
    text: str = ""
    token_success: bool = False
    rng: torch.Generator = field(default_factory=torch.Generator)
    wanted: Tensor | None = None  # the original's conditioning, where the original is asked
    goals: list[Tensor] = field(default_factory=list)  # its noise in each step of the round


@dataclass
class Adam:
    """Adam's moments of one variable: ``torch.optim.Adam``, or ``AdamW`` if decoupled."""

    variable: InitVar[Tensor]
    lr: float
    weight_decay: float
    decoupled: bool = False
    step: int = 0

    def __post_init__(self, variable: Tensor) -> None:
        self.m = self.v = torch.zeros_like(variable)


def adam_step(adams: Sequence[Adam], variables: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
    """Return variables after a step of each one's own Adam, all in one go.

    Args:
        adams: Alike but for moments and steps taken.
        variables: ``(tokens, width)`` each; they may differ in tokens.
        grad: ``(variables, most tokens, width)``; what is behind a variable's own tokens is not read.
    """
    own = adams[0]
    x, m, v = (
        pad_sequence(list(rows), batch_first=True)
        for rows in (variables, [a.m for a in adams], [a.v for a in adams])
    )
    if own.decoupled:
        x = x * (1 - own.lr * own.weight_decay)
    else:
        grad = grad + own.weight_decay * x
    m = 0.9 * m + 0.1 * grad
    v = 0.999 * v + 0.001 * grad * grad
    for i, (adam, variable) in enumerate(zip(adams, variables, strict=True)):
        adam.step += 1
        adam.m, adam.v = m[i, : len(variable)], v[i, : len(variable)]
    m_share, v_share = (
        torch.tensor([1 - beta**a.step for a in adams], device=x.device).view(-1, 1, 1)
        for beta in (0.9, 0.999)
    )
    x = x - own.lr * (m / m_share) / ((v / v_share).sqrt() + 1e-8)
    return [row[: len(old)] for row, old in zip(x, variables, strict=True)]


@dataclass(frozen=True)
class TokenAttack:
    """Settings that UnlearnDiffAtk and P4D share.

    Args:
        tokens: Free tokens; 5 for nudity, 3 otherwise.
        insertion: Where they stand: "prefix" (official), "suffix", "mid", "insert", "per-k-words".
        timesteps: "pruning" attacks at 10 timesteps (10, 110, ... 910), "official" at 50.
        phase: Added to every timestep; 80 gives the pruning paper's other reading, 90, 190, ... 990.
        iterations: Adam steps at each timestep.
        lr: Adam's learning rate.
        weight_decay: L2 term that is added to the gradient.
        loss: Distance between predicted and wanted noise.
        long_prompts: What happens to a prompt of more than 60 tokens (start and end counted), or without
            room for the free ones: "skip" it (official; it counts as not attacked), or "cut" its end.
        target_steps: LMS steps of the image that is noised; ``None`` is the model's own sampler.
        target_guidance: Its guidance; ``None`` is the prompt's own.
    """

    tokens: int | None = None
    insertion: Insertion = "prefix"
    timesteps: Preset = "pruning"
    phase: int = 0
    iterations: int = 40
    lr: float = 0.01
    weight_decay: float = 0.1
    loss: Literal["l2", "l1"] = "l2"
    long_prompts: LongPrompts = "skip"
    target_steps: int | None = None
    target_guidance: float | None = None

    def resolve(self, concept: Concept, world: World) -> Self:
        """Return the attack with tokens, and on photographs the official target image, filled in."""
        full: Self = fill(self, tokens=5 if concept.kind == "nsfw" else 3)
        return fill(full, target_steps=25, target_guidance=7.5) if world == "photo" else full


class TokenSearch(ABC):
    """The attack on one victim. What the variable is, and which noise is asked for, is the subclass's.

    Args:
        attack: The resolved attack.
        target: Victim, original, concept, judge.
        ctx: Where and how large a batch.
    """

    padding: int | None = None  # token id behind the end token; None is the tokenizer's own
    step_cost = Cost(forward=1, backward=1, text_forward=1, text_backward=1)

    def __init__(self, attack: Any, target: Target, ctx: Context) -> None:
        self.attack, self.target, self.ctx = attack, target, ctx
        self.model: Model = target.victim
        self.tokenizer = self.model.pipe.tokenizer
        self.table = self.model.pipe.text_encoder.get_input_embeddings().weight.detach().float()
        self.times = self.schedule()
        self.fits = ctx.batch_size
        self.room = self.tokenizer.model_max_length - 1  # with no room for an end token left

    # ------------------------------------------------------------------ what differs
    def schedule(self) -> list[int]:
        """Return the timestep of each round."""
        return [t + self.attack.phase for t in PRESETS[self.attack.timesteps]]

    def free(self, ids: Sequence[int]) -> int:
        """Return how many free tokens a prompt gets."""
        return int(self.attack.tokens)

    @abstractmethod
    def start(self, prompt: Prompt, tokens: int) -> Tensor:
        """Return the variable's first value, a row a free token."""

    @abstractmethod
    def embed(self, slots: Sequence[Slot]) -> tuple[Tensor, Tensor]:
        """Return what the gradient is of, and the free tokens' embeddings, ``(slots, tokens, width)``.

        Prompts with fewer free tokens than others have unused rows at the end.
        """

    def move(self, slots: Sequence[Slot], grad: Tensor) -> None:
        """Take one optimiser step of each, on gradients ``(slots, tokens, ...)``."""
        moved = adam_step([s.adam for s in slots], [s.variable for s in slots], grad)
        for slot, variable in zip(slots, moved, strict=True):
            slot.variable = variable

    @abstractmethod
    def read(self, slot: Slot) -> list[int]:
        """Return the variable as token ids."""

    def begin(self, slots: Sequence[Slot]) -> None:
        """Start a round."""
        for slot in slots:
            self.restart(slot)

    def goal(self, slots: Sequence[Slot], noise: Tensor) -> Tensor:
        """Return the noise that the victim should predict; here, the noise that was added."""
        return noise

    def wanted(self, prompts: Sequence[Prompt]) -> Sequence[Tensor | None]:
        """Return the original's conditioning of each prompt, if it is asked."""
        return [None] * len(prompts)

    @property
    def steps(self) -> int:
        """Optimiser steps of a round."""
        return int(self.attack.iterations)

    def restart(self, slot: Slot) -> None:
        """Prepare a prompt's random stream for a round.

        The official code's is reseeded by each image, which draws its latents from it.
        """
        slot.rng = torch.Generator().manual_seed(slot.prompt.seed)
        torch.randn(slot.latent.shape, generator=slot.rng)

    def draw_times(self, slots: Sequence[Slot]) -> list[int]:
        """Return this step's timesteps."""
        return [self.times[s.round] for s in slots]

    # ------------------------------------------------------------------ the loop
    def run(self, prompts: Sequence[Prompt]) -> Iterator[Adversarial]:
        """Yield each prompt when it is done."""
        queue, slots = list(prompts), list[Slot]()
        while queue or slots:
            if (room := self.ctx.batch_size - len(slots)) > 0 and queue:
                fresh, queue = queue[:room], queue[room:]
                for item in self.open(fresh):
                    if isinstance(item, Slot):
                        slots.append(item)
                    else:
                        yield item
                continue
            start = time.perf_counter()
            for i in range(self.steps):
                self.iterate(slots, begins=i == 0)
            done = list(self.evaluate(slots))
            share = Cost(seconds=(time.perf_counter() - start) / len(slots))
            for slot in slots:
                slot.cost += share
            yield from (replace(a, cost=a.cost + share) for a in done)
            slots = [slot for slot in slots if slot.round < len(self.times)]

    def open(self, prompts: Sequence[Prompt]) -> Iterator[Adversarial | Slot]:
        """Try the prompts as they are; open a slot for each that fails and has room."""
        images = self.model.generate(prompts)
        samples = [Sample(p, image) for p, image in zip(prompts, images, strict=True)]
        ids = self.model.token_ids([p.text for p in prompts])
        opened: list[tuple[Prompt, list[int]]] = []
        for prompt, row, success in zip(prompts, ids, self.target.criterion(samples), strict=True):
            kept = row[: min(self.room - self.free(row), LONGEST - 2)]
            if success:
                yield Adversarial(prompt, cost=Cost(images=1), trace={"success": True, "round": 0})
            elif self.attack.long_prompts == "skip" and len(kept) < len(row):
                trace = {"success": False, "too_long": len(row)}
                yield Adversarial(prompt, cost=Cost(images=1), trace=trace)
            else:
                opened.append((prompt, kept))
        if not opened:
            return
        kept_prompts = [prompt for prompt, _ in opened]
        latents, wanted = self.latents(kept_prompts), self.wanted(kept_prompts)
        for (prompt, row), latent, goal in zip(opened, latents, wanted, strict=True):
            tokens = self.free(row)
            context = self._context(row, [_FREE] * tokens)
            variable = self.start(prompt, tokens).to(self.table.device)
            yield Slot(prompt, row, context, latent, variable, self.adam(variable), wanted=goal)

    def adam(self, variable: Tensor) -> Adam:
        """Return a new optimiser."""
        return Adam(variable, self.attack.lr, self.attack.weight_decay)

    def latents(self, prompts: Sequence[Prompt]) -> Tensor:
        """Return latents of the original's images of the prompts."""
        painter = self.target.original
        if self.attack.target_steps is not None:
            painter = painter.resampled("lms", self.attack.target_steps)
        guidance = self.attack.target_guidance
        if guidance is not None:
            prompts = [replace(p, guidance=guidance) for p in prompts]
        return self.model.encode_images(painter.generate(prompts))

    def iterate(self, slots: list[Slot], *, begins: bool) -> None:
        """One Adam step of every slot, as one batch; the first of a round begins it."""
        if begins:
            self.begin(slots)

        def attempt(part: list[Slot]) -> None:
            before = [(copy(s.adam), s.variable, s.rng.get_state()) for s in part]
            try:
                self.step(part)
            except torch.OutOfMemoryError:
                for slot, (adam, variable, state) in zip(part, before, strict=True):
                    slot.adam, slot.variable = adam, variable
                    slot.rng.set_state(state)
                raise

        self.in_parts(slots, attempt)

    def in_parts(self, items: list[Item], work: Callable[[list[Item]], None]) -> None:
        """Work on batch after batch; where memory ends, batches are halved."""
        done = 0
        while done < len(items):
            part = items[done : done + self.fits]
            try:
                work(part)
            except torch.OutOfMemoryError:
                if len(part) == 1:
                    raise
                self.fits = len(part) // 2
            else:
                done += len(part)

    def step(self, slots: list[Slot]) -> None:
        """One Adam step of slots that fit into memory together."""
        leaf, free = self.embed(slots)
        times = self.draw_times(slots)
        noise = torch.stack([torch.randn(s.latent.shape, generator=s.rng) for s in slots])
        x, t, noise = self.noised([s.latent for s in slots], times, noise)
        cond = self.model.encode_embeddings(self.assemble(slots, free))
        error = self.model.predict_noise(x, t, cond) - self.goal(slots, noise)
        loss = (error.abs() if self.attack.loss == "l1" else error.square()).mean((1, 2, 3))
        (grad,) = torch.autograd.grad(loss.sum(), leaf)
        self.move(slots, grad)
        for slot, value in zip(slots, loss.tolist(), strict=True):
            slot.losses.append(value)
            slot.cost += self.step_cost

    def noised(
        self, latents: Sequence[Tensor], times: Sequence[int], noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return latents with noise, their timesteps, and the noise, where the model is."""
        noise = noise.to(self.model.device)
        t = torch.tensor(times, device=self.model.device)
        alpha = self.model.alphas[t].view(-1, 1, 1, 1)
        return alpha.sqrt() * torch.stack(list(latents)) + (1 - alpha).sqrt() * noise, t, noise

    def evaluate(self, slots: list[Slot]) -> Iterator[Adversarial]:
        """Decode, make an image from the string, judge; yield the slots that are done."""
        trials = self.trials(slots)
        hits = self._judge(trials)
        self._judge_tokens(slots, trials, hits)
        for slot, trial, success in zip(slots, trials, hits, strict=True):
            slot.round += 1
            if success or slot.round == len(self.times):
                yield Adversarial(trial, cost=slot.cost, trace=self._trace(slot, success))
                slot.round = len(self.times)

    def trials(self, slots: Sequence[Slot]) -> list[Prompt]:
        """Read each variable, and return its string as a prompt whose image is about to be made."""
        for slot in slots:
            slot.found = self.read(slot)
            slot.text = decode(self.tokenizer, self._ids(slot))
            slot.cost += Cost(images=1)
        return [replace(slot.prompt, text=slot.text) for slot in slots]

    def assemble(self, slots: Sequence[Slot], free: Tensor) -> Tensor:
        """Return token embeddings of the whole context, ``[SOT | prompt and free tokens | EOT ...]``."""
        ids = torch.stack([slot.context for slot in slots])
        lengths = torch.tensor([len(slot.variable) for slot in slots])
        used = torch.arange(free.shape[1]) < lengths[:, None]
        embeddings = self.table[ids.clamp(min=0)]
        embeddings[ids == _FREE] = free[used.to(free.device)]
        return embeddings

    def _context(self, ids: Sequence[int], free: Sequence[int]) -> Tensor:
        tokenizer, length = self.tokenizer, self.tokenizer.model_max_length
        own = tokenizer.pad_token_id  # the end token again, but for Stable Diffusion 2
        padding = own if self.padding is None else self.padding
        row = [tokenizer.bos_token_id, *arrange(ids, free, self.attack.insertion)]
        row = [*row, tokenizer.eos_token_id, *[padding] * length][:length]
        return torch.tensor(row, device=self.table.device)

    # ------------------------------------------------------------------ judging
    def _judge(self, trials: Sequence[Prompt], embeddings: Tensor | None = None) -> Sequence[bool]:
        images = self.model.generate(trials, embeddings=embeddings)
        return self.target.criterion(
            [Sample(p, image) for p, image in zip(trials, images, strict=True)]
        )

    def _judge_tokens(
        self, slots: Sequence[Slot], trials: Sequence[Prompt], hits: Sequence[bool]
    ) -> None:
        """Note whether the ids themselves succeed; ids that survive decoding need no second image."""
        same = [self._round_trip(slot) for slot in slots]
        for slot, hit, kept in zip(slots, hits, same, strict=True):
            slot.token_success = slot.token_success or (kept and bool(hit))
        differ = [i for i, kept in enumerate(same) if not (kept or slots[i].token_success)]
        if differ:
            free = pad_sequence([self.table[slots[i].found] for i in differ], batch_first=True)
            with torch.no_grad():
                cond = self.model.encode_embeddings(self.assemble([slots[i] for i in differ], free))
            for i in differ:
                slots[i].cost += Cost(images=1, text_forward=1)
            for i, hit in zip(differ, self._judge([trials[i] for i in differ], cond), strict=True):
                slots[i].token_success = slots[i].token_success or bool(hit)

    def _ids(self, slot: Slot) -> list[int]:
        return arrange(slot.ids, slot.found, self.attack.insertion)

    def _round_trip(self, slot: Slot) -> bool:
        return self.model.token_ids([slot.text])[0] == self._ids(slot)

    def _trace(self, slot: Slot, success: bool) -> dict[str, Any]:
        n = self.steps
        rounds = range(0, len(slot.losses), n)
        return {
            "success": success,
            "token_success": slot.token_success,
            "round": slot.round,
            "ids": slot.found,
            "round_trip": self._round_trip(slot),
            "losses": [round(sum(slot.losses[i : i + n]) / n, 5) for i in rounds],
            "iterations": len(slot.losses),
        }


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """Return the string of token ids as the official code does: end tokens left out, spaces tidied."""
    text: str = tokenizer.decode([i for i in ids if i != tokenizer.eos_token_id])
    return (
        text if (tidy := getattr(tokenizer, "clean_up_tokenization", None)) is None else tidy(text)
    )
