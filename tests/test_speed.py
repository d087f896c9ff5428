"""The speed benchmark compares like with like."""

import pytest
import torch
from fakes import float64_text
from rich.console import Console

from bench.engine.operations import Operations, profile
from bench.engine.settings import Settings
from bench.engine.speed import OneByOne, Run, _one_by_one, measure, measure_apart, scaled
from bench.models.diffusers import DTYPES, DiffusersModel
from bench.plan.plan import plan
from bench.plan.spec import Spec
from bench.plugins.registry import Ref
from bench.store.artifacts import Artifacts

pytestmark = pytest.mark.usefixtures("few_steps")


@float64_text
def test_both_ways_find_the_same(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(DTYPES, "fp32", torch.float64)  # a batch must not round an order away
    attack = Ref("unlearndiff", {"iterations": 1, "tokens": 1})
    spec = Spec("tiny-random", (Ref("esd", {"steps": 1}),), (attack,), ("church",), limit=2)
    (cell,) = plan(spec)
    settings = Settings(batch_size=4, artifacts=Artifacts(tmp_path))
    ours, theirs = (measure(cell, way, settings) for way in ("batched", "official"))
    assert ours.texts == theirs.texts
    assert ours.texts[1:] == measure(cell, "official", settings, part=[1]).texts
    assert ours.per_hour == 3600 * 2 / ours.wall
    assert (ours.prompts, ours.timesteps) == (2, 10)


@pytest.mark.slow
def test_processes_share_the_prompts(tmp_path) -> None:
    attack = Ref("random", {"tokens": 1, "draws": 1})
    (cell,) = plan(Spec("tiny-random", (Ref("none"),), (attack,), ("church",), limit=3))
    settings = Settings(artifacts=Artifacts(tmp_path))
    alone = measure(cell, "batched", settings)
    together = measure_apart(cell, "batched", settings, workers=2)
    assert together.texts == alone.texts
    assert (together.prompts, together.wall > together.attack > 0) == (3, True)
    some = measure_apart(cell, "official", settings, workers=2, part=[0, 2])
    assert some.texts == (alone.texts[0], alone.texts[2])


def test_the_command_compares_processes_and_the_official_way(cli, monkeypatch) -> None:
    asked = []

    def timed(cell, way, settings, *, judge, workers, dtype, part):
        asked.append((way, workers, dtype, tuple(part)))
        every = part or range(cell.cell.prompts)
        each = (20.0 if way == "official" else {"fp32": 5.0, "bf16": 4.0}[dtype]) / workers
        wall = each * len(every)
        texts = tuple(f"{i}" if workers == 1 else "b" for i in every)
        return Run(way, len(every), 10, wall / 2, wall, 100, texts)

    monkeypatch.setattr("bench.engine.speed.measure_apart", timed)
    said = cli("speed", "attack", "--model", "tiny-random", "--method", "none", "--prompts", "6",
               "--workers", "2", "--official", "3", "--dtype", "fp32", "--dtype", "bf16")  # fmt: skip
    assert said.code == 0, said.err
    before = [("batched", n, dtype, ()) for n in (1, 2) for dtype in ("fp32", "bf16")]
    theirs = [("official", n, "fp32", (0, 2, 4)) for n in (1, 2)]
    assert asked == [*before, *theirs, *before[::-1]]  # before and after: machines drift
    words = " ".join(said.out.split())
    assert "batched: 4.0 times as fast as official, without" in words
    assert "batched: 2.0 times as fast as official x 2, without" in words
    assert "batched x 2: 8.0 times as fast as official, without" in words
    assert "batched x 2: 4.0 times as fast as official x 2, without" in words
    assert "batched bf16: 5.0 times as fast as official, without" in words
    assert "batched bf16 x 2: 5.0 times as fast as official x 2, without" in words
    assert "3 of 3 adversarial texts equal" in words and "0 of 3 adversarial texts equal" in words
    assert "official on 3 of the 6 prompts, evenly spaced" in words


def test_a_type_for_the_batched_way_alone(tmp_path, monkeypatch) -> None:
    attack = Ref("unlearndiff", {"iterations": 1, "tokens": 1})
    (cell,) = plan(Spec("tiny-random", (Ref("none"),), (attack,), ("church",), limit=1))
    seen, real = [], DiffusersModel.predict

    def watched(self, latents, t, cond):
        seen.append(self.dtype)
        return real(self, latents, t, cond)

    monkeypatch.setattr(DiffusersModel, "predict", watched)
    for way, expected in {"batched": torch.bfloat16, "official": torch.float32}.items():
        seen.clear()
        measure(cell, way, Settings(artifacts=Artifacts(tmp_path)), dtype="bf16")
        assert set(seen) == {expected}


def test_an_unknown_type_is_one_line(cli) -> None:
    said = cli("speed", "attack", "--model", "tiny-random", "--dtype", "fp8")
    assert said.code == 2
    assert "--dtype: expected one of fp32, bf16, fp16, got 'fp8'" in said.err


def test_one_by_one_is_a_pass_a_row(tiny, monkeypatch) -> None:
    rows = []
    real = DiffusersModel.predict

    def counted(self, latents, t, cond):
        rows.append(len(latents))
        return real(self, latents, t, cond)

    monkeypatch.setattr(DiffusersModel, "predict", counted)
    from bench import Prompt

    prompts = [Prompt("a", "a church", 1), Prompt("b", "a cat", 2)]
    slow = _one_by_one(tiny)
    assert isinstance(slow, OneByOne)
    images = slow.generate(prompts)
    assert rows == [1] * (2 * 20 * 2)  # two prompts, 20 steps, two passes
    fast = tiny.generate(prompts)
    for a, b in zip(images, fast, strict=True):
        difference = [abs(x - y) for x, y in zip(a.tobytes(), b.tobytes(), strict=True)]
        assert max(difference) <= 1


def test_scaling_sizes() -> None:
    spec = Spec("tiny-random", (Ref("none"),), (Ref("p4d"),), ("church",))
    (cell,) = plan(spec)
    sizes = scaled(cell)
    assert [job.cell.prompts for job in sizes] == [8, 16, 32, 8]
    assert sizes[3].cell.attack.params["timesteps"] == "official"


def test_operations_are_counted_by_their_formulas() -> None:
    q, k, v = (torch.randn(2, 4, n, 16, requires_grad=True) for n in (9, 7, 7))
    x, w = torch.randn(3, 5, 8, 8, requires_grad=True), torch.randn(6, 5, 3, 3)
    with Operations("cpu") as all_:
        torch.randn(10, 20) @ torch.randn(20, 30)
        torch.nn.functional.conv2d(x, w, padding=1).sum().backward()
        torch.nn.functional.scaled_dot_product_attention(q, k, v).sum().backward()
    flops = {name: spent.flops for name, spent in all_.spent.items() if spent.flops}
    product, conv = 2 * 2 * 4 * 9 * 7 * 16, 2 * 3 * 6 * 5 * 3 * 3 * 8 * 8
    assert flops == {
        "mm": 2 * 10 * 20 * 30,
        "convolution": conv,
        "convolution_backward": conv,  # of what it reads; its weights want none
        "attention": 2 * product,
        "attention_backward": 5 * product,  # the scores again, and four gradients
    }
    assert all(spent.calls == 1 for spent in map(all_.spent.get, flops))


def test_the_profile_adds_up(cli, tmp_path) -> None:
    attack = Ref("unlearndiff", {"iterations": 1, "tokens": 1})
    spec = Spec("tiny-random", (Ref("none"),), (attack,), ("church",), limit=2)
    table = profile(spec, Settings(artifacts=Artifacts(tmp_path)), Console(quiet=True))
    names = [line.names[0] for line in table.lines]
    assert {"convolution", "convolution_backward"} < set(names)
    *parts, every = (line.figures for line in table.lines)
    for column in range(3):  # calls, share, milliseconds
        total = sum(figures[column].value for figures in parts)
        assert total == pytest.approx(every[column].value)
    assert every[1].value == 1
    said = cli("speed", "attack", "--profile", "--model", "tiny-random", "--method", "none",
               "--attack", str(attack), "--prompts", "1")  # fmt: skip
    assert (said.code, "all others" in said.out) == (0, True), said.err
