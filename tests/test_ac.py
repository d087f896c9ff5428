"""AC and P-AC against formulas written out here."""

from random import Random

import numpy as np
import pytest
import torch
from fakes import finished
from PIL import Image

from bench import Concept, Guidance, IncompatibleError, Prompt, SpecError
from bench.engine.settings import Settings
from bench.models.diffusers import DiffusersModel
from bench.plugins.registry import Ref, resolved
from bench.store.artifacts import Artifacts
from methods._ac import (
    AcObjective,
    Example,
    anchor_examples,
    anchor_prompts,
    detached_start,
    erased_phrases,
    given_prompts,
    with_concept,
)
from methods.ac import AC

CHURCH = Concept("church", "object", "house")
BODY = Concept("nudity", "nsfw", "a landscape", ("nudity", "a foot"))


def examples(model, n=6):
    """Noise in place of pictures, with real prompts."""
    rng, size = np.random.default_rng(1), model.sampling.size
    pictures = [
        Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)) for _ in range(n)
    ]
    texts = anchor_prompts("house", "object")
    return [Example(im, text, "house", "church") for im, text in zip(pictures, texts, strict=False)]


def objective(model, kind="object", shown=None, **changes):
    plain = {"batch": 4, "hflip": False, "augment": False, "prior": 0.0}
    return AcObjective(AC(**{**plain, **changes}), model, kind, shown or examples(model), seed=5)


@pytest.mark.parametrize("target", ["model", "noise"])
@pytest.mark.parametrize(("border", "prior"), [(0, 0.0), (1, 0.0), (1, 0.5)])
def test_loss_equals_the_formula(tiny, target: str, border: int, prior: float) -> None:
    value = objective(tiny, target=target, border=border, prior=prior).draw(tiny).value()
    shown, rng = examples(tiny), torch.Generator().manual_seed(5)
    visited = torch.randperm(6, generator=rng)[:4].tolist()
    others = torch.randperm(6, generator=rng)[:4].tolist() if prior else []
    rows = [shown[i] for i in visited + others]
    noise = torch.randn(len(rows), *tiny.latent_shape, generator=rng)
    t = torch.randint(1000, (len(rows),), generator=rng)
    latents = tiny.encode_images([row.image for row in rows]).double()
    total, side = 0.0, latents.shape[-1]

    def predict(k, text):
        a = tiny.alphas[t[k]].double()
        x = (a.sqrt() * latents[k] + (1 - a).sqrt() * noise[k].double()).float()[None]
        cond = tiny.encode([text])
        with torch.no_grad():
            return tiny.pipe.unet(x, t[k], encoder_hidden_states=cond).sample.double()[0]

    for k in range(4):
        text = rows[k].text
        goal = noise[k].double() if target == "noise" else predict(k, text)
        error = (predict(k, text.replace("house", "church")) - goal) ** 2
        inside = error[:, border : side - border, border : side - border]
        total += float(inside.sum()) / (side - 2 * border) ** 2 / 4
    for k in range(4, len(rows)):  # the anchor's own prompt, the noise, no mask, a plain mean
        total += prior * float(((predict(k, rows[k].text) - noise[k]) ** 2).mean()) / 4
    assert value == pytest.approx(total, rel=1e-4)


def test_the_prior_term_has_no_other_gradient_than_its_own(tiny) -> None:
    def gradient(prior):
        o, student = objective(tiny, prior=prior), tiny.copy()
        params = list(student.parameters("attn").values())
        for p in params:
            p.requires_grad_(True)
        torch.manual_seed(0)
        batch = o.draw(student)
        with batch.within():
            loss = batch.error(slice(0, batch.rows))
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, params)])

    one, two, three = (gradient(w) for w in (1.0, 2.0, 3.0))
    assert torch.allclose(two - one, three - two, atol=1e-3 * float((two - one).abs().max()))
    assert (two - one).abs().max() > 0


def test_each_example_is_visited_once_a_round(tiny) -> None:
    shown, seen = examples(tiny), []
    o = objective(tiny, shown=shown, batch=3)
    o._view = lambda image: (seen.append(image), (image, torch.ones(o.side, o.side), ""))[1]
    for _ in range(4):
        o.draw(tiny)
    ids = [id(image) for image in seen]
    assert set(ids[:6]) == set(ids[6:]) == {id(e.image) for e in shown}


def test_prompts_are_rewritten_and_images_mirrored_at_each_visit(tiny) -> None:
    (one,) = examples(tiny, 1)
    one = Example(one.image, "a painting of a cat", "painting", "van gogh")
    texts, images = [], []
    encode, encode_images = tiny.encode, tiny.encode_images
    tiny.encode = lambda t: (texts.extend(t), encode(t))[1]
    tiny.encode_images = lambda i: (images.extend(i), encode_images(i))[1]
    o = objective(tiny, kind="style", shown=[one], batch=12, hflip=True, target="noise")
    o.draw(tiny)
    assert set(texts) == {
        "a painting of a cat, in the style of van gogh",
        "in van gogh's style, a painting of a cat",
    }
    pixels = np.array(one.image)
    as_it_is, mirrored = (
        [bool((np.array(image) == like).all()) for image in images]
        for like in (pixels, pixels[:, ::-1])
    )
    assert all(a != b for a, b in zip(as_it_is, mirrored, strict=True))
    assert any(as_it_is) and any(mirrored)


def test_augmented_views_are_where_the_mask_says(tiny) -> None:
    """A white picture: what is grey was not covered; scales, prompts and masks follow from that."""
    size, side = tiny.sampling.size, tiny.latent_shape[-1]
    pixels = size // side
    white = Image.new("RGB", (size, size), (255, 255, 255))
    o = objective(tiny, augment=True)
    enlarged = 0
    for _ in range(600):
        shown, mask, prefix = o._view(white)
        covered = np.array(shown)[..., 0] > 250
        ys, xs = covered.nonzero()
        scale = int(ys.max() - ys.min() + 1)
        assert covered.sum() == scale**2
        if prefix in {"zoomed in ", "close up "}:
            enlarged += 1
            assert scale == size
            assert mask.all()
            continue
        assert size // 3 <= scale <= size
        assert prefix in ({"a far away ", "very small "} if scale < 0.6 * size else {""})
        expected = torch.zeros(side, side)
        top, left = int(ys.min()), int(xs.min())
        for y in range(top // pixels + 1, (top + scale) // pixels - 1):
            for x in range(left // pixels + 1, (left + scale) // pixels - 1):
                expected[y, x] = 1
        assert torch.equal(mask, expected)
    assert pytest.approx(enlarged, abs=4 * (600 * 0.34 * 0.66) ** 0.5) == 0.34 * 600


def test_enlarged_views_are_a_part_of_the_picture(tiny) -> None:
    """A picture of two halves: enlarged by 1.2 to 1.4 and cut, the border moves at most that far."""
    size = tiny.sampling.size
    halves = np.zeros((size, size, 3), dtype=np.uint8)
    halves[:, size // 2 :] = 255
    o = objective(tiny, augment=True)
    borders = {
        int((np.array(shown)[0, :, 0] < 128).sum())
        for shown, _, prefix in (o._view(Image.fromarray(halves)) for _ in range(300))
        if prefix in {"zoomed in ", "close up "}
    }
    assert len(borders) > 3
    assert all(0.3 * size <= b <= 0.7 * size for b in borders)


@pytest.mark.parametrize("border", [4, 100])
def test_a_border_that_leaves_nothing_is_refused(tiny, border: int) -> None:
    side = tiny.latent_shape[-1]
    with pytest.raises(
        IncompatibleError, match=f"border={border}: expected less than half of .* {side}"
    ):
        objective(tiny, border=border)


def test_no_gradient_passes_the_start_token(tiny) -> None:
    cond = tiny.encode(["a church"]).requires_grad_(True)
    x, t = tiny.initial_noise([0]), torch.tensor([500])
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
        o = objective(tiny, teacher=teacher)
        student = tiny.copy()
        with torch.no_grad():
            for p in student.parameters("esd-x-strict").values():
                p.mul_(1.5)
        values.append(o.draw(student).value())
    assert values[0] != pytest.approx(values[1], rel=1e-3)


def test_rewriting_by_kind() -> None:
    def seen(text, anchor, phrase, kind):
        return {with_concept(text, anchor, phrase, kind, Random(i)) for i in range(30)}

    assert seen("a painting of a cat", "painting", "van gogh", "style") == {
        "a painting of a cat, in the style of van gogh",
        "in van gogh's style, a painting of a cat",
    }
    assert seen("a house by a house", "house", "church", "object") == {"a church by a church"}
    assert seen("p", "people", "a foot", "nsfw") == {"a foot, p", "in a foot style, p", "p, a foot"}


@pytest.mark.parametrize(
    ("concept", "message"),
    [
        (Concept("church", "object"), "'church' has no anchor, the concept that replaces it"),
        (Concept("church", "object", "church"), "the anchor of 'church' is the concept itself"),
    ],
)
def test_bad_anchors(tiny, ctx, concept, message: str) -> None:
    with pytest.raises(IncompatibleError, match=message):
        finished("methods", "ac", concept, images=2, steps=1).erase(tiny, concept, ctx)


@pytest.mark.parametrize(
    ("anchor", "kind", "word"),
    [
        ("house", "object", "house"),
        ("painting", "style", "a"),
        ("people", "nsfw", "a"),
        ("a landscape", "nsfw", "a landscape"),
    ],
)
def test_there_are_two_hundred_anchor_prompts(anchor, kind, word) -> None:
    texts = anchor_prompts(anchor, kind)
    assert len(texts) == len(set(texts)) == 200
    assert all(word in text for text in texts)


def test_what_is_erased_and_what_it_is_mapped_to() -> None:
    assert erased_phrases(Concept("nudity", "nsfw", "people")) == {"people": ["nudity, nsfw"]}
    assert erased_phrases(BODY) == {"a landscape": ["nudity", "a foot"]}
    two = Concept(
        "castle, pizza, rose", "object", "house; apple; house", ("castle", "pizza", "rose")
    )
    assert erased_phrases(two) == {"house": ["castle", "rose"], "apple": ["pizza"]}


def test_anchor_images_are_drawn_as_published_and_once(tiny, tmp_path) -> None:
    ctx = Settings(batch_size=4, artifacts=Artifacts(tmp_path)).context("test", "base")
    found = anchor_examples(tiny, CHURCH, ctx, images=3)
    texts = [e.text for e in found]
    prompts = [Prompt(str(i), text, i, 6.0) for i, text in enumerate(texts)]
    drawn = tiny.resampled("dpm", 25).generate(prompts)
    assert [e.image.tobytes() for e in found] == [image.tobytes() for image in drawn]
    DiffusersModel.generate, generate = None, DiffusersModel.generate  # drawing again would fail
    try:
        again = anchor_examples(tiny, CHURCH, ctx, images=3)
    finally:
        DiffusersModel.generate = generate
    assert [e.text for e in again] == texts
    assert [e.image.tobytes() for e in again] == [image.tobytes() for image in drawn]


def test_what_is_erased_is_the_negative_prompt_of_nsfw_anchors(tiny, ctx) -> None:
    found = anchor_examples(tiny, Concept("nudity", "nsfw", "people"), ctx, images=2)
    painter = tiny.resampled("dpm", 25)
    painter.guidance = Guidance(("nudity, nsfw",))
    drawn = painter.generate([Prompt(str(i), e.text, i, 6.0) for i, e in enumerate(found)])
    assert [e.image.tobytes() for e in found] == [image.tobytes() for image in drawn]
    assert {e.phrase for e in found} == {"nudity, nsfw"}


def test_phrases_take_turns_and_each_anchor_has_its_images(tiny, ctx) -> None:
    two = Concept("castle, pizza", "object", "house; apple", ("castle", "pizza"))
    found = anchor_examples(tiny, two, ctx, images=3)
    assert [(e.anchor, e.phrase) for e in found] == [("house", "castle")] * 3 + [
        ("apple", "pizza")
    ] * 3
    assert all(e.anchor in e.text for e in found)
    assert [e.phrase for e in anchor_examples(tiny, BODY, ctx, images=3)] == [
        "nudity", "a foot", "nudity",
    ]  # fmt: skip


def test_anchor_prompts_of_a_file(tiny, ctx, tmp_path) -> None:
    path = tmp_path / "people.txt"
    path.write_text("a man, a woman\n\nchildren in a park\nthe crowd at a concert\na house\n")
    nudity = Concept("nudity", "nsfw", "people")
    found = anchor_examples(tiny, nudity, ctx, images=4, prompts=path)
    lines = ["a man, a woman", "the crowd at a concert", "a house"]
    assert [e.text for e in found] == [*lines, lines[0]]
    assert given_prompts(path, "house", "object") == ["a house"]
    assert len(given_prompts(path, "painting", "style")) == 4
    with pytest.raises(SpecError, match="people.txt: expected prompts for 'car', one per line"):
        given_prompts(path, "car", "object")
    path.write_bytes(bytes(range(256)))
    with pytest.raises(SpecError, match="people.txt: expected a text file"):
        given_prompts(path, "car", "object")


def test_what_deviates_for_want_of_published_prompts(tmp_path) -> None:
    def said(anchor, **params):
        concept = Concept("tench", "object", anchor)
        return finished("methods", "ac", concept, "photo", **params).deviations(concept)

    (line,) = said("fish")
    assert line.startswith("prompts for the anchor 'fish' are this project's; give prompts=FILE")
    assert said("house") == ()
    (tmp_path / "fish.txt").write_text("a fish\n")
    assert said("fish", prompts=tmp_path / "fish.txt") == ()


def test_the_published_commands_are_the_defaults_on_photographs() -> None:
    def params(name, kind):
        return resolved("methods", Ref("ac"), Concept(name, kind, "x"), "photo").params

    nudity, style, thing = params("nudity", "nsfw"), params("v", "style"), params("c", "object")
    for p, expected in (
        (nudity, ("attn", 400, 6.4e-5, 1.0, False)),
        (style, ("esd-x-strict", 100, 1.6e-5, 0.0, False)),
        (thing, ("esd-x-strict", 100, 1.6e-5, 0.0, True)),
    ):
        assert tuple(p[k] for k in ("params", "steps", "lr", "prior", "augment")) == expected
        assert (p["images"], p["batch"], p["hflip"], p["teacher"]) == (1000, 8, True, "student")


def test_one_ac_step_equals_adamw_on_the_formula(tiny, ctx) -> None:
    settings = {"images": 4, "batch": 4, "hflip": False, "params": "esd-x-strict", "steps": 1}
    method = finished("methods", "ac", CHURCH, **settings, lr=1e-3, clip=1e9, weight_decay=0.01)
    erased = method.erase(tiny.copy(), CHURCH, ctx)
    shown = anchor_examples(tiny, CHURCH, ctx, images=4)
    o = AcObjective(method, tiny, "object", shown, ctx.seed("ac"))
    params = tiny.parameters("esd-x-strict")
    for p in params.values():
        p.requires_grad_(True)
    batch = o.draw(tiny)
    with batch.within():
        batch.error(slice(0, 4)).backward()
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
