"""The loop that UnlearnDiffAtk and P4D share: free tokens, moved by the denoiser's error, batched.

For each prompt: if it already succeeds, it is done. Else, for each timestep from low noise to high, a
number of Adam steps on a variable that stands for free tokens; then the variable is read as token ids,
decoded to a *string*, an image is made from that string, and the prompt is done if the judge finds the
concept. Variable and Adam's moments are carried over from timestep to timestep.

Prompts are independent: each has its own draws (from its own seed, restarted at each timestep as the
official code does on a CPU) and its own optimiser state, so the batch does not matter. A prompt that is
done leaves the batch and the next one takes its place. A search that was killed goes on from the last
state that was kept (:mod:`attacks._resume`).
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, Protocol, TypeVar

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from attacks._adam import Adam, adam_step
from attacks._resume import Resume, State, done, finished
from attacks._texts import check_room, decode
from bench import (
    Adversarial,
    Concept,
    Context,
    Cost,
    Model,
    PluginError,
    Prompt,
    Sample,
    Target,
    World,
    by_kind,
)

if TYPE_CHECKING:
    from PIL.Image import Image

Preset = Literal["pruning", "official"]
PRESETS = {"pruning": range(10, 1000, 100), "official": range(10, 1000, 20)}
"""Attacked timesteps: the pruning paper's ten, UnlearnDiffAtk's fifty."""

Insertion = Literal["prefix", "suffix", "mid", "insert", "per-k-words", "replace"]
LongPrompts = Literal["skip", "cut"]
Item = TypeVar("Item")
_WORDS = 3  # prompt tokens between two free ones, for "per-k-words"
_FREE = -1  # stands for a free token among ids
_HALF_SCALE = 2.0**12  # of the loss of a model in float16, in which a gradient of 1e-8 is nothing
_OWN = BeforeValidator(lambda value: None if value == "own" else value)


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


class Settings(Protocol):
    """What the search asks of an attack."""

    @property
    def insertion(self) -> Insertion:
        """Where free tokens stand."""
        ...

    @property
    def longest(self) -> int | None:
        """Tokens, start and end included, of the longest prompt that is attacked as it is."""
        ...

    @property
    def long_prompts(self) -> LongPrompts:
        """What becomes of a longer one."""
        ...

    @property
    def lr(self) -> float:
        """Adam's learning rate."""
        ...

    @property
    def weight_decay(self) -> float:
        """Its weight decay."""
        ...

    @property
    def loss(self) -> Literal["l2", "l1"]:
        """Distance between predicted and wanted noise."""
        ...

    @property
    def steps(self) -> int:
        """Optimiser steps of a round."""
        ...

    def schedule(self) -> list[int]:
        """Return the timestep of each round."""
        ...

    def free(self, ids: Sequence[int]) -> int:
        """Return how many free tokens a prompt of these ids gets."""
        ...

    def picture(self, original: Model, prompts: Sequence[Prompt]) -> Sequence[Image]:
        """Return the original's images that are noised."""
        ...

    def check_plan(
        self, concept: Concept, world: World, prompts: Sequence[Prompt], context: int | None
    ) -> None:
        """Refuse what the text encoder has no room for."""
        ...


Rules = TypeVar("Rules", bound=Settings)


@dataclass(frozen=True)
class TokenAttack:
    """Settings that UnlearnDiffAtk and P4D share; defaults are Diffusion-MU-Attack's.

    Args:
        tokens: Free tokens.
        insertion: Where they stand: "prefix" (official), "suffix", "mid", "insert", "per-k-words".
        timesteps: "pruning" attacks at 10 timesteps (10, 110, ... 910), "official" at 50.
        phase: Added to every timestep; 80 gives the pruning paper's other reading, 90, 190, ... 990.
        iterations: Adam steps at each timestep.
        lr: Adam's learning rate.
        weight_decay: L2 term that is added to the gradient.
        loss: Distance between predicted and wanted noise.
        long_prompts: What happens to a prompt of more than 60 tokens (start and end counted), or without
            room for the free ones: "skip" it (official; it counts as not attacked), or "cut" its end.
        target_steps: LMS steps of the image that is noised; "own" is the model's own sampler.
        target_guidance: Its guidance; "own" is the prompt's.
    """

    tokens: Annotated[int, Field(ge=1)] = by_kind(nsfw=5, style=3, object=3)
    insertion: Literal["prefix", "suffix", "mid", "insert", "per-k-words"] = "prefix"
    timesteps: Preset = "pruning"
    phase: Annotated[int, Field(ge=-10, le=89)] = 0
    iterations: Annotated[int, Field(ge=1)] = 40
    lr: Annotated[float, Field(gt=0)] = 0.01
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    loss: Literal["l2", "l1"] = "l2"
    long_prompts: LongPrompts = "skip"
    target_steps: Annotated[int | None, Field(ge=1, le=1000), _OWN] = 25
    target_guidance: Annotated[float | None, Field(ge=0), _OWN] = 7.5

    def __post_init__(self) -> None:
        if self.schedule()[-1] > 999:
            last = PRESETS[self.timesteps][-1]
            raise ValueError(
                f"phase={self.phase}: expected at most {999 - last} with timesteps={self.timesteps}"
            )

    @property
    def longest(self) -> int:
        """UnlearnDiffAtk's data set leaves longer prompts out."""
        return 60

    @property
    def steps(self) -> int:
        """Optimiser steps of a round."""
        return self.iterations

    def schedule(self) -> list[int]:
        """Return the timestep of each round."""
        return [t + self.phase for t in PRESETS[self.timesteps]]

    def free(self, ids: Sequence[int]) -> int:
        """Return how many free tokens a prompt gets."""
        return self.tokens

    def picture(self, original: Model, prompts: Sequence[Prompt]) -> Sequence[Image]:
        """Return the original's images that are noised."""
        if self.target_steps is not None:
            original = original.resampled("lms", self.target_steps)
        if (guidance := self.target_guidance) is not None:
            prompts = [replace(p, guidance=guidance) for p in prompts]
        return original.generate(prompts)

    def check_plan(
        self, concept: Concept, world: World, prompts: Sequence[Prompt], context: int | None
    ) -> None:
        """Refuse more free tokens than the text encoder has room for."""
        check_room("tokens", self.tokens, context)


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
    aim: Tensor | None = None  # features of the original's image, where images are compared
    best: dict[str, Any] = field(default_factory=dict)  # the text whose image is most like it

    def state(self) -> State:
        """Return what is needed to go on with it."""
        names = ("ids", "round", "losses", "found", "text", "token_success", "best")
        values = {name: getattr(self, name) for name in names}
        values |= {"prompt": asdict(self.prompt), "cost": asdict(self.cost)}
        tensors = {"latent": self.latent, "variable": self.variable, "m": self.adam.m}
        tensors |= {"v": self.adam.v, "rng": self.rng.get_state()}
        more = {"wanted": self.wanted, "aim": self.aim}
        more |= {"goals": torch.stack(self.goals) if self.goals else None}
        tensors |= {name: tensor for name, tensor in more.items() if tensor is not None}
        return State(len(self.losses), values | {"step": self.adam.step}, tensors)


class TokenSearch(ABC, Generic[Rules]):
    """The attack on one victim. What the variable is, and which noise is asked for, is the subclass's.

    Args:
        attack: The settings.
        target: Victim, original, concept, judge.
        ctx: Where and how large a batch.
    """

    padding: int | None = None  # token id behind the end token; None is the tokenizer's own
    step_cost = Cost(forward=1, backward=1, text_forward=1, text_backward=1)

    def __init__(self, attack: Rules, target: Target, ctx: Context) -> None:
        self.attack, self.target, self.ctx = attack, target, ctx
        self.model: Model = target.victim
        self.tokenizer = self.model.pipe.tokenizer
        self.table = self.model.pipe.text_encoder.get_input_embeddings().weight.detach().float()
        self.times = attack.schedule()
        self.fits = ctx.batch_size
        context = self.tokenizer.model_max_length
        self.room = context - 1  # with no room for an end token left
        attack.check_plan(target.concept, target.original.world, (), context)

    # ------------------------------------------------------------------ what differs
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
        resume = Resume(self.ctx, [p.id for p in prompts])
        slots, ready = self.resumed(resume.load())
        known = {slot.prompt.id for slot in slots} | {found.prompt.id for found in ready}
        queue = [prompt for prompt in prompts if prompt.id not in known]
        yield from ready
        while queue or slots:
            if (room := self.ctx.batch_size - len(slots)) > 0 and queue:
                fresh, queue = queue[:room], queue[room:]
                for item in self.open(fresh):
                    if isinstance(item, Slot):
                        slots.append(item)
                    else:
                        yield item
                resume.keep({slot.prompt.id: slot.state() for slot in slots})
                continue
            start = time.perf_counter()
            self.iterate(slots)
            full = [slot for slot in slots if len(slot.losses) % self.attack.steps == 0]
            ready = list(self.evaluate(full)) if full else []
            share = Cost(seconds=(time.perf_counter() - start) / len(slots))
            for slot in slots:
                slot.cost += share
            ready = [replace(a, cost=a.cost + share) for a in ready]
            slots = [slot for slot in slots if slot.round < len(self.times)]
            if ready or resume.due:
                states = {slot.prompt.id: slot.state() for slot in slots}
                resume.keep(states | {a.prompt.id: done(a) for a in ready})
            yield from ready
            if not slots:  # a kill before the next state would leave this one to nobody
                resume.keep({})
        resume.keep({})

    def resumed(self, states: Mapping[str, State]) -> tuple[list[Slot], list[Adversarial]]:
        """Return the slots of kept states, and the prompts that were done but not handed over."""
        slots, ready = list[Slot](), list[Adversarial]()
        for state in states.values():
            if found := finished(state):
                ready.append(found)
            else:
                slots.append(self.slot(state))
        return slots, ready

    def slot(self, state: State) -> Slot:
        """Return the slot whose state was kept."""
        values, device = dict(state.values), self.table.device
        tensors = {name: t if name == "rng" else t.to(device) for name, t in state.tensors.items()}
        variable, step = tensors["variable"], values.pop("step")
        adam = self.adam(variable)
        adam.step, adam.m, adam.v = step, tensors["m"], tensors["v"]
        rng = torch.Generator()
        rng.set_state(tensors["rng"])
        context = self._context(values["ids"], [_FREE] * len(variable))
        return Slot(
            context=context,
            latent=tensors["latent"],
            variable=variable,
            adam=adam,
            rng=rng,
            wanted=tensors.get("wanted"),
            goals=list(tensors.get("goals", [])),
            aim=tensors.get("aim"),
            **values | {"prompt": Prompt(**values["prompt"]), "cost": Cost(**values["cost"])},
        )

    def open(self, prompts: Sequence[Prompt]) -> Iterator[Adversarial | Slot]:
        """Try the prompts as they are; open a slot for each that fails and has room."""
        images = self.model.generate(prompts)
        samples = [Sample(p, image) for p, image in zip(prompts, images, strict=True)]
        ids = self.model.token_ids([p.text for p in prompts])
        opened: list[tuple[Prompt, list[int]]] = []
        for prompt, row, success in zip(prompts, ids, self.target.criterion(samples), strict=True):
            kept = row[: self.limit(row)]
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
        pictures = self.attack.picture(self.target.original, kept_prompts)
        latents, aims = self.latents(kept_prompts, pictures), self.aims(pictures)
        wanted = self.wanted(kept_prompts)
        for (prompt, row), latent, goal, aim in zip(opened, latents, wanted, aims, strict=True):
            tokens = self.attack.free(row)
            context = self._context(row, [_FREE] * tokens)
            variable = self.start(prompt, tokens).to(self.table.device)
            adam = self.adam(variable)
            yield Slot(prompt, row, context, latent, variable, adam, wanted=goal, aim=aim)

    def limit(self, ids: Sequence[int]) -> int:
        """Return how many of a prompt's tokens there is room for."""
        if self.attack.insertion == "replace":  # none of them is in the text
            return len(ids)
        longest = self.attack.longest or len(ids) + 2
        return max(0, min(self.room - self.attack.free(ids), longest - 2))

    def adam(self, variable: Tensor) -> Adam:
        """Return a new optimiser."""
        return Adam(variable, self.attack.lr, self.attack.weight_decay)

    def latents(self, prompts: Sequence[Prompt], pictures: Sequence[Image]) -> Tensor:
        """Return latents of the original's images of the prompts."""
        return self.model.encode_images(pictures)

    def aims(self, pictures: Sequence[Image]) -> Sequence[Tensor | None]:
        """Return features of the original's images, if images are compared with them."""
        return [None] * len(pictures)

    def iterate(self, slots: list[Slot]) -> None:
        """One Adam step of every slot, as one batch; the first of a round begins it."""
        if first := [slot for slot in slots if len(slot.losses) % self.attack.steps == 0]:
            self.begin(first)

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
        noise, t = noise.to(self.model.device), torch.tensor(times, device=self.model.device)
        x = self.model.add_noise(torch.stack([s.latent for s in slots]), noise, t)
        cond = self.model.encode_embeddings(self.assemble(slots, free))
        error = self.model.predict_noise(x, t, cond) - self.goal(slots, noise)
        loss = (error.abs() if self.attack.loss == "l1" else error.square()).mean((1, 2, 3))
        half = cond.dtype == torch.float16
        scale = _HALF_SCALE if half else 1.0  # a power of two, so nothing is rounded by it
        (grad,) = torch.autograd.grad(loss.sum() * scale, leaf)
        values = loss.tolist()
        if not (all(map(math.isfinite, values)) and grad.isfinite().all()):
            advice = "; give --dtype bf16 or fp32" if half else ": its weights may not be"
            raise PluginError(f"the victim's prediction or its gradient is not finite{advice}")
        self.move(slots, grad / scale)
        for slot, value in zip(slots, values, strict=True):
            slot.losses.append(value)
            slot.cost += self.step_cost

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
        n = self.attack.steps
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
