"""Forget-Me-Not against formulas written out here."""

from types import SimpleNamespace

import pytest
import torch
from fakes import finished

from bench import Concept, PluginError, Prompt, framed
from bench.plugins.registry import Ref, resolved
from methods.fmn import (
    attention_maps,
    attention_norm,
    concept_positions,
    invert,
    pooled,
)

CHURCH = Concept("church", "object", "house")


def test_attention_norm_equals_a_loop_over_heads(tiny) -> None:
    texts = ["a church on the beach", "a house at night"]
    where = torch.stack(
        [
            concept_positions(tiny, t, w, "eos")
            for t, w in zip(texts, ("church", "house"), strict=True)
        ]
    )
    found: dict[str, torch.Tensor] = {}
    with attention_maps(tiny, found):
        tiny.predict_noise(tiny.initial_noise([0, 1]), torch.tensor([400, 400]), tiny.encode(texts))
        maps = list(found.values())
    assert not found
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
    x, t, cond = tiny.initial_noise([0]), torch.tensor([400]), tiny.encode(["a church"])
    before = tiny.predict_noise(x, t, cond)
    with attention_maps(tiny, {}):
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
        for p in ("none", "eos", "official")
    }
    assert at["none"] == list(range(1 + n - k, 1 + n))
    assert at["eos"] == [*at["none"], 1 + n]
    assert at["official"] == [*at["none"], *range(1 + n, 32)]
    with pytest.raises(PluginError, match="the tokens of 'house' are not in 'a church'"):
        concept_positions(tiny, "a church", "house", "none")


def test_fmn_lowers_the_attention(tiny, ctx) -> None:
    def attention(model):
        where = concept_positions(model, "a photo of church", "church", "eos")[None]
        maps: dict[str, torch.Tensor] = {}
        with attention_maps(model, maps), torch.no_grad():
            model.predict_noise(
                model.initial_noise([7]), torch.tensor([500]), model.encode(["a photo of church"])
            )
            return float(attention_norm(list(maps.values()), where))

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
    few, where = invert(tiny, "a photo of", latents, 1, seed=3, ctx=ctx, pooler="none")
    many, again = invert(tiny, "a photo of", latents, 150, seed=3, ctx=ctx, pooler="none")
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


@pytest.mark.parametrize(("pad", "seen"), [(49407, 73), (0, 5)])
def test_the_official_pooler_sees_every_end_token(pad: int, seen: int) -> None:
    """Start, "a photo of", four new tokens, end, padding: 77 positions; SD 1.x pads with the end."""
    tokenizer = SimpleNamespace(
        bos_token_id=49406, eos_token_id=49407, pad_token_id=pad, model_max_length=77
    )
    model = SimpleNamespace(pipe=SimpleNamespace(tokenizer=tokenizer), device="cpu")
    ids = framed(tokenizer, [320, 1125, 539, 0, 0, 0, 0])
    assert (len(ids), ids[0], ids[8], ids[9]) == (77, 49406, 49407, pad)
    where = pooled(model, ids, 8, "official")
    where[4:8] = True
    assert int(where.sum()) == seen
    assert pooled(model, ids, 8, "eos").nonzero().flatten().tolist() == [8]
    assert not pooled(model, ids, 8, "none").any()


def test_inversion_applies_the_pooler(tiny, ctx) -> None:
    latents, n = tiny.initial_noise([1]), 1 + len(tiny.token_ids(["a photo of"])[0])
    at = {
        p: invert(tiny, "a photo of", latents, 1, seed=3, ctx=ctx, pooler=p)[1][0].nonzero()
        for p in ("none", "eos", "official")
    }
    assert [len(v) for v in at.values()] == [4, 5, 32 - n]
    photo = resolved("methods", Ref("fmn"), CHURCH, "photo").params
    assert (photo["pooler"], photo["inversion_steps"]) == ("official", 500)


def test_fmn_with_inversion_runs_on_its_own_tokens(tiny, ctx) -> None:
    erased, plain = (
        finished("methods", "fmn", CHURCH, steps=2, lr=1e-3, images=2, inversion_steps=n).erase(
            tiny.copy(), CHURCH, ctx
        )
        for n in (2, 0)
    )
    a, b = erased.parameters("esd-x"), plain.parameters("esd-x")
    assert any(not torch.equal(a[n], b[n]) for n in a)
