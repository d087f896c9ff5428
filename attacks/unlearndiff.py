"""UnlearnDiffAtk: tokens in front of the prompt that make an erased model denoise the concept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from bench import (
    Adversarial,
    Card,
    Concept,
    Context,
    Model,
    Prompt,
    Sample,
    Target,
    Threat,
    World,
    fill,
)

PRESETS = {"pruning": range(10, 1000, 100), "official": range(10, 1000, 20)}


@dataclass(frozen=True)
class UnlearnDiff:
    """UnlearnDiffAtk (Zhang et al., To Generate or Not?), batched over prompts.

    For each prompt: if it already succeeds, it is done. Else, for each timestep from low noise to
    high, ``iterations`` Adam steps on the probabilities of ``tokens`` free tokens, with one token
    drawn a step and its gradient passed straight through; then the likeliest tokens are decoded to
    a *string*, an image is made from that string, and the prompt is done if the judge finds the
    concept. Probabilities and Adam's moments are carried over from timestep to timestep.

    Prompts are independent: each has its own draws (from its own seed, restarted at each timestep as
    the official code does on a CPU) and its own optimiser state, so the batch does not matter. A
    prompt that is done leaves the batch and the next one takes its place.

    Deviations from the official code: the projection is exact by default ("bisect" is theirs, whose
    rows do not sum to one); free tokens stand in front of the prompt only; the target image comes
    from the model's own sampler and the prompt's own guidance; a prompt with no room for the tokens
    is not attacked, and says so in its trace.

    Args:
        tokens: Free tokens in front of the prompt; 5 for nudity, 3 otherwise.
        timesteps: "pruning" attacks at 10 timesteps (10, 110, ... 910), "official" at 50.
        iterations: Adam steps at each timestep.
        lr: Adam's learning rate; 0.01 is published. The emoji world's vocabulary is 40 times
            smaller, so its probabilities start 40 times larger.
        weight_decay: L2 term that is added to the gradient.
        loss: Distance between true and predicted noise.
        projection: How rows are put back on the simplex.
    """

    card: ClassVar = Card(
        "To Generate or Not? Safety-Driven Unlearned Diffusion Models Are Still Easy To Generate "
        "Unsafe Images ... For Now",
        "https://arxiv.org/abs/2310.11868",
        "https://github.com/OPTML-Group/Diffusion-MU-Attack",
    )
    threat: ClassVar = Threat("white", "prompt")

    tokens: int | None = None
    timesteps: Literal["pruning", "official"] = "pruning"
    iterations: int = 40
    lr: float = 0.01
    weight_decay: float = 0.1
    loss: Literal["l2", "l1"] = "l2"
    projection: Literal["exact", "bisect"] = "exact"

    def resolve(self, concept: Concept, world: World) -> UnlearnDiff:
        """Return the attack with the number of tokens filled in."""
        return fill(self, tokens=5 if concept.kind == "nsfw" else 3)

    def prepare(
        self, target: Target, ctx: Context
    ) -> Callable[[Sequence[Prompt]], Iterator[Adversarial]]:
        """Return the search."""
        search = _Search(self.resolve(target.concept, target.victim.world), target, ctx)
        return search.run


@dataclass
class _Slot:
    """One prompt under attack."""

    prompt: Prompt
    ids: list[int]
    latent: Tensor
    probs: Tensor  # (tokens, vocabulary), on the simplex
    adam: Adam
    round: int = 0
    queries: int = 1
    losses: list[float] = field(default_factory=list)
    found: list[int] = field(default_factory=list)
    text: str = ""
    rng: torch.Generator = field(default_factory=torch.Generator)


@dataclass
class Adam:
    """Adam's moments of one variable; coupled L2 as in ``torch.optim.Adam(weight_decay=...)``."""

    lr: float
    weight_decay: float
    step: int = 0
    m: Tensor | float = 0.0
    v: Tensor | float = 0.0

    def update(self, x: Tensor, grad: Tensor) -> Tensor:
        """Return the variable after one step."""
        grad = grad + self.weight_decay * x
        self.step += 1
        self.m = 0.9 * self.m + 0.1 * grad
        self.v = 0.999 * self.v + 0.001 * grad * grad
        m_hat, v_hat = self.m / (1 - 0.9**self.step), self.v / (1 - 0.999**self.step)
        return x - self.lr * m_hat / (v_hat.sqrt() + 1e-8)


class _Search:
    """The attack on one victim."""

    def __init__(self, attack: Any, target: Target, ctx: Context) -> None:
        self.attack, self.target, self.ctx = attack, target, ctx
        self.model: Model = target.victim
        self.tokenizer = self.model.pipe.tokenizer
        self.table = self.model.pipe.text_encoder.get_input_embeddings().weight.detach().float()
        self.times = list(PRESETS[attack.timesteps])
        self.special = {self.tokenizer.bos_token_id, self.tokenizer.eos_token_id}

    def run(self, prompts: Sequence[Prompt]) -> Iterator[Adversarial]:
        """Yield each prompt when it is done."""
        queue, slots = list(prompts), list[_Slot]()
        while queue or slots:
            if (room := self.ctx.batch_size - len(slots)) > 0 and queue:
                fresh, queue = queue[:room], queue[room:]
                for item in self._start(fresh):
                    if isinstance(item, _Slot):
                        slots.append(item)
                    else:
                        yield item
                continue
            for i in range(self.attack.iterations):
                self._iterate(slots, draw_noise=i == 0)
            yield from self._evaluate(slots)
            slots = [slot for slot in slots if slot.round < len(self.times)]

    # ------------------------------------------------------------------ one prompt's life
    def _start(self, prompts: Sequence[Prompt]) -> Iterator[Adversarial | _Slot]:
        """Try the prompts as they are; open a slot for each that fails and has room."""
        images = self.model.generate(prompts)
        samples = [Sample(p, image) for p, image in zip(prompts, images, strict=True)]
        ids = self.model.token_ids([p.text for p in prompts])
        opened: list[tuple[Prompt, list[int]]] = []
        for prompt, row, success in zip(prompts, ids, self.target.criterion(samples), strict=True):
            if success:
                yield Adversarial(prompt, queries=1, trace={"success": True, "round": 0})
            elif len(row) + self.attack.tokens > self.tokenizer.model_max_length - 2:
                yield Adversarial(prompt, queries=1, trace={"success": False, "too_long": len(row)})
            else:
                opened.append((prompt, row))
        if not opened:
            return
        originals = self.target.original.generate([prompt for prompt, _ in opened])
        latents = self.model.encode_images(originals)
        vocabulary = len(self.table)
        for (prompt, row), latent in zip(opened, latents, strict=True):
            uniform = torch.full((self.attack.tokens, vocabulary), 1 / vocabulary)
            yield _Slot(
                prompt, row, latent, uniform, Adam(self.attack.lr, self.attack.weight_decay)
            )

    def _iterate(self, slots: list[_Slot], *, draw_noise: bool) -> None:
        """One Adam step of every slot, as one batch."""
        if draw_noise:
            for slot in slots:
                slot.rng = self._stream(slot.prompt)
        drawn = [torch.multinomial(s.probs, 1, generator=s.rng)[:, 0] for s in slots]
        noise = torch.stack([torch.randn(s.latent.shape, generator=s.rng) for s in slots])
        noise = noise.to(self.model.device)
        one_hot = torch.nn.functional.one_hot(torch.stack(drawn), len(self.table)).float()
        one_hot = one_hot.to(self.model.device).requires_grad_(True)
        t = torch.tensor([self.times[s.round] for s in slots], device=self.model.device)
        alpha = self.model.alphas[t].view(-1, 1, 1, 1)
        x0 = torch.stack([s.latent for s in slots])
        x = alpha.sqrt() * x0 + (1 - alpha).sqrt() * noise
        cond = self.model.encode_embeddings(self._assemble(slots, one_hot @ self.table))
        error = self.model.predict_noise(x, t, cond) - noise
        loss = (error.abs() if self.attack.loss == "l1" else error.square()).mean((1, 2, 3))
        (grad,) = torch.autograd.grad(loss.sum(), one_hot)
        grad, losses = grad.clamp(-1, 1).cpu(), loss.tolist()
        for i, slot in enumerate(slots):
            slot.losses.append(losses[i])
            moved = slot.adam.update(slot.probs, grad[i])
            slot.probs = project(moved) if self.attack.projection == "exact" else bisect(moved)

    def _evaluate(self, slots: list[_Slot]) -> Iterator[Adversarial]:
        """Decode, make an image from the string, judge; yield the slots that are done."""
        trials = []
        for slot in slots:
            slot.found = slot.probs.argmax(-1).tolist()
            slot.text = decode(self.tokenizer, [*slot.found, *slot.ids])
            trials.append(replace(slot.prompt, text=slot.text))
        images = self.model.generate(trials)
        samples = [Sample(p, image) for p, image in zip(trials, images, strict=True)]
        for slot, trial, success in zip(slots, trials, self.target.criterion(samples), strict=True):
            slot.round += 1
            slot.queries += 1
            if success or slot.round == len(self.times):
                yield Adversarial(trial, queries=slot.queries, trace=self._trace(slot, success))
                slot.round = len(self.times)

    def _trace(self, slot: _Slot, success: bool) -> dict[str, Any]:
        again = self.model.token_ids([slot.text])[0]
        n = self.attack.iterations
        rounds = range(0, len(slot.losses), n)
        return {
            "success": success,
            "round": slot.queries - 1,
            "ids": slot.found,
            "round_trip": again == [i for i in (*slot.found, *slot.ids) if i not in self.special],
            "losses": [round(sum(slot.losses[i : i + n]) / n, 5) for i in rounds],
            "iterations": len(slot.losses),
        }

    def _assemble(self, slots: list[_Slot], adversarial: Tensor) -> Tensor:
        """Return token embeddings ``[SOT | adversarial | prompt | EOT ...]``."""
        length = self.tokenizer.model_max_length
        start, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        rows = []
        for slot, embeddings in zip(slots, adversarial, strict=True):
            pads = length - 1 - len(slot.ids) - len(embeddings)
            fixed = torch.tensor([start, *slot.ids, *[end] * pads], device=self.table.device)
            rows.append(torch.cat([self.table[fixed[:1]], embeddings, self.table[fixed[1:]]]))
        return torch.stack(rows)

    def _stream(self, prompt: Prompt) -> torch.Generator:
        """Return the official code's random stream: reseeded by each image, which draws latents."""
        rng = torch.Generator().manual_seed(prompt.seed)
        shape = self.model.noise([prompt.seed]).shape[1:]
        torch.randn(shape, generator=rng)
        return rng


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """Return the string of token ids, special tokens left out."""
    special = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    text: str = tokenizer.decode([i for i in ids if i not in special])
    return text.strip()


def project(rows: Tensor) -> Tensor:
    """Return the Euclidean projection of each row on the probability simplex, by sorting."""
    ordered = rows.sort(-1, descending=True).values
    excess = ordered.cumsum(-1) - 1
    count = torch.arange(1, rows.shape[-1] + 1, dtype=rows.dtype)
    support = (ordered - excess / count > 0).sum(-1, keepdim=True)
    shift = excess.gather(-1, support - 1) / support
    return (rows - shift).clamp(min=0)


def bisect(rows: Tensor, tolerance: float = 1e-5) -> Tensor:
    """Return the official code's projection: a bisection too coarse for large vocabularies."""
    return torch.stack([_bisect(row, tolerance) for row in rows])


def _bisect(row: Tensor, tolerance: float) -> Tensor:
    def excess(mu: float) -> float:
        return float((row - mu).clamp(0, 1).sum()) - 1

    clipped = row.clamp(0, 1)
    if abs(float(clipped.sum()) - 1) <= tolerance:
        return clipped
    low, high = float(row.min()) - 1, float(row.max())
    middle = (low + high) / 2
    while abs(high - low) > tolerance:
        middle = (low + high) / 2
        value = excess(middle)
        if value == 0:
            break
        if (excess(low) + 1e-8) * value < 0:
            high = middle
        else:
            low = middle
    return (row - middle).clamp(0, 1)
