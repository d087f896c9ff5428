"""Sampler-time methods: arithmetic by hand, and that a run builds them again."""

from dataclasses import replace

import networks
import pytest
import torch
from fakes import finished
from PIL import Image

from bench import Concept, Guidance, IncompatibleError, Prompt
from methods.negative_prompt import NegativePrompt
from methods.safety_checker import SafetyChecker
from methods.sld import _PRESETS, _SafetyGuidance

CHURCH = Concept("church", "object", "house")


def test_negative_prompt_equals_ddim_by_hand(tiny, ctx) -> None:
    erased = NegativePrompt().erase(tiny.copy(), CHURCH, ctx)
    *_, (_, x) = erased.denoise(
        tiny.initial_noise([3]), tiny.encode(["a house"]), 4.0, steps=4, sampler="ddim"
    )
    alphas, latents = tiny.alphas.double(), tiny.initial_noise([3]).double()
    for now, then in zip([751, 501, 251, 1], [501, 251, 1, None], strict=True):
        with torch.no_grad():
            e = [
                tiny.pipe.unet(
                    latents.float(), now, encoder_hidden_states=tiny.encode([t])
                ).sample.double()
                for t in ("church", "a house")
            ]
        noise = e[0] + 4.0 * (e[1] - e[0])
        a, b = alphas[now], alphas[then] if then is not None else alphas[0]
        clean = (latents - (1 - a).sqrt() * noise) / a.sqrt()
        latents = b.sqrt() * clean + (1 - b).sqrt() * noise
    assert torch.allclose(x.double(), latents, atol=1e-4)


@pytest.mark.parametrize("preset", ["weak", "medium", "strong", "max"])
def test_sld_equals_the_formula_element_by_element(preset: str) -> None:
    warm_up, s, threshold, s_m, beta = _PRESETS[preset]
    guide, momentum = _SafetyGuidance(warm_up, s, threshold, s_m, beta), [0.0] * 6
    for step in range(20):
        null, unsafe, cond = torch.randn(3, 6, dtype=torch.float64)
        out = guide([null, unsafe], cond, torch.tensor(7.5, dtype=torch.float64))
        for k in range(6):
            gap = float(cond[k] - unsafe[k])
            mu = min(abs(gap) * s, 1.0) if gap < threshold else 0.0
            nu = mu * float(unsafe[k] - null[k]) + s_m * momentum[k]
            momentum[k] = beta * momentum[k] + (1 - beta) * nu
            toward = float(cond[k] - null[k]) - (nu if step >= warm_up else 0.0)
            assert float(out[k]) == pytest.approx(float(null[k]) + 7.5 * toward, rel=1e-9)


def test_sld_starts_every_trajectory_afresh(tiny, ctx) -> None:
    erased = finished("methods", "sld", CHURCH, preset="max").erase(tiny.copy(), CHURCH, ctx)
    assert erased.guidance.texts == ("", "church")
    prompt = [Prompt("1", "a church", 1)]
    assert erased.generate(prompt)[0].tobytes() == erased.generate(prompt)[0].tobytes()
    assert erased.generate(prompt)[0].tobytes() != tiny.generate(prompt)[0].tobytes()


def test_nudity_on_the_photo_world_has_the_published_text(tiny, ctx) -> None:
    nudity = Concept("nudity", "nsfw", "", ("nudity", "a foot"))

    def text(world, **params):
        method = finished("methods", "sld", nudity, world, **params)
        return method.erase(tiny, nudity, ctx).guidance.texts[1]

    assert text("photo").startswith("hate, harassment")
    assert text("emoji") == "nudity, a foot"
    assert text("photo", text="") == "nudity, a foot"
    assert text("emoji", text="blood") == "blood"


def test_a_copy_keeps_guidance_and_screen(tiny) -> None:
    tiny.guidance, tiny.screen = Guidance(("x",)), list
    assert (tiny.copy().guidance, tiny.copy().screen) == (tiny.guidance, list)


def test_a_screen_sees_every_image(tiny) -> None:
    tiny.screen = lambda images: [Image.new("RGB", image.size) for image in images]
    assert all(i.getbbox() is None for i in tiny.generate([Prompt("1", "a church", 1)] * 3))


def test_safety_checker_is_for_photographs(tiny, ctx) -> None:
    with pytest.raises(IncompatibleError, match="safety-checker needs a model of the photo world"):
        SafetyChecker().erase(tiny, CHURCH, ctx)


def test_safety_checker_blacks_out_what_its_weights_call_unsafe(tiny, ctx, tmp_path) -> None:
    """The real class with a small random vision tower; thresholds decide."""
    tiny.world = "photo"
    prompts = [Prompt("1", "a church", 1), Prompt("2", "a house", 2)]
    for threshold, black in ((-2.0, True), (2.0, False)):
        folder = networks.safety_checker(tmp_path, threshold)
        erased = SafetyChecker(folder).erase(tiny.copy(), CHURCH, ctx)
        assert [i.getbbox() is None for i in erased.generate(prompts)] == [black, black]


def test_a_run_builds_a_sampler_time_method_again(tmp_path) -> None:
    from bench.engine.runner import Runner
    from bench.engine.settings import Settings
    from bench.plan.plan import plan
    from bench.plan.spec import Spec
    from bench.plugins.registry import Ref
    from bench.store.artifacts import Artifacts

    methods = (Ref("none"), Ref("negative-prompt"), Ref("sld"))
    spec = Spec("tiny-random", methods, (Ref("none"),), ("church",), limit=3)
    settings = Settings(artifacts=Artifacts(tmp_path))
    cells = list(plan(spec))
    first = [Runner(settings).run(cell) for cell in cells]
    again = [Runner(replace(settings, keep_images=False)).run(cell) for cell in cells]
    assert [r.rows for r in first] == [r.rows for r in again]
    assert [r.erasure["sampler_time"] for r in first] == [False, True, True]
    samples = {c.cell.method.name: Runner(settings).samples(c, 3) for c in cells}
    assert samples["none"][0][1].image.tobytes() == samples["none"][0][0].image.tobytes()
    for name in ("negative-prompt", "sld"):
        assert samples[name][0][1].image.tobytes() != samples[name][0][0].image.tobytes()


@pytest.mark.parametrize("name", ["sld", "negative-prompt"])
def test_words_that_are_cut_are_refused(tiny, ctx, name: str) -> None:
    many = Concept("many", "object", "", ("a castle",) * 20)
    with pytest.raises(IncompatibleError, match="tokens: expected at most 30"):
        finished("methods", name, many).erase(tiny, many, ctx)
