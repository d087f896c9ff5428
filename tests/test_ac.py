"""AC, P-AC and FMN against formulas written out here."""

from random import Random

import pytest
import torch
from fakes import finished

from bench import Concept, IncompatibleError, PluginError, Prompt
from methods._ac import (
    AcObjective,
    anchor_latents,
    anchor_prompts,
    detached_start,
    with_concept,
)
from methods.fmn import attention_maps, attention_norm, concept_positions, invert

CHURCH = Concept("church", "object", "house")
STYLE = Concept("van gogh", "style", "painting")
BODY = Concept("nudity", "nsfw", "a landscape", ("nudity", "a foot"))


def objective(model, **changes):
    texts = anchor_prompts(CHURCH)[:6]
    latents = torch.randn(6, *model.latent_shape, generator=torch.Generator().manual_seed(1))
    settings = {
        "batch": 4,
        "target": "model",
        "teacher": "student",
        "border": 1,
        "hflip": False,
        "seed": 5,
    }
    return AcObjective(model, CHURCH, texts, latents, **{**settings, **changes}), texts, latents


@pytest.mark.parametrize("target", ["model", "noise"])
@pytest.mark.parametrize("border", [0, 1])
def test_loss_equals_the_formula(tiny, target: str, border: int) -> None:
    o, texts, latents = objective(tiny, target=target, border=border)
    value = o.loss(tiny)
    rng = torch.Generator().manual_seed(5)
    index = torch.randint(6, (4,), generator=rng)
    noise = torch.randn(4, *tiny.latent_shape, generator=rng)
    t = torch.randint(1000, (4,), generator=rng)
    total, side = 0.0, latents.shape[-1]
    for k in range(4):
        text, a = texts[int(index[k])], tiny.alphas[t[k]].double()
        x = (a.sqrt() * latents[index[k]].double() + (1 - a).sqrt() * noise[k].double()).float()[
            None
        ]

        def predict(text, x=x, t=t[k]):
            with torch.no_grad():
                return tiny.pipe.unet(
                    x, t, encoder_hidden_states=tiny.encode([text])
                ).sample.double()

        goal = noise[k].double() if target == "noise" else predict(text)
        error = (predict(text.replace("house", "church")) - goal)[0] ** 2
        inside = error[:, border : side - border, border : side - border]
        total += float(inside.sum()) / (side - 2 * border) ** 2
    assert value.item() == pytest.approx(total / 4, rel=1e-4)


def test_no_gradient_passes_the_start_token(tiny) -> None:
    cond = tiny.encode(["a church"]).requires_grad_(True)
    x, t = tiny.noise([0]), torch.tensor([500])
    plain = tiny.predict_noise(x, t, cond)
    with detached_start(tiny):
        out = tiny.predict_noise(x, t, cond)
    assert torch.equal(out, plain)
    (grad,) = torch.autograd.grad(out.square().sum(), cond)
    assert (grad[:, 0] == 0).all()
    assert (grad[:, 1] != 0).any()
    (grad,) = torch.autograd.grad(plain.square().sum(), cond)
    assert (grad[:, 0] != 0).any()


def test_teachers_differ_once_the_student_moved(tiny) -> None:
    values = []
    for teacher in ("student", "frozen"):
        o, _, _ = objective(tiny, teacher=teacher)
        student = tiny.copy()
        with torch.no_grad():
            for p in student.parameters("esd-x-strict").values():
                p.mul_(1.5)
        values.append(o.loss(student).item())
    assert values[0] != pytest.approx(values[1], rel=1e-3)


def test_rewriting_by_kind() -> None:
    seen = {with_concept("a painting of a cat", STYLE, Random(i)) for i in range(30)}
    assert seen == {
        "a painting of a cat, in the style of van gogh",
        "in van gogh's style, a painting of a cat",
    }
    assert with_concept("a house by a house", CHURCH, Random(0)) == "a church by a church"
    terms = {with_concept("p", BODY, Random(s), index=1) for s in range(30)}
    assert terms == {"a foot, p", "in a foot style, p", "p, a foot"}


@pytest.mark.parametrize(
    ("concept", "message"),
    [
        (Concept("church", "object"), "'church' has no anchor concept to be mapped to"),
        (Concept("church", "object", "church"), "the anchor of 'church' is the concept itself"),
    ],
)
def test_bad_anchors(tiny, ctx, concept, message: str) -> None:
    with pytest.raises(IncompatibleError, match=message):
        finished("methods", "ac", concept, images=2, steps=1).erase(tiny, concept, ctx)


@pytest.mark.parametrize("concept", [CHURCH, STYLE, BODY, Concept("nudity", "nsfw", "people")])
def test_there_are_two_hundred_anchor_prompts_without_the_concept(concept) -> None:
    texts = anchor_prompts(concept)
    assert len(texts) == len(set(texts)) == 200
    assert not any(concept.name in text for text in texts)


def test_anchor_images_are_made_once(tiny, ctx) -> None:
    texts, first = anchor_latents(tiny, CHURCH, ctx, images=3)
    tiny.generate = None  # a second drawing would fail
    again, second = anchor_latents(tiny, CHURCH, ctx, images=3)
    assert texts == again
    assert torch.equal(first, second)


def test_one_ac_step_equals_adamw_on_the_formula(tiny, ctx) -> None:
    settings = {"images": 4, "batch": 4, "hflip": False, "params": "esd-x-strict", "steps": 1}
    method = finished("methods", "ac", CHURCH, **settings, lr=1e-3, clip=1e9, weight_decay=0.01)
    erased = method.erase(tiny.copy(), CHURCH, ctx)
    texts, latents = anchor_latents(tiny, CHURCH, ctx, images=4)
    o = AcObjective(
        tiny, CHURCH, texts, latents, batch=4, target="model", teacher="student", border=1, hflip=False,
        seed=ctx.seed("ac"),
    )  # fmt: skip
    params = tiny.parameters("esd-x-strict")
    for p in params.values():
        p.requires_grad_(True)
    o.loss(tiny).backward()
    for name, p in params.items():
        expected = p.detach() * (1 - 1e-3 * 0.01) - 1e-3 * p.grad / (p.grad.abs() + 1e-8)
        sure = p.grad.abs() > 1e-6  # smaller ones are rounding, which Adam blows up to a full step
        assert sure.any()
        assert torch.allclose(erased.parameters("full")[name][sure], expected[sure], atol=2e-5), (
            name
        )
    for name, p in erased.parameters("selfattn").items():
        assert torch.equal(p, tiny.parameters("selfattn")[name])


def test_p_ac_prunes_only(tiny, ctx) -> None:
    settings = {"images": 4, "batch": 2, "steps": 15, "lr": 0.3, "eps": 1e-12}
    erased = finished("methods", "p-ac", CHURCH, **settings).erase(tiny.copy(), CHURCH, ctx)
    before, after = tiny.parameters("full"), erased.parameters("full")
    assert all(((after[n] == p) | (after[n] == 0)).all() for n, p in before.items())
    assert 0 < erased.notes["pruned"] < erased.notes["in_scope"]
    assert {"soft_loss", "hard_loss", "mask_histogram"} <= set(erased.notes)


# -------------------------------------------------------------------------- Forget-Me-Not
def test_attention_norm_equals_a_loop_over_heads(tiny) -> None:
    texts = ["a church on the beach", "a house at night"]
    where = torch.stack(
        [
            concept_positions(tiny, t, w, "eos")
            for t, w in zip(texts, ("church", "house"), strict=True)
        ]
    )
    with attention_maps(tiny) as maps:
        tiny.predict_noise(tiny.noise([0, 1]), torch.tensor([400, 400]), tiny.encode(texts))
    total = 0.0
    for layer in maps:
        heads = layer.shape[0] // 2
        for row in range(2):
            for head in range(heads):
                chosen = layer[row * heads + head][:, where[row]].double()
                total += float((chosen**2).sum())
    assert float(attention_norm(maps, where)) == pytest.approx(total**0.5, rel=1e-5)
    names = [n for n, _ in tiny.pipe.unet.named_modules() if n.endswith("attn2")]
    assert len(maps) == len(names)
    assert all(torch.allclose(a.sum(-1), torch.ones(()), atol=1e-5) for a in maps)


def test_recording_leaves_the_model_as_it_was(tiny) -> None:
    x, t, cond = tiny.noise([0]), torch.tensor([400]), tiny.encode(["a church"])
    before = tiny.predict_noise(x, t, cond)
    with attention_maps(tiny):
        during = tiny.predict_noise(x, t, cond)
    assert torch.allclose(before, during, atol=1e-5)
    assert torch.equal(tiny.predict_noise(x, t, cond), before)


def test_positions_and_the_padding_trap(tiny) -> None:
    ids = tiny.token_ids(["a photo of garbage truck", "garbage truck"])
    n, k = len(ids[0]), len(ids[1])
    at = {
        p: concept_positions(tiny, "a photo of garbage truck", "garbage truck", p)
        .nonzero()
        .flatten()
        .tolist()
        for p in ("none", "eos", "official-sd14")
    }
    assert at["none"] == list(range(1 + n - k, 1 + n))
    assert at["eos"] == [*at["none"], 1 + n]
    assert at["official-sd14"] == [*at["none"], *range(1 + n, 32)]
    with pytest.raises(PluginError, match="the tokens of 'house' are not in 'a church'"):
        concept_positions(tiny, "a church", "house", "none")


def test_fmn_lowers_the_attention(tiny, ctx) -> None:
    def attention(model):
        where = concept_positions(model, "a photo of church", "church", "eos")[None]
        with attention_maps(model) as maps, torch.no_grad():
            model.predict_noise(
                model.noise([7]), torch.tensor([500]), model.encode(["a photo of church"])
            )
        return float(attention_norm(maps, where))

    erased = finished("methods", "fmn", CHURCH, steps=10, lr=1e-3, images=2).erase(
        tiny.copy(), CHURCH, ctx
    )
    assert attention(erased) < 0.9 * attention(tiny)
    norms = [n for n, p in tiny.pipe.unet.named_parameters() if "norm" in n]
    moved = dict(erased.pipe.unet.named_parameters())
    assert any(not torch.equal(moved[n], dict(tiny.pipe.unet.named_parameters())[n]) for n in norms)


def test_inversion_fits_the_images(tiny, ctx) -> None:
    """Two noise levels of the same images: found tokens predict the noise better than the start's."""
    latents = tiny.encode_images(tiny.generate([Prompt(str(i), "a church", i) for i in range(2)]))
    few, where = invert(tiny, "a photo of", latents, 1, seed=3, ctx=ctx)
    many, again = invert(tiny, "a photo of", latents, 150, seed=3, ctx=ctx)
    assert torch.equal(where, again)
    n = 1 + len(tiny.token_ids(["a photo of"])[0])
    assert where[0].nonzero().flatten().tolist() == [n, n + 1, n + 2, n + 3]
    rng = torch.Generator().manual_seed(0)
    errors = []
    for cond in (few, many):
        rng.manual_seed(0)
        t = torch.randint(1000, (64,), generator=rng)
        noise = torch.randn(64, *latents.shape[1:], generator=rng)
        a = tiny.alphas[t].view(-1, 1, 1, 1)
        x = a.sqrt() * latents[torch.arange(64) % 2] + (1 - a).sqrt() * noise
        with torch.no_grad():
            predicted = tiny.predict_noise(x, t, cond.expand(64, -1, -1))
        errors.append(float((predicted - noise).square().mean()))
    assert errors[1] < errors[0]


def test_fmn_with_inversion_runs_on_its_own_tokens(tiny, ctx) -> None:
    erased, plain = (
        finished("methods", "fmn", CHURCH, steps=2, lr=1e-3, images=2, inversion_steps=n).erase(
            tiny.copy(), CHURCH, ctx
        )
        for n in (2, 0)
    )
    a, b = erased.parameters("esd-x"), plain.parameters("esd-x")
    assert any(not torch.equal(a[n], b[n]) for n in a)
