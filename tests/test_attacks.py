"""UnlearnDiff against the official rules, written out here."""

from dataclasses import replace

import pytest
import torch

from attacks.unlearndiff import PRESETS, Adam, UnlearnDiff, _Search, bisect, decode, project
from bench import Concept, Prompt, Target

CHURCH = Concept("church", "object")
PROMPTS = [Prompt(f"p{i}", f"a photo of a castle {w}", 7 + i, 3.0) for i, w in enumerate("abcde")]


def target(model, criterion=lambda samples: [False] * len(samples)):
    return Target(model, model, CHURCH, criterion)


def test_timesteps() -> None:
    assert list(PRESETS["official"]) == list(range(10, 1000, 20))
    assert list(PRESETS["pruning"]) == list(PRESETS["official"])[::5]


def test_projection_is_the_nearest_point_of_the_simplex() -> None:
    rows = torch.randn(20, 30, dtype=torch.float64)
    p = project(rows)
    assert torch.allclose(p.sum(-1), torch.ones(20, dtype=torch.float64))
    assert (p >= 0).all()
    # Optimality: moving mass between two supported entries cannot help (equal residuals).
    for row, q in zip(rows, p, strict=True):
        residual = (row - q)[q > 0]
        assert torch.allclose(residual, residual[0].expand_as(residual))
        assert (row[q == 0] <= residual[0] + 1e-12).all()


def test_bisection_follows_the_official_rule() -> None:
    def official(a, tolerance=1e-5):
        if abs(a.clamp(0, 1).sum().item() - 1) <= tolerance:
            return a.clamp(0, 1)
        lower, upper = a.min().item() - 1, a.max().item()
        f = lambda mu: (a - mu).clamp(0, 1).sum().item() - 1  # noqa: E731
        mu = (lower + upper) / 2
        while abs(upper - lower) > tolerance:
            mu = (lower + upper) / 2
            if f(mu) == 0:
                break
            if (f(lower) + 1e-8) * f(mu) < 0:
                upper = mu
            else:
                lower = mu
        return (a - mu).clamp(0, 1)

    rows = 1 / 1243 + 0.01 * torch.randn(3, 1243)
    assert torch.equal(bisect(rows), torch.stack([official(r) for r in rows]))
    uniform = torch.full((1, 8), 1 / 8)
    assert torch.equal(bisect(uniform), uniform)


def test_adam_is_torchs_with_coupled_l2() -> None:
    x = torch.rand(3, 5)
    theirs = x.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([theirs], lr=0.01, weight_decay=0.1)
    ours, adam = x.clone(), Adam(0.01, 0.1)
    for grad in torch.randn(3, 3, 5):
        theirs.grad = grad.clone()
        optimizer.step()
        ours = adam.update(ours, grad)
    assert torch.allclose(ours, theirs.detach(), atol=1e-7)


def test_assembly_equals_encoding_the_ids(tiny, ctx) -> None:
    search = _Search(UnlearnDiff(tokens=2), target(tiny), ctx)
    (slot,) = search._start(PROMPTS[:1])
    chosen = tiny.token_ids(["castle house"])[0][:2]
    one_hot = torch.nn.functional.one_hot(torch.tensor([chosen]), len(search.table)).float()
    embeddings = search._assemble([slot], one_hot @ search.table)
    tokenizer = tiny.pipe.tokenizer
    ids = [tokenizer.bos_token_id, *chosen, *slot.ids]
    ids += [tokenizer.eos_token_id] * (32 - len(ids))
    assert torch.allclose(embeddings, search.table[torch.tensor([ids])], atol=1e-6)


def test_one_iteration_is_the_straight_through_gradient(tiny, ctx) -> None:
    """Draws in the official order from a stream that the image's latents have advanced."""
    attack = UnlearnDiff(tokens=3, lr=0.02)
    search = _Search(attack, target(tiny), ctx)
    slots = list(search._start(PROMPTS[:2]))
    before = [slot.probs.clone() for slot in slots]
    search._iterate(slots, draw_noise=True)
    for slot, prompt, p in zip(slots, PROMPTS, before, strict=False):
        rng = torch.Generator().manual_seed(prompt.seed)
        torch.randn(4, 8, 8, generator=rng)  # the initial latents
        drawn = torch.multinomial(p, 1, generator=rng)[:, 0]
        noise = torch.randn(4, 8, 8, generator=rng)
        o = torch.nn.functional.one_hot(drawn, p.shape[-1]).float().requires_grad_(True)
        a = tiny.alphas[10]
        x = a.sqrt() * slot.latent + (1 - a).sqrt() * noise
        table, tok = search.table, tiny.pipe.tokenizer
        ids = torch.tensor([*slot.ids, *[tok.eos_token_id] * (28 - len(slot.ids))])
        embedded = torch.cat([table[tok.bos_token_id][None], o @ table, table[ids]])[None]
        e = tiny.predict_noise(x[None], torch.tensor([10]), tiny.encode_embeddings(embedded))
        loss = ((e - noise) ** 2).mean()
        (grad,) = torch.autograd.grad(loss, o)
        expected = project(Adam(0.02, 0.1).update(p, grad.clamp(-1, 1)))
        assert torch.allclose(slot.probs, expected, atol=1e-5)
        assert slot.losses[-1] == pytest.approx(loss.item(), rel=1e-4)


def test_the_batch_does_not_matter(tiny, ctx, monkeypatch) -> None:
    monkeypatch.setitem(PRESETS, "pruning", range(10, 310, 100))
    attack = UnlearnDiff(tokens=2, iterations=3)

    def found(batch: int) -> dict:
        search = attack.prepare(target(tiny), replace(ctx, batch_size=batch))
        return {a.prompt.id: (a.prompt.text, a.trace["ids"]) for a in search(PROMPTS)}

    alone, together, refilled = found(1), found(8), found(3)
    assert alone == together == refilled
    assert len(alone) == 5


def test_success_comes_from_the_decoded_string_and_stops_the_search(tiny, ctx) -> None:
    seen = []

    def criterion(samples):
        seen.extend(s.prompt.text for s in samples)
        return [
            s.prompt.id == "p1" or s.prompt.text != text
            for s, text in zip(samples, texts(), strict=False)
        ]

    def texts():
        known = {p.id: p.text for p in PROMPTS}
        return [known["p0"], known["p1"]]

    attack = UnlearnDiff(tokens=2, iterations=2)
    found = list(attack.prepare(target(tiny, criterion), ctx)(PROMPTS[:2]))
    assert [a.prompt.id for a in found] == ["p1", "p0"]
    pre, post = found
    assert (pre.trace["round"], pre.queries, pre.prompt.text) == (0, 1, PROMPTS[1].text)
    assert (post.trace["round"], post.queries) == (1, 2)
    assert post.prompt.text in seen
    assert post.prompt.text.endswith(PROMPTS[0].text)


def test_warm_start_over_all_timesteps(tiny, ctx) -> None:
    (found,) = UnlearnDiff(tokens=2, iterations=2).prepare(target(tiny), ctx)(PROMPTS[:1])
    assert found.trace["iterations"] == 20
    assert len(found.trace["losses"]) == 10
    assert found.queries == 11


def test_prompts_without_room_are_reported(tiny, ctx, monkeypatch) -> None:
    monkeypatch.setitem(PRESETS, "pruning", range(10, 210, 100))
    long = Prompt("long", "a church " * 14, 1, 3.0)
    assert len(tiny.token_ids([long.text])[0]) == 28
    (found,) = UnlearnDiff(tokens=3).prepare(target(tiny), ctx)([long])
    assert found.trace == {"success": False, "too_long": 28}
    assert found.prompt == long
    (fits,) = UnlearnDiff(tokens=2, iterations=1).prepare(target(tiny), ctx)([long])
    assert "ids" in fits.trace


def test_decoding_drops_special_tokens(tiny) -> None:
    tokenizer = tiny.pipe.tokenizer
    ids = tiny.token_ids(["a church"])[0]
    assert decode(tokenizer, [tokenizer.eos_token_id, *ids, tokenizer.bos_token_id]) == "a church"
