"""ESD's objective, which ESD, P-ESD and the pruning variants share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import Model

Alignment = Literal["exact", "compvis"]


class EsdObjective:
    """Predict noise guided away from the concept (Gandikota et al., arXiv 2303.07345, Eq. 7).

    ``eps_hat = eps*(null) - eta * (eps*(c) - eps*(null))`` from the frozen teacher; the student is
    asked for ``eps(c)``. Latents come from partially denoising with the student under
    classifier-free guidance towards the concept.

    Args:
        teacher: The original model.
        texts: Prompts of the concept. A batch has each in turn, or, if they do not fit, a random
            choice for each trajectory (one of several in a batch of 1, as published).
        batch: Latents in a step.
        eta: Negative guidance in the paper's convention: 1 gives ``2 eps*(null) - eps*(c)``.
            (The 2025 diffusers script counts from ``eps*(c)``; its 2 is 1 here.)
        start_guidance: Scale of the guidance while sampling latents.
        xt_alignment: "exact" labels a latent with the timestep it is at. "compvis" is the published
            code: the first DDIM step is dropped, and the label is one to three steps noisier than
            the latent; row ``t_enc = 0`` is denoised to the end.
        steps: DDIM steps of a full trajectory.
        reuse: Calls that share one sampled trajectory; 1 is the published method, more is cheaper.
        seed: Seed of every draw.
    """

    def __init__(
        self,
        teacher: Model,
        texts: Sequence[str],
        *,
        batch: int = 1,
        eta: float,
        start_guidance: float,
        xt_alignment: Alignment,
        steps: int,
        reuse: int,
        seed: int,
    ) -> None:
        self.teacher, self.eta, self.start_guidance = teacher, eta, start_guidance
        self.alignment, self.steps, self.reuse = xt_alignment, steps, reuse
        self.rng = torch.Generator().manual_seed(seed)
        self._encoded, self.batch = teacher.encode(texts), batch
        self.cond = self._encoded[torch.arange(batch) % len(texts)]
        self.null = teacher.encode([""]).expand_as(self.cond)
        self.calls = 0
        self._trajectory: list[tuple[Tensor, Tensor]] = []

    def loss(self, student: Model) -> Tensor:
        """Draw a batch and return the student's mean squared error on it, with gradients."""
        self._drawn = self.sample(student)
        return self.error(student)

    def error(self, student: Model) -> Tensor:
        """Return a student's error on the batch that was drawn last."""
        x, t, target = self._drawn
        return F.mse_loss(student.predict_noise(x, t, self.cond), target)

    def sample(self, student: Model) -> tuple[Tensor, Tensor, Tensor]:
        """Return latents ``x_t``, timesteps ``t`` ``(batch,)`` and the target noise, no gradients."""
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
        with torch.no_grad():
            both = self.teacher.predict_noise(
                torch.cat([x, x]), torch.cat([t, t]), torch.cat([self.null, self.cond])
            )
        null, cond = both.chunk(2)
        return x, t, null - self.eta * (cond - null)

    def _draw(self, batch: int) -> tuple[Tensor, Tensor | None]:
        """Return how many denoising steps each row takes, and its timestep label if that is drawn, too."""
        if self.alignment == "exact":
            return torch.randint(self.steps, (batch,), generator=self.rng), None
        stride = 1000 // self.steps
        t_enc = torch.randint(self.steps, (batch,), generator=self.rng)
        offset = torch.randint(stride, (batch,), generator=self.rng)
        return compvis_stops(t_enc, self.steps), stride * t_enc + offset

    def _denoise(self, student: Model, last: int) -> list[tuple[Tensor, Tensor]]:
        """Return ``(t, x_t)`` after 0, 1, ... ``last`` DDIM steps of the student."""
        seeds = torch.randint(2**31, (len(self.cond),), generator=self.rng).tolist()
        start = student.noise(seeds)
        skip = 1 if self.alignment == "compvis" else 0
        trajectory = []
        for state in student.denoise(
            start, self.cond, self.start_guidance, steps=self.steps, sampler="ddim", skip=skip
        ):
            trajectory.append(state)
            if len(trajectory) > last:
                break
        return trajectory


def compvis_stops(t_enc: Tensor, steps: int) -> Tensor:
    """Return how many of the ``steps - 1`` remaining DDIM steps the published code takes."""
    return torch.where(t_enc == 0, steps - 1, steps - t_enc)
