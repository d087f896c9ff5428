"""How models draw: samplers and noise schedules, against the library's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
)

from bench import IncompatibleError, SpecError
from bench.core.types import SamplerNoise
from bench.models import load_model

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def test_lms_steps_are_those_of_unlearndiffatk(tiny) -> None:
    scheduler = tiny.schedule.sampler("lms")
    scheduler.set_timesteps(50)
    t = scheduler.timesteps.tolist()
    assert t[:2] + t[-2:] == pytest.approx([999.0, 978.612, 20.388, 0.0], abs=1e-3)
    assert float(scheduler.init_noise_sigma) == pytest.approx(14.6146, abs=1e-4)


LIBRARY = {
    "lms": LMSDiscreteScheduler(**SD),
    "ddim": DDIMScheduler(**SD, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
    "pndm": PNDMScheduler(**SD, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1),
    "dpm": DPMSolverMultistepScheduler(
        **SD, steps_offset=1, algorithm_type="dpmsolver++", solver_order=2
    ),
}


CASES = [(s, p) for s in LIBRARY for p in ("epsilon", "v_prediction")]


@pytest.mark.parametrize(("sampler", "prediction"), CASES)
def test_samplers_equal_the_librarys_pipeline(tiny, sampler: str, prediction: str) -> None:
    kind = type(LIBRARY[sampler])
    tiny.pipe.scheduler = kind.from_config(LIBRARY[sampler].config, prediction_type=prediction)
    model = type(tiny)(tiny.pipe, "photo", tiny.sampling)
    start, text = model.initial_noise([3]), "a church on the beach"
    *_, (_, ours) = model.denoise(start, model.encode([text]), 7.5, steps=5, sampler=sampler)
    call = {"num_inference_steps": 5, "guidance_scale": 7.5, "latents": start}
    theirs = tiny.pipe(text, output_type="latent", **call).images
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    image = np.array(tiny.pipe(text, **call).images[0]).astype(int)
    assert np.abs(np.array(model._decode(ours)[0]).astype(int) - image).max() <= 1


def test_lms_with_two_passes_for_guidance(tiny) -> None:
    scheduler = LMSDiscreteScheduler(**SD)
    scheduler.set_timesteps(5)
    cond, null = tiny.encode(["a church"]), tiny.encode([""])
    x = tiny.initial_noise([5]) * scheduler.init_noise_sigma
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        z = x / (sigma**2 + 1) ** 0.5
        scheduler.is_scale_input_called = True
        with torch.no_grad():
            u, c = (tiny.pipe.unet(z, t, encoder_hidden_states=e).sample for e in (null, cond))
        x = scheduler.step(u + 7.5 * (c - u), t, x).prev_sample
    *_, (_, ours) = tiny.denoise(tiny.initial_noise([5]), cond, 7.5, steps=5, sampler="lms")
    assert (ours - x).abs().max() <= 1e-5 * x.abs().max()


def test_velocity_becomes_noise(tiny) -> None:
    """eps = sqrt(a) v + sqrt(1 - a) x in float64, at whole timesteps and between two of them."""
    tiny.pipe.scheduler = DDIMScheduler(**SD, prediction_type="v_prediction")
    model = type(tiny)(tiny.pipe, "photo", tiny.sampling)
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alphas = np.cumprod(1 - betas)
    sigmas = ((1 - alphas) / alphas) ** 0.5
    x, cond = tiny.initial_noise([1, 2, 3]), tiny.encode(["a church"] * 3)
    t = torch.tensor([1.0, 20.388, 999.0])
    with torch.no_grad():
        v = tiny.pipe.unet(x, t, encoder_hidden_states=cond).sample.double().numpy()
    sigma = np.interp(t.double(), np.arange(1000), sigmas).reshape(3, 1, 1, 1)
    expected = v / (1 + sigma**2) ** 0.5 + sigma / (1 + sigma**2) ** 0.5 * x.double().numpy()
    with torch.no_grad():
        got = model.predict_noise(x, t, cond).double().numpy()
    assert np.abs(got - expected).max() < 1e-5
    with torch.no_grad():
        one = model.predict_noise(x, torch.tensor(500), cond)  # one timestep for the whole batch
        each = model.predict_noise(x, torch.full((3,), 500), cond)
    assert torch.equal(one, each)


ZERO = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}


def rescaled() -> np.ndarray:
    """Algorithm 1 of arXiv 2305.08891 in float64."""
    roots = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2) ** 0.5
    return ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2


def zero_snr(tiny, **more):
    tiny.pipe.scheduler = DDIMScheduler(**SD, **ZERO, timestep_spacing="trailing", **more)
    return type(tiny)(tiny.pipe, "photo", tiny.sampling)


def test_a_schedule_that_ends_without_signal(tiny) -> None:
    """DDIM's formula in float64; where the signal level is 0, a velocity is minus the clean image."""
    model, alphas = zero_snr(tiny), rescaled()
    assert np.abs(model.alphas.double().numpy() - alphas).max() < 1e-5
    assert float(model.alphas[-1]) == 0
    cond, null = model.encode(["a church on the beach"]), model.encode([""])
    x = model.initial_noise([3]).double()
    for t, then in zip([999, 799, 599, 399, 199], [799, 599, 399, 199, 0], strict=True):
        with torch.no_grad():
            u, c = (model.pipe.unet(x.float(), t, encoder_hidden_states=e).sample.double()
                    for e in (null, cond))  # fmt: skip
        v, a, b = u + 7.5 * (c - u), alphas[t], alphas[then]
        clean = a**0.5 * x - (1 - a) ** 0.5 * v
        x = b**0.5 * clean + (1 - b) ** 0.5 * (a**0.5 * v + (1 - a) ** 0.5 * x)
    *_, (_, ours) = model.denoise(model.initial_noise([3]), cond, 7.5, steps=5, sampler="ddim")
    assert (ours - x).abs().max() <= 1e-3 * x.abs().max()


@pytest.mark.parametrize("sampler", ["ddim", "dpm"])
@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_a_schedule_without_signal_in_the_librarys_pipeline(tiny, sampler, spacing) -> None:
    own = {**SD, **ZERO, "timestep_spacing": spacing}
    tiny.pipe.scheduler = DDIMScheduler(**own, set_alpha_to_one=False, clip_sample=False)
    model = type(tiny)(tiny.pipe, "photo", tiny.sampling)
    if sampler == "dpm":
        tiny.pipe.scheduler = DPMSolverMultistepScheduler(**own)
    start, text = model.initial_noise([3]), "a church on the beach"
    *_, (_, ours) = model.denoise(start, model.encode([text]), 7.5, steps=5, sampler=sampler)
    theirs = tiny.pipe(text, num_inference_steps=5, guidance_scale=7.5, latents=start,
                       output_type="latent").images  # fmt: skip
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def test_every_use_of_a_schedule_without_signal_is_finite(tiny, tmp_path) -> None:
    model = zero_snr(tiny)
    model.pipe.save_pretrained(tmp_path / "zero")
    model = load_model("zero", world="photo")
    assert (model.sampling.sampler, model.schedule.sampler("lms").config.timestep_spacing) == (
        "lms", "trailing"
    )  # fmt: skip
    x, cond = model.initial_noise([1, 2]), model.encode(["a church"] * 2)
    last = torch.tensor([999.0, 999.0])
    assert torch.equal(model.predict_noise(x, last, cond), x)  # there is nothing but noise
    between = model.predict_noise(x, torch.tensor([998.5, 20.388]), cond)
    assert torch.isfinite(between).all()
    for sampler in ("lms", "ddim", "dpm"):
        *_, (_, latents) = model.denoise(x, cond, 7.5, steps=5, sampler=sampler)
        assert torch.isfinite(latents).all() and latents.std() > 0.1, sampler
    noisy = [SamplerNoise(0.0, seed=1), SamplerNoise(1.85, 1.04, seed=2)]
    *_, (_, latents) = model.denoise(x, cond, 7.5, steps=5, sampler_noise=noisy)
    *_, (_, plain) = model.denoise(x, cond, 7.5, steps=5, sampler="ddim")
    assert torch.isfinite(latents).all()
    assert torch.allclose(latents[0], plain[0], atol=1e-4 * float(plain.abs().max()))
    with pytest.raises(IncompatibleError, match="pndm cannot draw with this model, .* signal"):
        model.schedule.sampler("pndm")


def test_betas_that_are_given_may_end_without_signal(tiny) -> None:
    """They are the same schedule as the rescaled one, for every sampler."""
    model = zero_snr(tiny)
    tiny.pipe.scheduler = DDIMScheduler(
        trained_betas=DDIMScheduler(**SD, **ZERO).betas.tolist(),
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )
    given = type(tiny)(tiny.pipe, "photo", tiny.sampling)
    assert float(given.alphas[-1]) == 0
    x, cond = model.initial_noise([1]), model.encode(["a church"])
    for sampler in ("lms", "ddim", "dpm"):
        (*_, (_, own)), (*_, (_, theirs)) = (
            m.denoise(x, cond, 7.5, steps=5, sampler=sampler) for m in (model, given)
        )
        assert (own - theirs).abs().max() <= 1e-2 * own.abs().max(), sampler
    with pytest.raises(IncompatibleError, match="pndm cannot draw with this model"):
        given.schedule.sampler("pndm")


def test_a_schedule_is_the_models_own(tiny, tmp_path) -> None:
    """Betas that were given, and timesteps that were chosen; a class's default is no choice."""
    betas = np.linspace(0.001, 0.01, 1000)
    tiny.pipe.scheduler = DDIMScheduler(trained_betas=betas.tolist(), timestep_spacing="trailing")
    model = type(tiny)(tiny.pipe, "photo", tiny.sampling)
    alphas = np.cumprod(1 - betas)
    assert np.allclose(model.alphas.double().numpy(), alphas, atol=1e-5)
    for sampler in LIBRARY:
        scheduler = model.schedule.sampler(sampler)
        scheduler.set_timesteps(10)
        assert torch.equal(scheduler.alphas_cumprod, model.alphas)
        assert int(scheduler.timesteps[0]) == 999
    tiny.pipe.scheduler = PNDMScheduler(**SD)  # as Stable Diffusion's own: "leading" by default
    tiny.pipe.save_pretrained(tmp_path / "saved")
    scheduler = load_model("saved", world="photo").schedule.sampler("lms")
    scheduler.set_timesteps(50)
    assert float(scheduler.timesteps[1]) == pytest.approx(978.612, abs=1e-3)


@pytest.mark.parametrize(
    ("scheduler", "said"),
    [
        (
            DDIMScheduler(**SD, prediction_type="sample"),
            "the model predicts 'sample': expected 'eps",
        ),
        (DDIMScheduler(**SD, rescale_betas_zero_snr=True), "ends at a signal level of 0"),
        (DDIMScheduler(**SD, num_train_timesteps=500), "has 500 training timesteps: expected 1000"),
        (DDIMScheduler(trained_betas=[math.nan] * 1000), "betas that are not all from 0 to 1"),
        (DDIMScheduler(trained_betas=[1e-3] * 999 + [1.5]), "betas that are not all from 0 to 1"),
        (DDIMScheduler(trained_betas=[1e-3] * 999 + [1.0]), "ends at a signal level of 0"),
        (DDIMScheduler(**SD, timestep_spacing="even"), "timestep_spacing is 'even': expected lea"),
        (
            FlowMatchEulerDiscreteScheduler(),
            "FlowMatchEulerDiscreteScheduler has no betas: expected",
        ),
    ],
)
def test_schedules_that_are_refused(tiny, scheduler, said: str) -> None:
    tiny.pipe.scheduler = scheduler
    with pytest.raises(SpecError, match=said):
        type(tiny)(tiny.pipe, "photo", tiny.sampling)
