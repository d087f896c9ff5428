"""``bench speed photo``, and the counts in docs/cost-model.md."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import inception_v3
from transformers import CLIPTextConfig, CLIPTextModel

from bench.engine.rates import Rate, _by_difference, rates
from bench.engine.scaling import scaling

PAGE = Path(__file__).resolve().parent.parent / "docs" / "cost-model.md"


@pytest.mark.slow
def test_everything_runs_on_a_model_of_random_weights() -> None:
    table = rates("tiny-random", device="cpu", batches=(1,), steps=1, console=Console(quiet=True))
    work = [line.names[0] for line in table.lines]
    assert work[:2] == ["image, plain diffusers loop", "image"]
    steps = ("unlearndiff", "unlearndiff", "p4d", "p4d", "esd", "p-esd", "ac", "fmn")
    assert work[2:] == [*(f"step of {name}" for name in steps), "features for FID"]
    for line in table.lines:
        each = line.figures[2]
        assert each.word == "too short" or (each.value and each.value > 0)
    assert "tiny-random" in table.legend


@pytest.mark.slow
def test_more_of_the_same_takes_more_time_and_no_more_memory(monkeypatch) -> None:
    for name, value in {"TIMES": (1, 3), "PROMPTS": 2, "STEPS": 1, "ERASING": 1}.items():
        monkeypatch.setattr(f"bench.engine.scaling.{name}", value)
    table = scaling("tiny-random", device="cpu", console=Console(quiet=True))
    found = [(line.names[0], *(figure.value for figure in line.figures)) for line in table.lines]
    assert [row[:2] for row in found] == [
        ("prompts", 2), ("prompts", 6), ("steps", 1), ("steps", 3), ("erasures", 1), ("erasures", 3),
    ]  # fmt: skip
    for (_, _, before, one, small), (_, _, after, times, large) in zip(
        found[::2], found[1::2], strict=True
    ):
        assert one == 1.0
        assert 1 < times == pytest.approx(after / before)
        assert large < 1.05 * small


def test_a_step_is_the_difference_of_two_runs(monkeypatch) -> None:
    """A run takes 5 s, and 0.25 s for each step of 10 rounds and 4 prompts: a step of one is 0.0625 s."""
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def work(steps: int) -> int:
        clock[0] += 5 + 10 * 0.25 * steps
        return 10

    assert _by_difference("step", 4, "cpu", 3, work) == Rate("step", 4, 0.0625, None)


def gflop(work: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 1e9


def page() -> str:
    return PAGE.read_text(encoding="utf-8")


def stated() -> dict[str, float]:
    """Return the first number of each counted line of the page."""
    rows = re.findall(r"(?m)^\| ([^|]+?) \| ([\d.,]+) \| counted", page())
    return {name: float(number.replace(",", "")) for name, number in rows}


def test_the_cost_model_states_what_is_counted() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, sample_size=512,
        )  # fmt: skip
        config = CLIPTextConfig(
            hidden_size=768, intermediate_size=3072, num_attention_heads=12, projection_dim=768
        )
        text = CLIPTextModel(config)
        inception = inception_v3(weights=None, init_weights=False, aux_logits=False).eval()
        x, t, c = (
            torch.empty(1, 4, 64, 64),
            torch.empty(1, dtype=torch.long),
            torch.empty(1, 77, 768),
        )
        picture, small = torch.empty(1, 3, 512, 512), torch.empty(1, 3, 299, 299)
        ids = torch.zeros(1, 77, dtype=torch.long)

    def training(chosen: Callable[[str], bool]) -> tuple[int, float]:
        """Return how many values a method trains, and what a forward and backward pass to them costs."""
        for name, p in unet.named_parameters():
            p.requires_grad_(chosen(name))
        cost = gflop(lambda: unet(x, t, c).sample.sum().backward())
        return sum(p.numel() for p in unet.parameters() if p.requires_grad), cost

    everything, train = training(lambda name: True)
    attention, attend = training(lambda name: "attn1" in name or "attn2" in name)
    pairs, keys = training(lambda name: "attn2.to_k." in name or "attn2.to_v." in name)
    unet.requires_grad_(False)
    to_text = c.clone().requires_grad_(True)
    attack = gflop(lambda: unet(x, t, to_text).sample.sum().backward())
    with torch.no_grad():
        row, decode = gflop(lambda: unet(x, t, c)), gflop(lambda: vae.decode(x))
        encode, one_text = gflop(lambda: vae.encode(picture)), gflop(lambda: text(ids))
        fid = gflop(lambda: inception(small))
    image, step = 100 * row + decode, train + 52 * row
    found = stated()
    expected = [row, attack, train, keys, attend, decode, encode, one_text, fid]
    # text: forward and backward of each step, in and out
    prompt = 400 * (attack + 2 * one_text) + 12 * image
    anchors, passive = 1000 * (50 * row + decode), 8 * (row + encode) + 16 * one_text
    ac, p_ac = passive + 8 * keys, passive + 8 * train
    nudity = passive + 16 * attend + 8 * (encode + one_text)
    fmn = 8 * (image + encode) + 500 * (attack + 2 * one_text) + 35 * train
    work = (image, 30_000 * image, prompt, step, 250 * step, 1000 * step, anchors, ac, anchors + 100 * ac,
            anchors + 400 * nudity, p_ac, anchors + 1000 * p_ac, fmn)  # fmt: skip
    expected += [n / 1e3 for n in work]
    assert list(found.values())[:22] == pytest.approx(expected, rel=2e-3)
    weights = [sum(p.numel() for p in net.parameters()) for net in (unet, text, vae)]
    assert found["the base, which is the teacher, fp32"] == pytest.approx(
        4e-9 * sum(weights), rel=2e-3
    )
    memory = re.findall(
        r"(?m)^\| .+?: ([\d,]+) .+? \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| counted", page()
    )
    esd, norms = 813_495_680, everything - 859_320_644  # of which no entry is pruned
    kept = [0.31, 8 * 0.2988, 16 * 0.2988, 8 * 0.309, 0.31 + 0.066]
    sizes = [(esd, 12), (pairs, 12), (attention, 12), (everything - norms, 16), (everything, 12)]
    for (n, each), step_, (values, trained, keeps, total) in zip(sizes, kept, memory, strict=True):
        assert int(values.replace(",", "")) == n
        gb = (1e-9 * each * n, step_, 8e-9 * sum(weights) + 1e-9 * each * n + step_)
        assert [float(v) for v in (trained, keeps, total)] == pytest.approx(gb, abs=0.06)
    entries = found["logits, gradients, two moments of 815,358,084 entries, fp32"]
    assert entries == pytest.approx(4 * 4e-9 * 815_358_084, rel=1e-3)
