"""ESD's objective, which ESD, P-ESD and the pruning variants share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import Batch, Model, Room


@dataclass(frozen=True, match_args=False)
class Settings(Protocol):
    """The parameters of the method that are read here; frozen, as they are there."""

    eta: float
    batch: int
    start_guidance: float
    xt_alignment: Literal["exact", "compvis"]
    sampling_steps: int
    reuse: int


class EsdObjective:
    """Predict noise guided away from the concept (Gandikota et al., arXiv 2303.07345, Eq. 7).

    The frozen teacher gives ``eps_hat = eps*(null) - eta * (eps*(c) - eps*(null))``, which the student
    should predict for ``c``. Latents come from the student, which denoises partially with classifier-free
    guidance towards the concept.

    Args:
        settings: Of the method.
        teacher: The original model.
        texts: Prompts of the concept. A batch contains them in turn. If there are more texts than the batch
            has rows, each trajectory has a random choice (one text in a batch of 1, as published).
        seed: Seed of all draws.
    """

    def __init__(self, settings: Settings, teacher: Model, texts: Sequence[str], seed: int) -> None:
        self.teacher, self.eta, self.start_guidance = teacher, settings.eta, settings.start_guidance
        self.alignment, self.reuse = settings.xt_alignment, settings.reuse
        self.steps, self.batch = settings.sampling_steps, settings.batch
        self.rng = torch.Generator().manual_seed(seed)
        self._encoded = teacher.encode(texts)
        self.cond = self._encoded[torch.arange(self.batch) % len(texts)]
        self.null = teacher.encode([""]).expand_as(self.cond)
        self.calls, self.room = 0, Room(self.batch)  # for passes without gradients
        self._trajectory: list[tuple[Tensor, Tensor]] = []

    def draw(self, student: Model) -> Batch:
        """Draw a batch; its error is the student's mean squared error."""
        x, t, target = self.sample(student)
        return Batch(self.batch, partial(self._error, student, x, t, self.cond, target))

    def _error(
        self, student: Model, x: Tensor, t: Tensor, cond: Tensor, target: Tensor, rows: slice
    ) -> Tensor:
        return F.mse_loss(student.predict_noise(x[rows], t[rows], cond[rows]), target[rows])

    def sample(self, student: Model) -> tuple[Tensor, Tensor, Tensor]:
        """Return latents ``x_t``, timesteps ``t`` ``(batch,)`` and the target noise, without gradients."""
        stops, labels = self._draw(self.batch)
        if self.calls % self.reuse == 0:
            if len(self._encoded) > self.batch:
                chosen = torch.randperm(len(self._encoded), generator=self.rng)
                self.cond = self._encoded[chosen[: self.batch]]
            last = self.steps if self.reuse > 1 else int(stops.max())
            self._trajectory = self._denoise(student, last)
        self.calls += 1
        x = torch.stack([self._trajectory[int(k)][1][i] for i, k in enumerate(stops)])
        if labels is None:  # the model's own schedule says which timesteps these are
            labels = torch.stack([self._trajectory[int(k)][0] for k in stops])
        t = labels.to(student.device)
        return x, t, torch.cat(list(self.room.parts(self.batch, partial(self._target, x, t))))

    def _target(self, x: Tensor, t: Tensor, rows: slice) -> Tensor:
        """Return the noise that the student should predict for some rows."""
        x, t = (torch.cat([part[rows]] * 2) for part in (x, t))
        with torch.no_grad():
            both = self.teacher.predict_noise(x, t, torch.cat([self.null[rows], self.cond[rows]]))
        null, cond = both.chunk(2)
        return null - self.eta * (cond - null)

    def _draw(self, batch: int) -> tuple[Tensor, Tensor | None]:
        """Return the number of denoising steps of each row, and its label if that is drawn, too."""
        if self.alignment == "exact":
            return torch.randint(self.steps, (batch,), generator=self.rng), None
        stride = 1000 // self.steps
        t_enc = torch.randint(self.steps, (batch,), generator=self.rng)
        offset = torch.randint(stride, (batch,), generator=self.rng)
        return compvis_stops(t_enc, self.steps), stride * t_enc + offset

    def _denoise(self, student: Model, last: int) -> list[tuple[Tensor, Tensor]]:
        """Return ``(t, x_t)`` after 0, 1, ... ``last`` DDIM steps of the student."""
        seeds = torch.randint(2**31, (len(self.cond),), generator=self.rng).tolist()
        start = student.initial_noise(seeds)

        def work(rows: slice) -> list[tuple[Tensor, Tensor]]:
            states = student.denoise(
                start[rows],
                self.cond[rows],
                self.start_guidance,
                steps=self.steps,
                sampler="ddim",
                skip=1 if self.alignment == "compvis" else 0,
            )
            return list(islice(states, last + 1))

        parts = self.room.parts(len(start), work)
        return [
            (states[0][0], torch.cat([x for _, x in states])) for states in zip(*parts, strict=True)
        ]


def compvis_stops(t_enc: Tensor, steps: int) -> Tensor:
    """Return how many of the ``steps - 1`` remaining DDIM steps the published code takes."""
    return torch.where(t_enc == 0, steps - 1, steps - t_enc)
