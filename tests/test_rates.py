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


def stated() -> dict[str, float]:
    """Return the first number of each counted line of the page."""
    rows = re.findall(r"(?m)^\| (.+?) \| ([\d.,]+) \| counted", PAGE.read_text(encoding="utf-8"))
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
    train = gflop(lambda: unet(x, t, c).sample.sum().backward())
    unet.requires_grad_(False)
    to_text = c.clone().requires_grad_(True)
    attack = gflop(lambda: unet(x, t, to_text).sample.sum().backward())
    with torch.no_grad():
        row, decode = gflop(lambda: unet(x, t, c)), gflop(lambda: vae.decode(x))
        encode, one_text = gflop(lambda: vae.encode(picture)), gflop(lambda: text(ids))
        fid = gflop(lambda: inception(small))
    image, step = 100 * row + decode, train + 52 * row
    found = stated()
    expected = [row, attack, train, decode, encode, one_text, fid]
    # text: forward and backward of each step, in and out
    prompt = 400 * (attack + 2 * one_text) + 12 * image
    expected += [n / 1e3 for n in (image, 30_000 * image, prompt, step, 250 * step)]
    assert list(found.values())[:12] == pytest.approx(expected, rel=2e-3)
    weights = [sum(p.numel() for p in net.parameters()) for net in (unet, text, vae)]
    assert found["the base, which is the teacher, fp32"] == pytest.approx(
        4e-9 * sum(weights), rel=2e-3
    )
    entries = found["logits, gradients, two moments of 815,358,084 entries, fp32"]
    assert entries == pytest.approx(4 * 4e-9 * 815_358_084, rel=1e-3)
