"""A model's noise schedule, the same for every sampler, and DDIM's steps with noise."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
)
from torch import Tensor

from bench.core.errors import IncompatibleError, SpecError
from bench.core.types import SamplerNoise

STEPS = 1000
_BETAS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
_SD = {
    "set_alpha_to_one": False,
    "steps_offset": 1,
}  # the library's defaults are not Stable Diffusion's
_SAMPLERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ddim": (DDIMScheduler, {**_SD, "clip_sample": False}),
    "lms": (LMSDiscreteScheduler, {}),
    "pndm": (PNDMScheduler, {**_SD, "skip_prk_steps": True}),
    "dpm": (DPMSolverMultistepScheduler, {"steps_offset": 1}),  # DPM-Solver++ of order 2
}
_SPACINGS = ("leading", "linspace", "trailing")
_LEAST = 2.0**-24  # what the library puts for a signal level of 0 where a sampler divides by it


class Schedule:
    """The schedule that a denoiser was trained with, read from its pipeline's scheduler.

    A schedule that ends at a signal level of 0 (``rescale_betas_zero_snr``) is that of Common Diffusion
    Noise Schedules and Sample Steps are Flawed (arXiv 2305.08891).

    Args:
        scheduler: Any diffusers scheduler with betas; which sampler it is does not matter.

    Attributes:
        alphas: Cumulative signal levels of the 1000 training timesteps, float32, on the CPU.
        prediction: What the denoiser returns: "epsilon" (noise) or "v_prediction" (velocities).

    Raises:
        SpecError: It is another kind of schedule, or it does not fit what the denoiser predicts.
    """

    def __init__(self, scheduler: Any) -> None:
        config = scheduler.config
        kind = type(scheduler).__name__
        self._betas = {key: config[key] for key in _BETAS if key in config}
        if not self._betas.keys() >= {"beta_start", "num_train_timesteps"}:
            raise SpecError(
                f"the model's {kind} has no betas: expected one of Stable Diffusion 1 or 2"
            )
        self.prediction: str = config.get("prediction_type", "epsilon")
        if self.prediction not in {"epsilon", "v_prediction"}:
            raise SpecError(
                f"the model predicts {self.prediction!r}: expected 'epsilon' or 'v_prediction'"
            )
        self._rescaled: bool = bool(config.get("rescale_betas_zero_snr"))
        try:
            self.alphas: Tensor = DDIMScheduler(
                **self._betas, rescale_betas_zero_snr=self._rescaled
            ).alphas_cumprod
        except (NotImplementedError, TypeError, ValueError, RuntimeError) as exc:
            raise SpecError(f"the model's {kind} has no readable betas: {exc}") from exc
        if len(self.alphas) != STEPS:
            raise SpecError(
                f"the model has {len(self.alphas)} training timesteps: expected {STEPS}"
            )
        if not ((self.alphas >= 0) & (self.alphas <= 1)).all():
            raise SpecError(f"the model's {kind} has betas that are not all from 0 to 1")
        self._rescaled |= float(self.alphas[-1]) == 0  # given betas may end at 0, too
        if self._rescaled and self.prediction == "epsilon":
            raise SpecError(
                "the model's noise schedule ends at a signal level of 0 (rescale_betas_zero_snr), where "
                "a prediction of noise says nothing: expected prediction_type 'v_prediction'"
            )
        self._spacing = _spacing(scheduler)
        signal = self.alphas.double().clamp(min=_LEAST)
        self._sigmas = ((1 - signal) / signal).sqrt()

    def sampler(self, name: str) -> Any:
        """Return a new scheduler of the library: "ddim", "lms", "pndm" or "dpm".

        Raises:
            SpecError: No sampler has this name.
            IncompatibleError: The sampler divides by a signal level that is 0 here.
        """
        if name not in _SAMPLERS:
            raise SpecError(f"unknown sampler {name!r}. Known: {', '.join(sorted(_SAMPLERS))}")
        kind, settings = _SAMPLERS[name]
        rescaled = (
            {"rescale_betas_zero_snr": True} if self._rescaled and name in {"ddim", "dpm"} else {}
        )
        scheduler = kind(
            **self._betas,
            prediction_type=self.prediction,
            **{**settings, **self._spacing, **rescaled},
        )
        if self._rescaled and name == "pndm":
            raise IncompatibleError(
                "the sampler pndm cannot draw with this model, whose noise schedule ends at a signal "
                "level of 0: expected ddim, dpm or lms"
            )
        if self._rescaled and name == "lms":
            scheduler.alphas_cumprod = self.alphas.clamp(min=_LEAST)
        return scheduler

    def noise(self, predicted: Tensor, t: Tensor, x: Tensor) -> Tensor:
        """Return the noise in latents ``x``, given what the denoiser predicts from them, all float32.

        Velocities ``v = sqrt(a) eps - sqrt(1 - a) x0`` (Progressive Distillation for Fast Sampling of
        Diffusion Models, arXiv 2202.00512) give ``eps = sqrt(a) v + sqrt(1 - a) x``.
        """
        if self.prediction == "epsilon":
            return predicted
        alpha = self.level(t).to(x.device, non_blocking=True)
        return alpha.sqrt() * predicted + (1 - alpha).sqrt() * x.float()

    def level(self, t: Tensor) -> Tensor:
        """Return the signal levels at timesteps, ``(batch or 1, 1, 1, 1)`` float32.

        Between two training timesteps the noise level ``sqrt((1 - a) / a)`` is linear, as in LMS; such
        timesteps are fractions, and their levels are on the CPU.
        """
        if isinstance(t, Tensor) and not t.is_floating_point():  # a GPU need not wait for the CPU
            return self.alphas.to(t.device, non_blocking=True)[t].reshape(-1, 1, 1, 1)
        t = torch.as_tensor(t).cpu().double().reshape(-1, 1, 1, 1)  # not every device has float64
        low = t.floor().long()
        high = (low + 1).clamp(max=STEPS - 1)
        between = 1 / (1 + torch.lerp(self._sigmas[low], self._sigmas[high], t - low) ** 2)
        return torch.where(t == low, self.alphas[low].double(), between).float()


def _spacing(scheduler: Any) -> dict[str, Any]:
    """Return the settings of a model that choose its timesteps; if it has none, the sampler chooses.

    A saved folder always holds a spacing. If it is its scheduler class's default, nobody chose it.
    """
    own = inspect.signature(type(scheduler).__init__).parameters.get("timestep_spacing")
    value = scheduler.config.get("timestep_spacing")
    if value is None or (own and value == own.default):
        return {}
    if value not in _SPACINGS:
        raise SpecError(
            f"the model's timestep_spacing is {value!r}: expected {', '.join(_SPACINGS)}"
        )
    return {"timestep_spacing": value, "steps_offset": scheduler.config.get("steps_offset", 0)}


class NoisySteps:
    """DDIM's step with noise, also for ``eta`` > 1, where the library takes the root of a negative number.

    As in When Are Concepts Erased From Diffusion Models? (arXiv 2505.17013), the root is of the absolute
    value, and the noise has a scale of its own.
    """

    def __init__(self, scheduler: DDIMScheduler, noise: Sequence[SamplerNoise]) -> None:
        self.scheduler = scheduler
        self.rngs = [torch.Generator().manual_seed(n.seed) for n in noise]
        self.eta, self.scale = (
            torch.tensor(values).view(-1, 1, 1, 1)
            for values in ([n.eta for n in noise], [n.scale for n in noise])
        )

    def __call__(
        self, predicted: Tensor, t: Tensor, x: Tensor, *, return_dict: bool = False
    ) -> tuple[Tensor]:
        """Return the latents of the next timestep; the signature is the library's."""
        scheduler = self.scheduler
        before = int(t) - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
        a = scheduler.alphas_cumprod[int(t)].item()
        final = scheduler.final_alpha_cumprod.item()
        a_next = scheduler.alphas_cumprod[before].item() if before >= 0 else final
        if scheduler.config.prediction_type == "v_prediction":
            x0 = a**0.5 * x - (1 - a) ** 0.5 * predicted
            eps = a**0.5 * predicted + (1 - a) ** 0.5 * x
        else:
            x0 = (x - (1 - a) ** 0.5 * predicted) / a**0.5
            eps = predicted
        sigma = self.eta.to(x.device) * ((1 - a_next) / (1 - a) * (1 - a / a_next)) ** 0.5
        z = torch.stack([torch.randn(x.shape[1:], generator=rng) for rng in self.rngs])
        direction = (1 - a_next - sigma**2).abs().sqrt() * eps
        noise = sigma * self.scale.to(x.device) * z.to(x.device)
        return (a_next**0.5 * x0 + direction + noise,)
