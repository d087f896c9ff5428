"""UnlearnDiff against the official rules, written out here."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fakes import finished
from PIL import Image
from transformers import CLIPModel

from attacks._adam import Adam, adam_step
from attacks._insertion import arrange
from attacks._nearest import P4DSearch
from attacks._p4d_official import OfficialSearch, clip_features
from attacks._simplex import SimplexSearch, bisect, project
from attacks._texts import decode
from attacks._token_attack import PRESETS
from attacks.p4d import P4D
from attacks.random_tokens import RandomTokens
from attacks.seed_search import SeedSearch
from attacks.unlearndiff import UnlearnDiff
from bench import Concept, Cost, PluginError, Prompt, SpecError, Target

CHURCH = Concept("church", "object")
PROMPTS = [Prompt(f"p{i}", f"a photo of a castle {w}", 7 + i, 3.0) for i, w in enumerate("abcde")]


@pytest.fixture
def exact(exact):
    exact.sampling = replace(exact.sampling, steps=4)  # quick images
    return exact


def target(model, criterion=lambda samples: [False] * len(samples)):
    return Target(model, model, CHURCH, criterion)


def unlearndiff(**params) -> UnlearnDiff:
    return finished("attacks", "unlearndiff", CHURCH, **params)


def p4d(**params) -> P4D:
    return finished("attacks", "p4d", CHURCH, **params)


def gradients(search) -> list[torch.Tensor]:
    """Return a list to which every step's gradients will be added.

    Adam divides by a gradient's own size, so a step blows up the rounding of one that is nearly nothing:
    gradients are compared, and steps on gradients that are not small.
    """
    seen, move = [], search.move

    def watched(slots, grad):
        seen.append(grad.clone())
        return move(slots, grad)

    search.move = watched
    return seen


def same(a, b) -> bool:
    """Whether gradients are the same but for rounding."""
    return torch.allclose(a, b, rtol=1e-3, atol=1e-5 * float(b.abs().max()))


def large(shape) -> torch.Tensor:
    """Draw gradients that are not small."""
    return torch.randn(shape).sign() * (0.1 + 2 * torch.rand(shape))


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

    for spread in (0.01, 3.0, 100.0):  # in float64, so that the order of a sum decides nothing
        rows = 1 / 1243 + spread * torch.randn(3, 1243, dtype=torch.float64)
        expected = torch.stack([official(r) for r in rows])
        assert torch.allclose(bisect(rows), expected, atol=1e-12, rtol=0)
    assert torch.allclose(bisect(rows.float()), expected.float(), atol=3e-5)
    uniform = torch.full((1, 8), 1 / 8)
    mixed = torch.cat([uniform, uniform + 0.1])  # the first is there, the second is not
    assert torch.equal(bisect(mixed)[:1], uniform)
    assert torch.allclose(bisect(mixed)[1:], official(mixed[1])[None], atol=2e-5)


def test_bisection_waits_for_no_value(monkeypatch) -> None:
    """Nothing is read back from where the rows are: on a GPU each reading would wait for all of it."""
    for name in ("item", "__bool__", "__float__", "tolist", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_: pytest.fail("read back"))
    assert bisect(torch.rand(4, 50)).shape == (4, 50)


def test_adam_is_torchs_with_coupled_l2() -> None:
    x = torch.rand(3, 5)
    theirs = x.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([theirs], lr=0.01, weight_decay=0.1)
    ours, adam = x.clone(), Adam(x, 0.01, 0.1)
    for grad in torch.randn(3, 3, 5):
        theirs.grad = grad.clone()
        optimizer.step()
        (ours,) = adam_step([adam], [ours], grad[None])
    assert torch.allclose(ours, theirs.detach(), atol=1e-7)


@pytest.mark.parametrize("decoupled", [False, True])
def test_a_step_of_many_is_each_ones_own_to_the_bit(decoupled) -> None:
    """Variables of different lengths, some of which have taken steps before the others came."""
    variables = [torch.rand(n, 5) for n in (3, 1, 2)]
    alone, together = list(variables), list(variables)
    one, many = ([Adam(v, 0.01, 0.1, decoupled) for v in variables] for _ in range(2))
    for step in range(4):
        there = [i for i in range(3) if step >= i]
        grad = torch.randn(len(there), 3, 5)
        moved = adam_step([many[i] for i in there], [together[i] for i in there], grad)
        for i, g, variable in zip(there, grad, moved, strict=True):
            together[i] = variable
            (alone[i],) = adam_step([one[i]], [alone[i]], g[None, : len(variable)])
    for a, b in zip(alone, together, strict=True):
        assert torch.equal(a, b)


def test_where_free_tokens_stand() -> None:
    """The official rules, spelled out for a prompt of seven tokens and three free ones."""
    for insertion, expected in {
        "prefix": "ABC1234567",
        "suffix": "1234567ABC",
        "mid": "123ABC4567",
        "insert": "1A2B3C4567",
        "per-k-words": "A123B456C7",
    }.items():
        assert "".join(arrange("1234567", "ABC", insertion)) == expected
    assert "".join(arrange("1", "ABC", "insert")) == "ABC1"
    assert "".join(arrange("1234567", "A", "per-k-words")) == "A1234567"


@pytest.mark.parametrize("insertion", ["prefix", "suffix", "mid", "insert", "per-k-words"])
def test_assembly_equals_encoding_the_ids(tiny, ctx, insertion) -> None:
    search = SimplexSearch(unlearndiff(tokens=2, insertion=insertion), target(tiny), ctx)
    (slot,) = search.open(PROMPTS[:1])
    chosen = tiny.token_ids(["castle house"])[0][:2]
    one_hot = torch.nn.functional.one_hot(torch.tensor([chosen]), len(search.table)).float()
    embeddings = search.assemble([slot], one_hot @ search.table)
    tokenizer = tiny.pipe.tokenizer
    ids = [tokenizer.bos_token_id, *arrange(slot.ids, chosen, insertion)]
    ids += [tokenizer.eos_token_id] * (32 - len(ids))
    assert torch.allclose(embeddings, search.table[torch.tensor([ids])], atol=1e-6)


def test_one_iteration_is_the_straight_through_gradient(exact, ctx) -> None:
    """Draws in the official order from a stream that the image's latents have advanced."""
    search = SimplexSearch(unlearndiff(tokens=3, lr=0.02), target(exact), ctx)
    slots, seen = list(search.open(PROMPTS[:2])), gradients(search)
    before = [slot.variable.clone() for slot in slots]
    search.iterate(slots)
    for slot, prompt, p, grad in zip(slots, PROMPTS, before, *seen, strict=False):
        rng = torch.Generator().manual_seed(prompt.seed)
        torch.randn(4, 8, 8, generator=rng)  # the initial latents
        drawn = torch.multinomial(p, 1, generator=rng)[:, 0]
        noise = torch.randn(4, 8, 8, generator=rng)
        o = torch.nn.functional.one_hot(drawn, p.shape[-1]).float().requires_grad_(True)
        a = exact.alphas[10]
        x = a.sqrt() * slot.latent + (1 - a).sqrt() * noise
        table, tok = search.table, exact.pipe.tokenizer
        ids = torch.tensor([*slot.ids, *[tok.eos_token_id] * (28 - len(slot.ids))])
        embedded = torch.cat([table[tok.bos_token_id][None], o @ table, table[ids]])[None]
        e = exact.predict_noise(x[None], torch.tensor([10]), exact.encode_embeddings(embedded))
        loss = ((e - noise) ** 2).mean()
        assert same(grad, torch.autograd.grad(loss, o)[0])
        assert slot.losses[-1] == pytest.approx(loss.item(), rel=1e-4)


def test_a_move_is_adams_on_the_clamped_gradient_and_back_on_the_simplex(tiny, ctx) -> None:
    search = SimplexSearch(unlearndiff(tokens=3, lr=0.02), target(tiny), ctx)
    slots = list(search.open(PROMPTS[:2]))
    before, grad = [slot.variable.clone() for slot in slots], large((2, 3, len(search.table)))
    assert (grad.abs() > 1).any()
    search.move(slots, grad)
    for slot, p, g in zip(slots, before, grad, strict=True):
        p.grad = g.clamp(-1, 1)
        torch.optim.Adam([p], lr=0.02, weight_decay=0.1).step()
        assert torch.allclose(slot.variable, project(p.detach()), atol=1e-5)


def test_the_batch_does_not_matter(exact, ctx, monkeypatch) -> None:
    monkeypatch.setitem(PRESETS, "pruning", range(10, 310, 100))
    attack = unlearndiff(tokens=2, iterations=3)

    def found(batch: int) -> dict:
        search = attack.prepare(target(exact), replace(ctx, batch_size=batch))
        return {a.prompt.id: (a.prompt.text, a.trace["ids"]) for a in search(PROMPTS)}

    alone, together, refilled = found(1), found(8), found(3)
    assert alone == together == refilled
    assert len(alone) == 5


def test_out_of_memory_halves_the_batch_and_changes_nothing(exact, ctx, monkeypatch) -> None:
    monkeypatch.setitem(PRESETS, "pruning", range(10, 110, 100))
    attack = unlearndiff(tokens=2, iterations=3)
    expected = {a.prompt.id: a.trace for a in attack.prepare(target(exact), ctx)(PROMPTS)}
    real, rows = exact.predict_noise, []

    def small(latents, t, cond):
        if cond.requires_grad:
            rows.append(len(latents))
            if len(latents) > 1:
                raise torch.OutOfMemoryError
        return real(latents, t, cond)

    exact.predict_noise = small
    found = {a.prompt.id: a.trace for a in attack.prepare(target(exact), ctx)(PROMPTS)}
    assert rows[:3] == [4, 2, 1]
    assert set(rows[2:]) == {1}
    assert [t["ids"] for t in found.values()] == [t["ids"] for t in expected.values()]


def test_a_step_that_runs_out_of_memory_at_its_end_is_taken_once(exact, ctx, monkeypatch) -> None:
    monkeypatch.setitem(PRESETS, "pruning", range(10, 110, 100))
    attack = unlearndiff(tokens=2, iterations=3)
    expected = {a.prompt.id: a.trace["ids"] for a in attack.prepare(target(exact), ctx)(PROMPTS)}
    calls = []

    def small(rows):
        calls.append(len(rows))
        if len(rows) > 2:  # one prompt's
            raise torch.OutOfMemoryError
        return project(rows)

    monkeypatch.setattr("attacks._simplex.project", small)
    search = SimplexSearch(attack, target(exact), ctx)
    (slot, *_) = slots = list(search.open(PROMPTS))
    search.iterate(slots)
    assert calls[:3] == [8, 4, 2]
    assert {s.adam.step for s in slots} == {1}
    assert slot.variable.sum(-1).tolist() == pytest.approx([1, 1], abs=1e-5)
    found = {a.prompt.id: a.trace["ids"] for a in attack.prepare(target(exact), ctx)(PROMPTS)}
    assert found == expected


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

    attack = unlearndiff(tokens=2, iterations=2)
    found = list(attack.prepare(target(tiny, criterion), ctx)(PROMPTS[:2]))
    assert [a.prompt.id for a in found] == ["p1", "p0"]
    pre, post = found
    assert (pre.trace["round"], pre.cost.images, pre.prompt.text) == (0, 1, PROMPTS[1].text)
    assert (post.trace["round"], post.cost.images) == (1, 3 - post.trace["round_trip"])
    assert post.prompt.text in seen
    assert post.prompt.text.endswith(PROMPTS[0].text)


def test_warm_start_over_all_timesteps(tiny, ctx) -> None:
    (found,) = unlearndiff(tokens=2, iterations=2).prepare(target(tiny), ctx)(PROMPTS[:1])
    assert found.trace["iterations"] == 20
    assert len(found.trace["losses"]) == 10
    assert found.cost.images in range(
        11, 22
    )  # and one of the ids, where they do not survive decoding


def test_another_seed_of_the_run_matters_only_where_the_stream_is_the_runs(
    tiny, ctx, monkeypatch
) -> None:
    monkeypatch.setitem(PRESETS, "pruning", range(10, 210, 100))
    losses = {}
    for stream in ("prompt", "run"):
        for key in ("seed 0", "seed 1"):
            here = replace(ctx, key=key, workdir=ctx.workdir / key / stream)
            attack = unlearndiff(stream=stream, tokens=2, iterations=2)
            found = list(attack.prepare(target(tiny), here)(PROMPTS[:2]))
            losses[stream, key] = [a.trace["losses"] for a in found]
    assert losses["prompt", "seed 0"] == losses["prompt", "seed 1"]
    assert len({str(losses[how]) for how in losses}) == 3
    a, b = losses["run", "seed 0"]
    assert a != b


def test_prompts_without_room_are_reported(tiny, ctx, monkeypatch) -> None:
    monkeypatch.setitem(PRESETS, "pruning", range(10, 210, 100))
    long = Prompt("long", "a church " * 14, 1, 3.0)
    assert len(tiny.token_ids([long.text])[0]) == 28
    (found,) = unlearndiff(tokens=4).prepare(target(tiny), ctx)([long])
    assert found.trace == {"success": False, "too_long": 28}
    assert found.prompt == long
    (fits,) = unlearndiff(tokens=3, iterations=1).prepare(target(tiny), ctx)([long])
    assert "ids" in fits.trace
    cut = unlearndiff(tokens=4, iterations=1, long_prompts="cut")
    (slot,) = SimplexSearch(cut, target(tiny), ctx).open([long])
    assert slot.ids == tiny.token_ids([long.text])[0][:27]


def test_the_official_p4d_attacks_every_prompt_that_fits(tiny, ctx) -> None:
    """Variant "n" replaces a prompt, however long; "k" needs room for L + L // 3 + 1 tokens."""
    long = Prompt("long", "a church " * 40, 1, 3.0)
    (slot,) = official(tiny, tiny, ctx).open([long])
    assert (len(slot.ids), len(slot.variable)) == (80, 16)
    fits, over = (Prompt(f"p{n}", "a church " * n, 1, 3.0) for n in (11, 12))
    search = official(tiny, tiny, ctx, variant="k")
    (slot,), (refused,) = search.open([fits]), search.open([over])
    assert (len(slot.ids), len(slot.variable), refused.trace["too_long"]) == (22, 8, 24)
    search = official(tiny, tiny, ctx)  # and none of UnlearnDiffAtk's 60 tokens
    search.model.token_ids = lambda texts: [[5] * 65] * len(texts)
    assert [len(s.ids) for s in search.open(PROMPTS[:1])] == [65]


def test_at_the_edge_the_end_token_is_gone(tiny, ctx) -> None:
    """28 + 3 tokens and a start token fill the context of 32; the official rule for 77 is L + k <= 76."""
    long = Prompt("long", "a church " * 14, 1, 3.0)
    search = SimplexSearch(unlearndiff(tokens=3), target(tiny), ctx)
    (slot,) = search.open([long])
    rows = search.table[torch.tensor([5, 6, 7])][None]
    ids = [tiny.pipe.tokenizer.bos_token_id, 5, 6, 7, *slot.ids]
    assert torch.equal(search.assemble([slot], rows)[0], search.table[torch.tensor(ids)])


def test_photographs_have_the_official_target_image_and_length_rule(tiny, ctx) -> None:
    photo = finished("attacks", "unlearndiff", CHURCH, "photo")
    assert (photo.target_steps, photo.target_guidance) == (25, 7.5)
    tiny.world = "photo"
    search = SimplexSearch(photo, target(tiny), ctx)
    latents = search.latents(PROMPTS[:2], photo.picture(tiny, PROMPTS[:2]))
    prompts = [replace(p, guidance=7.5) for p in PROMPTS[:2]]
    own = tiny.copy()
    own.sampling = replace(own.sampling, sampler="lms", steps=25)
    assert torch.equal(latents, tiny.encode_images(own.generate(prompts)))
    assert not torch.equal(latents, tiny.encode_images(tiny.generate(prompts)))
    search.room = 76
    tiny.token_ids = lambda texts: [[5] * int(t) for t in texts]
    tiny.generate = lambda prompts: [None] * len(prompts)
    search.latents = lambda prompts, pictures: torch.zeros(len(prompts), 4, 8, 8)
    refused, opened = search.open([Prompt("a", "58", 1), Prompt("b", "59", 1)])
    assert len(opened.ids) == 58  # 60 with start and end
    assert refused.trace["too_long"] == 59


def test_decoding_drops_end_tokens_and_keeps_start_tokens(tiny) -> None:
    """As the official code: an end token is lost, a start token comes back as itself."""
    tokenizer = tiny.pipe.tokenizer
    church = tiny.token_ids(["a church"])[0]
    assert (
        decode(tokenizer, [tokenizer.eos_token_id, *church, tokenizer.eos_token_id]) == "a church"
    )
    text = decode(tokenizer, [*church, tokenizer.bos_token_id])
    assert tiny.token_ids([text])[0] == [*church, tokenizer.bos_token_id]


def test_token_success_is_judged_apart_from_the_string(tiny, ctx) -> None:
    """Ids that do not survive decoding: their own image is made from embeddings, and judged."""
    search = SimplexSearch(unlearndiff(tokens=2), target(tiny), ctx)
    (slot,) = search.open(PROMPTS[:1])
    slot.variable[:, tiny.pipe.tokenizer.eos_token_id] = 2.0  # a special token, lost in decoding
    made = []

    def generate(prompts, embeddings=None):
        made.append(embeddings)
        return [None] * len(prompts)

    tiny.generate = generate
    search.target = replace(search.target, criterion=lambda samples: [made[-1] is not None])
    search.evaluate([slot])
    assert (slot.done, slot.token_success, slot.text) == (False, True, PROMPTS[0].text)
    ids = [tiny.pipe.tokenizer.bos_token_id, *[tiny.pipe.tokenizer.eos_token_id] * 2, *slot.ids]
    ids += [tiny.pipe.tokenizer.eos_token_id] * (32 - len(ids))
    own = tiny.pipe.text_encoder(torch.tensor([ids]))[0]
    assert torch.allclose(made[1], own, atol=1e-5)
    # Ids that have succeeded once are not drawn again; a string's success is not that of other ids.
    slot.round, slot.token_success = 0, True
    search.evaluate([slot])
    assert (slot.done, len(made), made[-1]) == (False, 3, None)
    search.target = replace(search.target, criterion=lambda samples: [made[-1] is None])
    slot.round, slot.token_success = 0, False
    search.evaluate([slot])
    trace = search.result(slot).trace
    assert (slot.done, trace["success"], trace["token_success"]) == (True, True, False)


# -------------------------------------------------------------------------- P4D and the floors
def test_one_p4d_step_follows_the_nearest_tokens(exact, ctx) -> None:
    original = exact.copy()
    with torch.no_grad():  # another denoiser and another text encoder
        for p in [*original.parameters("full").values(), *original.pipe.text_encoder.parameters()]:
            p.mul_(1.1)
    attack = p4d(tokens=3, lr=0.05)
    search = P4DSearch(attack, Target(exact, original, CHURCH, lambda s: [False] * len(s)), ctx)
    slots = list(search.open(PROMPTS[:2]))
    assert torch.equal(slots[0].variable, slots[1].variable)
    for slot in slots:
        slot.variable += 0.02 * torch.randn(3, 32)
    before, seen = [slot.variable.clone() for slot in slots], gradients(search)
    search.iterate(slots)
    table, tok = search.table, exact.pipe.tokenizer
    for slot, prompt, e, moved in zip(slots, PROMPTS, before, *seen, strict=False):
        rng = torch.Generator().manual_seed(prompt.seed)
        torch.randn(4, 8, 8, generator=rng)
        noise = torch.randn(4, 8, 8, generator=rng)
        cosines = [[float(a @ b / (a.norm() * b.norm())) for b in table] for a in e]
        nearest = torch.tensor([max(range(len(row)), key=row.__getitem__) for row in cosines])
        projected = table[nearest].clone().requires_grad_(True)
        a = exact.alphas[10]
        x = (a.sqrt() * slot.latent + (1 - a).sqrt() * noise)[None]
        ids = torch.tensor([*slot.ids, *[tok.eos_token_id] * (28 - len(slot.ids))])
        embedded = torch.cat([table[tok.bos_token_id][None], projected, table[ids]])[None]
        t = torch.tensor([10])
        with torch.no_grad():
            goal = original.predict_noise(x, t, original.encode([prompt.text]))
        loss = ((exact.predict_noise(x, t, exact.encode_embeddings(embedded)) - goal) ** 2).mean()
        assert same(moved, torch.autograd.grad(loss, projected)[0])
        assert slot.losses == [pytest.approx(loss.item(), rel=1e-4)]
        # The original is asked for all steps at once; the second step's noise is the stream's next.
        x2 = a.sqrt() * slot.latent + (1 - a).sqrt() * torch.randn(4, 8, 8, generator=rng)
        with torch.no_grad():
            second = original.predict_noise(x2[None], t, original.encode([prompt.text]))[0]
        assert torch.allclose(search.goal([slot], noise)[0], second, atol=1e-5)


def test_a_p4d_move_is_adams(tiny, ctx) -> None:
    search = P4DSearch(p4d(tokens=3, lr=0.05), target(tiny), ctx)
    (slot,) = search.open(PROMPTS[:1])
    variable, grad = slot.variable.clone().requires_grad_(True), large((1, 3, 32))
    search.move([slot], grad)
    (variable.grad,) = grad
    torch.optim.Adam([variable], lr=0.05, weight_decay=0.1).step()
    assert torch.allclose(slot.variable, variable.detach(), atol=1e-6)


def test_p4d_reads_vocabulary_tokens_whatever_the_batch(exact, ctx, monkeypatch) -> None:
    monkeypatch.setitem(PRESETS, "pruning", range(10, 210, 100))
    attack = p4d(tokens=2, iterations=2, lr=0.1)

    def found(batch: int) -> dict:
        search = attack.prepare(target(exact), replace(ctx, batch_size=batch))
        return {a.prompt.id: (a.prompt.text, a.trace["ids"]) for a in search(PROMPTS)}

    assert found(1) == found(8) == found(3)


def test_per_k_words_takes_a_token_for_every_k_of_the_prompt(exact, ctx) -> None:
    """As hard_prompt counts them; prompts of different lengths share a batch."""
    prompts = [Prompt("a", "a church at night", 1, 3.0), Prompt("b", "a church", 2, 3.0)]
    search = P4DSearch(p4d(tokens=3, insertion="per-k-words"), target(exact), ctx)
    slots = list(search.open(prompts))
    assert [len(s.variable) for s in slots] == [2, 1]
    seen = gradients(search)
    search.iterate(slots)
    (alone,) = search.open(prompts[1:])
    search.iterate([alone])
    assert same(seen[0][1, :1], seen[1][0])
    assert slots[1].losses == [pytest.approx(alone.losses[0], rel=1e-4)]


# -------------------------------------------------------------------------- P4D by its authors
def official(model, original, ctx, **params):
    full = finished("attacks", "p4d-official", CHURCH, **params)
    goal = Target(model, original, CHURCH, lambda s: [False] * len(s))
    return OfficialSearch(full, goal, ctx, lambda images: torch.eye(len(images), 3))


@pytest.mark.parametrize("variant", ["n", "k"])
def test_one_step_of_the_official_p4d(exact, ctx, variant) -> None:
    """Free tokens, padding, target latent, timestep, noise, loss and AdamW, written out."""
    original = exact.copy()
    with torch.no_grad():
        for p in [*original.parameters("full").values(), *original.pipe.text_encoder.parameters()]:
            p.mul_(1.1)
    search = official(exact, original, ctx, variant=variant, tokens=4, iterations=50)
    (slot,) = search.open(PROMPTS[:1])
    prompt, table, tok = PROMPTS[0], search.table, exact.pipe.tokenizer
    words = exact.token_ids([prompt.text])[0]
    n = 4 if variant == "n" else len(words) // 3 + 1
    ids = torch.randint(len(table), (n,), generator=torch.Generator().manual_seed(prompt.seed))
    assert torch.equal(slot.variable, table[ids])
    image = torch.from_numpy(np.array(original.generate([prompt])[0])).permute(2, 0, 1)[None] / 255
    posterior = exact.pipe.vae.encode(image.double()).latent_dist
    draw = torch.Generator().manual_seed(ctx.seed("posterior", prompt.id))
    z = posterior.mean + posterior.std * torch.randn((1, 4, 8, 8), generator=draw)
    z = (z * exact.pipe.vae.config.scaling_factor).float()
    assert torch.allclose(slot.latent, z[0], atol=1e-5)

    seen = gradients(search)
    search.iterate([slot])
    rng = torch.Generator().manual_seed(prompt.seed)
    t = torch.randint(1000, (1,), generator=rng)
    noise = torch.randn((4, 8, 8), generator=rng)[None]
    a = exact.alphas[t]
    x = a.sqrt() * z + (1 - a).sqrt() * noise
    free = table[ids].clone().requires_grad_(True)
    if variant == "n":
        rows = [table[[tok.bos_token_id]], free, table[[tok.eos_token_id]], table[[0] * 26]]
    else:  # a free token before every three of the prompt's
        pieces = [x for i in range(n) for x in (free[i : i + 1], table[words[3 * i : 3 * i + 3]])]
        used = 1 + n + len(words)
        rows = [table[[tok.bos_token_id]], *pieces, table[[tok.eos_token_id] + [0] * (31 - used)]]
    with torch.no_grad():
        goal = original.predict_noise(x, t, original.encode([prompt.text]))
    predicted = exact.predict_noise(x, t, exact.encode_embeddings(torch.cat(rows)[None]))
    loss = ((predicted - goal) ** 2).mean()
    assert same(seen[0][0], torch.autograd.grad(loss, free)[0])
    assert slot.losses == [pytest.approx(loss.item(), rel=1e-4)]


def test_a_move_of_the_official_p4d_is_adamws(tiny, ctx) -> None:
    search = official(tiny, tiny, ctx, tokens=4, iterations=50)
    (slot,) = search.open(PROMPTS[:1])
    variable, grad = slot.variable.clone().requires_grad_(True), large((1, 4, 32))
    search.move([slot], grad)
    (variable.grad,) = grad
    torch.optim.AdamW([variable], lr=0.1, weight_decay=0.1).step()
    assert torch.allclose(slot.variable, variable.detach(), atol=1e-6)


def test_the_official_p4d_keeps_the_text_whose_image_is_most_alike(tiny, ctx) -> None:
    """Three checks with likeness .1, .9, .5 to the target: the second one's text is the result."""
    search = official(tiny, tiny, ctx, tokens=2, iterations=3, check=1)
    likeness = iter([1.0, 0.1, 0.9, 0.5])  # the target image, then the checks
    search.features = lambda images: torch.tensor([[next(likeness)]] * len(images))
    texts, read = [], search.read

    def reading(slot):
        slot.variable = search.table[torch.tensor([len(texts) + 5, 9])]
        texts.append(read(slot))
        return texts[-1]

    search.read = reading
    (found,) = search.run(PROMPTS[:1])
    assert found.trace["ids"] == texts[1] == [6, 9]
    assert (found.trace["check"], found.trace["similarity"]) == (2, 0.9)
    assert PROMPTS[0].text not in found.prompt.text  # the free tokens replace the prompt
    assert found.cost.images == 1 + 3 + 1
    assert (found.cost.forward, found.cost.backward) == (6, 3)


def test_the_published_likeness_is_the_cosine_of_clips_embeddings(ctx, clip) -> None:
    torch.manual_seed(3)
    images = [Image.effect_noise((32, 32), 60 + i).convert("RGB") for i in range(3)]
    found = clip_features(replace(ctx, asset={"clip-vit-h14": clip}.__getitem__))(images)
    model = CLIPModel.from_pretrained(clip).eval()
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    pixels = torch.stack([(torch.tensor(np.array(i)) / 255 - mean) / std for i in images])
    with torch.no_grad():
        seen = model.vision_model(pixels.permute(0, 3, 1, 2)).pooler_output
        own = model.visual_projection(seen)
    cosines = torch.cosine_similarity(own[:, None], own[None], dim=-1)
    assert torch.allclose(found @ found.T, cosines, atol=1e-4)


def test_the_official_p4d_whatever_the_batch(exact, ctx) -> None:
    attack = finished(
        "attacks", "p4d-official", CHURCH, tokens=2, iterations=4, check=2, variant="k"
    )

    def found(batch: int) -> dict:
        search = attack.prepare(target(exact), replace(ctx, batch_size=batch))
        return {a.prompt.id: (a.prompt.text, a.trace["ids"]) for a in search(PROMPTS)}

    assert found(1) == found(8)


def test_the_official_p4d_refuses_senseless_numbers() -> None:
    with pytest.raises(SpecError, match="check=50: expected at most iterations=10"):
        finished("attacks", "p4d-official", CHURCH, iterations=10)


def test_what_is_counted_is_what_is_computed(tiny, ctx, monkeypatch) -> None:
    """Passes of both models' networks, counted by hooks, a row each."""
    monkeypatch.setitem(PRESETS, "pruning", range(10, 210, 100))
    original, counted = tiny.copy(), {"forward": 0, "backward": 0, "text": 0}

    def denoiser(module, args, kwargs, out):
        counted["forward"] += len(args[0])
        if out[0].requires_grad:
            counted["backward"] += len(args[0])

    def text(module, args, kwargs, out):
        counted["text"] += len(args[0]) * out[0].requires_grad

    for model in (tiny, original):
        model.pipe.unet.register_forward_hook(denoiser, with_kwargs=True)
        model.pipe.text_encoder.register_forward_hook(text, with_kwargs=True)
    for attack in (unlearndiff(tokens=2, iterations=3), p4d(tokens=2, iterations=3)):
        counted.update(dict.fromkeys(counted, 0))
        goal = Target(tiny, original, CHURCH, lambda s: [False] * len(s))
        found = list(attack.prepare(goal, ctx)(PROMPTS[:3]))
        total = sum((a.cost for a in found), Cost())
        # The original's target images are made once; an image is 20 steps of two passes.
        assert counted["forward"] == total.forward + (total.images + 3) * 40
        assert counted["backward"] == total.backward == 3 * 2 * 3
        assert counted["text"] == total.text_backward == total.backward
        assert total.seconds > 0


def test_a_search_says_how_far_it_is_and_counts_the_steps_that_a_success_saves(tiny, ctx) -> None:
    said: list[tuple[str, int, int]] = []

    def criterion(samples):  # the second round finds it for the first prompt
        return [s.prompt.id == "p0" and (said or [("", 0, 0)])[-1][1] >= 9 for s in samples]

    attack = unlearndiff(tokens=2, iterations=2)
    watched = replace(ctx, progress=lambda *now: said.append(now))
    found = list(attack.prepare(Target(tiny, tiny, CHURCH, criterion), watched)(PROMPTS[:3]))
    assert next(a.trace for a in found if a.prompt.id == "p0")["round"] == 2
    n = 2 * len(attack.schedule())
    alone = [("steps", n + 2 * steps, 3 * n) for steps in range(4, n + 1)]
    assert said == [("steps", 3 * steps, 3 * n) for steps in range(1, 4)] + alone


@pytest.mark.parametrize("attack", [RandomTokens(tokens=2, draws=3), SeedSearch(draws=3)])
def test_floors_stop_at_success_and_see_images_only(tiny, ctx, attack) -> None:
    class Blind:
        generate = staticmethod(tiny.generate)

    asked = []

    def criterion(samples):
        asked.append([s.prompt for s in samples])
        return [s.prompt.id == "p1" and len(asked) == 3 for s in samples]

    find = attack.prepare(Target(Blind(), tiny, CHURCH, criterion), ctx)
    found = {a.prompt.id: a for a in find(PROMPTS[:3])}
    assert [len(batch) for batch in asked] == [3, 3, 3, 2]
    assert asked[0] == PROMPTS[:3]
    assert (found["p1"].cost.images, found["p1"].trace) == (3, {"success": True, "round": 2})
    assert (found["p0"].cost.images, found["p0"].trace["success"]) == (4, False)
    tried = [next(p for p in batch if p.id == "p0") for batch in asked]
    if isinstance(attack, SeedSearch):
        assert len({p.seed for p in tried}) == 4
        assert {p.text for p in tried} == {PROMPTS[0].text}
    else:
        assert {p.seed for p in tried} == {PROMPTS[0].seed}
        assert len({p.text for p in tried}) == 4
        assert all(p.text.endswith(PROMPTS[0].text) for p in tried)


def test_a_run_keeps_the_seed_that_was_found(tmp_path) -> None:
    from bench.engine.runner import Runner
    from bench.engine.settings import Settings
    from bench.plan.plan import plan
    from bench.plan.spec import Spec
    from bench.plugins.registry import Ref
    from bench.store.artifacts import Artifacts

    spec = Spec(
        "tiny-random", (Ref("none"),), (Ref("seed-search", {"draws": 2}),), ("church",), limit=2
    )
    (cell,) = plan(spec)
    settings = Settings(artifacts=Artifacts(tmp_path))
    first, again = (
        Runner(settings).run(cell),
        Runner(settings).run(cell),
    )  # the second from the cache
    assert first.status == "ok", first.reason
    assert first.rows == again.rows
    for row in first.rows:
        assert (row.adversarial, row.adversarial_seed == row.seed) == (
            row.text,
            row.cost.images == 1,
        )
    for _, erased, attacked in Runner(settings).samples(cell, 2):
        assert erased.image.tobytes() != attacked.image.tobytes()


# -------------------------------------------------------------------------- half precision
def test_a_gradient_in_fp16_is_not_lost(tiny, ctx) -> None:
    """Its loss is scaled: most of this gradient is below what float16 holds."""
    model, grads = tiny.cast("fp16"), {}
    for name, victim in {"fp16": model, "fp32": model.cast("fp32")}.items():
        search = SimplexSearch(unlearndiff(tokens=2), target(victim), ctx)
        slots = list(search.open(PROMPTS[:1]))
        slots[0].latent = torch.ones(4, 8, 8)
        seen = gradients(search)
        search.iterate(slots)
        (grads[name],) = seen
    size = grads["fp32"].abs().max()
    assert torch.allclose(grads["fp16"], grads["fp32"], atol=0.05 * float(size), rtol=0.05)


@pytest.mark.parametrize(
    ("dtype", "advice"), [("fp16", "give --dtype bf16 or fp32"), ("fp32", "its weights may not be")]
)
def test_a_victim_that_is_not_finite_is_said_to_be(tiny, ctx, dtype, advice) -> None:
    victim = tiny.cast(dtype)
    search = SimplexSearch(unlearndiff(tokens=2), target(victim), ctx)
    slots = list(search.open(PROMPTS[:1]))
    victim.pipe.unet.conv_out.bias.data.fill_(float("nan"))
    with pytest.raises(PluginError, match=f"not finite.*{advice}"):
        search.iterate(slots)
