"""The search that UnlearnDiffAtk and P4D share, on a batch of prompts.

For each prompt::

    if the judge finds the concept in the prompt's own image: done
    for each round (a timestep, from low noise to high):
        for each step of the round:
            x = noise the latent of the original's image at the timestep
            error = the victim's prediction for x, given prompt and free tokens - the wanted noise
            take an Adam step of the variable that stands for the free tokens
        read the variable as token ids; decode prompt and free tokens to a string
        if the judge finds the concept in that string's image: done

The variable and Adam's moments are carried over from round to round. Prompts are independent: each has
its own random stream and its own optimiser state, so results do not depend on the batch. A finished prompt
leaves the batch and the next one enters. A search that was killed resumes from the latest state on disk.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from attacks._adam import Adam, adam_step
from attacks._insertion import FREE, arrange, embedded
from attacks._resume import Resume
from attacks._slot import Slot
from attacks._texts import decode, token_table
from attacks._token_attack import FreeTokens
from attacks._trials import judged
from bench import Adversarial, Context, Cost, Model, PluginError, Prompt, Room, Target, framed

if TYPE_CHECKING:
    from PIL.Image import Image

Parameters = TypeVar("Parameters", bound=FreeTokens)
_Item = TypeVar("_Item")
_HALF_SCALE = 2.0**12  # of the loss in float16, where a gradient of 1e-8 would be zero


class TokenSearch(ABC, Generic[Parameters]):
    """The search on one victim. A subclass says what the variable is and which noise is wanted.

    Args:
        attack: The parameters.
        target: Victim, original, concept and criterion.
        ctx: Device, batch size, and where states are kept.
    """

    padding: int | None = None  # token id after the end token; None is the tokenizer's own
    decoupled = False  # AdamW instead of Adam
    step_cost = Cost(forward=1, backward=1, text_forward=1, text_backward=1)

    def __init__(self, attack: Parameters, target: Target, ctx: Context) -> None:
        self.attack, self.target, self.ctx = attack, target, ctx
        self.model: Model = target.victim
        self.tokenizer = self.model.pipe.tokenizer
        self.table = token_table(self.model)
        self.times = attack.schedule()
        self.fits = Room(ctx.batch_size)  # slots that fit into memory together
        context = self.tokenizer.model_max_length
        self.ids_judged: bool = getattr(attack, "judge_ids", False)  # p4d-official never does
        self.of_the_run = getattr(attack, "stream", "prompt") == "run"
        self.room = context - 1  # tokens beside the start token; the end token may be cut off
        attack.check_plan(target.concept, target.original.world, (), context)

    # ------------------------------------------------------------------ what a subclass decides
    @abstractmethod
    def start(self, prompt: Prompt, tokens: int) -> Tensor:
        """Return the variable's first value, with one row per free token."""

    @abstractmethod
    def embed(self, slots: Sequence[Slot]) -> tuple[Tensor, Tensor]:
        """Return the tensor whose gradient is taken, and the free tokens' embeddings computed from it.

        Embeddings are ``(slots, most free tokens, width)``; a prompt with fewer free tokens than others has
        unused rows at the end.
        """

    @abstractmethod
    def read(self, slot: Slot) -> list[int]:
        """Return the variable as token ids."""

    def move(self, slots: Sequence[Slot], grad: Tensor) -> None:
        """Take one optimiser step of each slot, with gradients ``(slots, most free tokens, ...)``."""
        moved = adam_step([s.adam for s in slots], [s.variable for s in slots], grad)
        for slot, variable in zip(slots, moved, strict=True):
            slot.variable = variable

    def own(self, prompts: Sequence[Prompt], pictures: Sequence[Image]) -> list[dict[str, Tensor]]:
        """Return what else the attack keeps of each prompt, given the original's images."""
        return [{} for _ in prompts]

    def latents(self, prompts: Sequence[Prompt], pictures: Sequence[Image]) -> Tensor:
        """Return the latents of the original's images, which are noised."""
        return self.model.encode_images(pictures)

    def begin(self, slots: Sequence[Slot]) -> None:
        """Begin a round."""
        for slot in slots:
            self.restart(slot)

    def restart(self, slot: Slot) -> None:
        """Restart a slot's random stream for a round.

        In the official code, making an image seeds the stream and draws the initial noise from it.
        """
        seed = self.ctx.seed("search", slot.prompt.id) if self.of_the_run else slot.prompt.seed
        slot.rng = torch.Generator().manual_seed(seed)
        torch.randn(slot.latent.shape, generator=slot.rng)

    def draw_times(self, slots: Sequence[Slot]) -> list[int]:
        """Return the timesteps of this step."""
        return [self.times[s.round] for s in slots]

    def goal(self, slots: Sequence[Slot], noise: Tensor) -> Tensor:
        """Return the wanted noise; here it is the noise that was added."""
        return noise

    # ------------------------------------------------------------------ the search
    def run(self, prompts: Sequence[Prompt]) -> Iterator[Adversarial]:
        """Yield each prompt when its search ends."""
        resume = Resume(self.ctx, [p.id for p in prompts])
        slots = [Slot.of(state, self.table.device) for state in resume.load().values()]
        known = {slot.prompt.id for slot in slots}
        queue = [prompt for prompt in prompts if prompt.id not in known]
        each = len(self.times) * self.attack.steps

        def keep() -> None:
            resume.keep({slot.prompt.id: slot.state() for slot in slots})

        while queue or slots:
            if ended := [slot for slot in slots if slot.done]:
                keep()  # ended slots as well: the harness does not have them yet
                yield from map(self.result, ended)
                slots = [slot for slot in slots if not slot.done]
                keep()
            elif queue and (room := self.ctx.batch_size - len(slots)) > 0:
                fresh, queue = queue[:room], queue[room:]
                for item in self.open(fresh):
                    if isinstance(item, Slot):
                        slots.append(item)
                    else:
                        yield item
                keep()
            else:
                self.iterate(slots)
                left = each * len(queue) + sum(each - len(s.losses) for s in slots if not s.done)
                self.ctx.progress("steps", each * len(prompts) - left, each * len(prompts))
                if resume.due:
                    keep()

    def open(self, prompts: Sequence[Prompt]) -> Iterator[Adversarial | Slot]:
        """Try the prompts as they are; open a slot for each that fails and is not too long."""
        hits = judged(self.target, [Adversarial(prompt) for prompt in prompts])
        left: dict[Prompt, list[int]] = {}
        ids = self.model.token_ids([prompt.text for prompt in prompts])
        for prompt, row, hit in zip(prompts, ids, hits, strict=True):
            kept = row[: self.limit(row)]
            if hit:
                yield Adversarial(prompt, cost=Cost(images=1), trace={"success": True, "round": 0})
            elif self.attack.long_prompts == "skip" and len(kept) < len(row):
                trace = {"success": False, "too_long": len(row)}
                yield Adversarial(prompt, cost=Cost(images=1), trace=trace)
            else:
                left[prompt] = kept
        if not left:
            return
        pictures = self.attack.picture(self.target.original, list(left))
        latents, own = self.latents(list(left), pictures), self.own(list(left), pictures)
        for (prompt, row), latent, tensors in zip(left.items(), latents, own, strict=True):
            variable = self.start(prompt, self.attack.free(row)).to(self.table.device)
            adam = Adam(variable, self.attack.lr, self.attack.weight_decay, self.decoupled)
            yield Slot(prompt, row, latent, variable, adam, tensors)

    def limit(self, ids: Sequence[int]) -> int:
        """Return how many of a prompt's tokens may stay."""
        if self.attack.insertion == "replace":  # the text has none of them
            return len(ids)
        longest = self.attack.longest or len(ids) + 2
        return max(0, min(self.room - self.attack.free(ids), longest - 2))

    def iterate(self, slots: list[Slot]) -> None:
        """Take one Adam step of every slot; begin the round before its first, evaluate after its last."""
        start, n = time.perf_counter(), self.attack.steps
        if first := [slot for slot in slots if len(slot.losses) % n == 0]:
            self.begin(first)
        self.in_parts(slots, self.step_or_restore)
        if last := [slot for slot in slots if len(slot.losses) % n == 0]:
            self.evaluate(last)
        share = Cost(seconds=(time.perf_counter() - start) / len(slots))
        for slot in slots:
            slot.cost += share

    def in_parts(self, items: list[_Item], work: Callable[[list[_Item]], None]) -> None:
        """Work on one batch after the other; if memory is too small, halve the batch."""
        for _ in self.fits.parts(len(items), lambda rows: work(items[rows])):
            pass

    def step_or_restore(self, slots: list[Slot]) -> None:
        """Take one Adam step; if memory is too small, restore the slots."""
        restores = [slot.snapshot() for slot in slots]
        try:
            self.step(slots)
        except torch.OutOfMemoryError:
            for restore in restores:
                restore()
            raise

    def step(self, slots: list[Slot]) -> None:
        """Take one Adam step of slots that fit into memory together."""
        leaf, free = self.embed(slots)
        x, t, noise = self.noised(slots)
        cond = self.model.encode_embeddings(self.assemble(slots, free))
        error = self.model.predict_noise(x, t, cond) - self.goal(slots, noise)
        loss = (error.abs() if self.attack.loss == "l1" else error.square()).mean((1, 2, 3))
        grad, losses = _gradient(loss, leaf, half=cond.dtype == torch.float16)
        self.move(slots, grad)
        for slot, value in zip(slots, losses, strict=True):
            slot.losses.append(value)
            slot.cost += self.step_cost

    def noised(self, slots: Sequence[Slot]) -> tuple[Tensor, Tensor, Tensor]:
        """Draw timesteps and noise from the slots' streams; return noised latents, timesteps and noise."""
        device = self.model.device
        t = torch.tensor(self.draw_times(slots)).to(device, non_blocking=True)
        draws = [torch.randn(s.latent.shape, generator=s.rng) for s in slots]
        noise = torch.stack(draws).to(device, non_blocking=True)
        return self.model.add_noise(torch.stack([s.latent for s in slots]), noise, t), t, noise

    def assemble(self, slots: Sequence[Slot], free: Tensor) -> Tensor:
        """Return the token embeddings of prompts with free tokens, as the text encoder reads them."""
        rows = [
            framed(
                self.tokenizer,
                arrange(slot.ids, [FREE] * len(slot.variable), self.attack.insertion),
                padding=self.padding,
            )
            for slot in slots
        ]
        ids = torch.tensor(rows).to(self.table.device, non_blocking=True)
        return embedded(self.table, ids, free)

    # ------------------------------------------------------------------ the end of a round
    def evaluate(self, slots: list[Slot]) -> None:
        """End a round: read each variable as a string, make the string's image and judge it."""
        self.read_all(slots)
        hits = judged(self.target, [Adversarial(slot.trial) for slot in slots])
        if self.ids_judged:
            self.judge_ids(slots, hits)
        for slot, hit in zip(slots, hits, strict=True):
            slot.round += 1
            slot.success = hit
            slot.done = hit or slot.round == len(self.times)

    def read_all(self, slots: Sequence[Slot]) -> None:
        """Read each variable as token ids, and decode them with the prompt to a string."""
        for slot in slots:
            slot.found = self.read(slot)
            slot.text = decode(self.tokenizer, self._ids(slot))
            slot.cost += Cost(images=1)  # the string's

    def judge_ids(self, slots: Sequence[Slot], hits: Sequence[bool]) -> None:
        """Note whether the ids themselves succeed, which the attack does not use.

        Ids that are the same after decoding and tokenising need no image of their own.
        """
        same = [self._round_trip(slot) for slot in slots]
        for slot, hit, equal in zip(slots, hits, same, strict=True):
            slot.token_success = slot.token_success or (equal and hit)
        differ = [s for s, equal in zip(slots, same, strict=True) if not (equal or s.token_success)]
        if not differ:
            return
        free = pad_sequence([self.table[slot.found] for slot in differ], batch_first=True)
        with torch.no_grad():
            cond = self.model.encode_embeddings(self.assemble(differ, free))
        trials = [Adversarial(s.trial, embedding=c) for s, c in zip(differ, cond, strict=True)]
        for slot, hit in zip(differ, judged(self.target, trials), strict=True):
            slot.token_success = hit
            slot.cost += Cost(images=1, text_forward=1)

    def result(self, slot: Slot) -> Adversarial:
        """Return what was found for a prompt whose search has ended."""
        return Adversarial(slot.trial, cost=slot.cost, trace=self.trace(slot))

    def trace(self, slot: Slot) -> dict[str, Any]:
        """Return what the record shows of a search."""
        n = self.attack.steps
        rounds = range(0, len(slot.losses), n)
        of_ids = {"token_success": slot.token_success} if self.ids_judged else {}
        return {
            "success": slot.success,
            **of_ids,
            "round": slot.round,
            "ids": slot.found,
            "round_trip": self._round_trip(slot),
            "losses": [round(sum(slot.losses[i : i + n]) / n, 5) for i in rounds],
            "iterations": len(slot.losses),
        }

    def _ids(self, slot: Slot) -> list[int]:
        return arrange(slot.ids, slot.found, self.attack.insertion)

    def _round_trip(self, slot: Slot) -> bool:
        """Say whether tokenising the string gives the same ids again."""
        return self.model.token_ids([slot.text])[0] == self._ids(slot)


def _gradient(loss: Tensor, leaf: Tensor, *, half: bool) -> tuple[Tensor, list[float]]:
    """Return the gradient of a batch of losses, scaled up in between where float16 needs that.

    The losses' values come with it. Here alone a step waits for the device.
    """
    scale = _HALF_SCALE if half else 1.0  # a power of two rounds nothing
    (grad,) = torch.autograd.grad(loss.sum() * scale, leaf)
    *losses, gradient_is_finite = read_back(torch.cat([loss.detach(), grad.isfinite().all()[None]]))
    if not (all(map(math.isfinite, losses)) and gradient_is_finite):
        advice = "; give --dtype bf16 or fp32" if half else ": its weights may not be"
        raise PluginError(f"the victim's prediction or its gradient is not finite{advice}")
    return grad / scale, losses


def read_back(values: Tensor) -> list[float]:
    """Wait for the device, and return its values."""
    found: list[float] = values.tolist()
    return found
