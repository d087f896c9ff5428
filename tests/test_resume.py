"""A search that is killed again and again finds what it finds undisturbed, to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest
import torch
from fakes import finished

from attacks import _resume
from attacks._resume import Resume, State
from attacks._token_attack import PRESETS
from bench import Concept, Prompt, Target

CHURCH = Concept("church", "object")
PROMPTS = [Prompt(f"p{i}", f"a photo of a castle {w}", 7 + i, 3.0) for i, w in enumerate("abc")]
ATTACKS = {
    "unlearndiff": {"tokens": 2, "iterations": 4},
    "p4d": {"tokens": 2, "iterations": 4, "lr": 0.1},
    "p4d-official": {"tokens": 2, "iterations": 9, "check": 3},
    "random": {"tokens": 1, "draws": 4},
    "seed-search": {"draws": 4},
    "noise-probe": {"stop": False},
    "ring-a-bell": {"length": 5, "population": 8, "generations": 6},
    "mma": {"length": 5, "steps": 6, "batch": 15, "top_k": 20},
    "cce": {"images": 2, "steps": 5, "batch": 2, "accumulation": 2},
}


def hit(samples) -> list[bool]:
    """Judge by the text alone: some that an attack wrote succeed, the prompts themselves do not."""
    own = {p.text for p in PROMPTS}
    return [s.prompt.text not in own and len(s.prompt.text) % 5 == 0 for s in samples]


def said(found) -> dict[str, object]:
    return {
        name: (a.prompt, replace(a.cost, seconds=0), dict(a.trace), a.sampler_noise,
               None if a.embedding is None else a.embedding.tolist())
        for name, a in found.items()
    }  # fmt: skip


@pytest.fixture
def quick(tiny, monkeypatch):
    monkeypatch.setitem(PRESETS, "pruning", range(10, 310, 100))
    monkeypatch.setattr("attacks.noise_probe.ETAS", (1.0, 1.5))
    monkeypatch.setattr(_resume, "PAUSE", 0.0)
    monkeypatch.setattr(_resume, "RATIO", 0.0)
    tiny.sampling = replace(tiny.sampling, steps=2)
    return tiny


@pytest.mark.parametrize("name", ATTACKS)
def test_interrupted_is_uninterrupted(quick, ctx, name) -> None:
    attack, passes, kills = finished("attacks", name, CHURCH, **ATTACKS[name]), [0], [10**9]
    original = quick.copy()

    def tick(*_) -> None:
        passes[0] += 1
        if passes[0] >= kills[0]:
            raise KeyboardInterrupt

    for part in (quick.pipe.unet, quick.pipe.text_encoder):
        part.register_forward_hook(tick)
    goal = Target(quick, original, CHURCH, hit)

    def attacked(where: str, wait: Callable[[], int]) -> tuple[dict, int]:
        made: dict[str, dict] = {}
        here = replace(
            ctx,
            workdir=ctx.workdir / where,
            batch_size=2,
            keep=lambda key, make, shared=False: (
                made[key] if key in made else made.setdefault(key, make())
            ),
        )
        found, times = {}, 0
        while True:
            kills[0] = passes[0] + wait()
            try:
                left = [p for p in PROMPTS if p.id not in found]
                for adversarial in attack.prepare(goal, here)(left):
                    found[adversarial.prompt.id] = adversarial
                assert not list(
                    (here.workdir / "searches").glob("*")
                )  # no state of what is finished
                return found, times
            except KeyboardInterrupt:
                times += 1
                assert times < 100, "no progress"

    expected, _ = attacked("undisturbed", lambda: 10**9)
    before = passes[0]
    few = min(30, before // 3)
    for seed in range(2):
        rng = Random(seed)
        found, times = attacked(
            f"disturbed-{seed}", lambda rng=rng: rng.randint(max(few // 2, 12), max(few, 16))
        )
        assert times >= 1
        assert said(found) == said(expected)
    if name in {"unlearndiff", "p4d", "p4d-official"}:  # little is done twice
        assert passes[0] - before < 2 * 3 * before


def test_a_state_is_what_was_kept(ctx) -> None:
    m = torch.randn(3, 4)
    state = State(5, {"text": "é", "loss": 0.1 + 0.2}, {"m": m, "same": m, "row": m[1]})
    Resume(ctx, ["a", "b"]).keep({"a": state, "b": State(2, {})})
    found = Resume(ctx, ["a", "c"]).load()
    assert found.keys() == {"a"}
    assert (found["a"].steps, found["a"].values) == (5, state.values)
    assert all(torch.equal(found["a"].tensors[k], v) for k, v in state.tensors.items())
    many = [f"p{i * 7 % 20}" for i in range(20)]
    other = replace(ctx, workdir=ctx.workdir / "order")
    Resume(other, many).keep({name: State(1, {}) for name in many})
    assert list(Resume(other, sorted(many)).load()) == many  # a batch is put together as it was


def test_a_damaged_or_foreign_state_is_none(ctx) -> None:
    Resume(ctx, ["a"]).keep({"a": State(5, {}, {"m": torch.ones(9)})})
    assert not Resume(replace(ctx, key="another attack"), ["a"]).load()
    (path,) = (ctx.workdir / "searches").iterdir()
    data = path.read_bytes()
    for i in range(0, len(data), 7):
        path.write_bytes(data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :])
        assert not Resume(ctx, ["a"]).load()
        path.write_bytes(data[:i])
        assert not Resume(ctx, ["a"]).load()
    path.write_bytes(data)
    assert Resume(ctx, ["a"]).load()


def test_of_two_states_the_further_one_holds_and_the_older_goes(ctx) -> None:
    """A process died between writing the new state and deleting the old one."""
    Resume(ctx, ["a", "b"]).keep({"a": State(3, {}), "b": State(4, {})})
    Resume(ctx, ["b", "c"]).keep({"b": State(6, {})})
    resume = Resume(ctx, ["a", "b"])
    assert {name: state.steps for name, state in resume.load().items()} == {"a": 3, "b": 6}
    resume.keep({"b": State(7, {})})
    assert {n: s.steps for n, s in Resume(ctx, ["a", "b"]).load().items()} == {"b": 7}
    theirs = replace(ctx, workdir=ctx.workdir / "theirs")  # another process's prompts stay
    Resume(theirs, ["x", "y"]).keep({"x": State(1, {}), "y": State(1, {})})
    mine = Resume(theirs, ["x"])
    mine.load()
    mine.keep({"x": State(2, {})})
    mine.keep({})
    assert Resume(theirs, ["y"]).load().keys() == {"y"}


def test_states_are_not_kept_all_the_time(ctx, monkeypatch) -> None:
    now = [100.0]
    monkeypatch.setattr(_resume.time, "monotonic", lambda: now[0])
    resume = Resume(ctx, ["a"])
    assert not resume.due
    now[0] += _resume.PAUSE + 0.1
    assert resume.due
    resume.keep({"a": State(1, {})})
    assert not resume.due
