"""What neurons do under attack, and where methods prune: against loops, and one run of the emoji model."""

import csv
from dataclasses import replace
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pytest
import torch
from test_figures import row, target

from bench import Prompt
from bench.engine import neuron_figures, pruned
from bench.engine.neurons import concept_neurons, heat, relative, sensitivity
from bench.engine.settings import Settings
from bench.errors import SpecError
from bench.report.figures import neurons as overlays
from bench.report.figures import pruning
from bench.report.figures import sensitivity as curves
from bench.report.figures.select import Wanted
from bench.store.store import Store

PROMPTS = [Prompt(str(i), f"a church {i}", i, 5.0) for i in range(3)]
PAIRS = [(p, replace(p, text=f"lo we {p.text}")) for p in PROMPTS]


@pytest.fixture
def pair_of_models(tiny):
    tiny.sampling = replace(tiny.sampling, steps=3)
    erased = tiny.copy()
    with torch.no_grad():
        for name, p in erased.parameters("full").items():
            p.mul_(0.7 if "conv1" in name else 1.1)
    return tiny, erased


def quiet(*_: object) -> None:
    """Say nothing."""


def watched(model, prompt: Prompt) -> dict[str, list[torch.Tensor]]:
    """Return what enters each conv2 for one prompt drawn alone, ``(channels, h, w)`` at each call."""
    seen: dict[str, list[torch.Tensor]] = {}
    hooks = [
        module.conv2.register_forward_pre_hook(
            lambda _, x, name=name: seen.setdefault(f"{name}.conv2", []).append(x[0][1])
        )
        for name, module in model.pipe.unet.named_modules()
        if type(module).__name__ == "ResnetBlock2D"
    ]
    model.generate([prompt])
    for hook in hooks:
        hook.remove()
    return seen


def test_sensitivity_against_a_loop(pair_of_models) -> None:
    original, erased = pair_of_models
    chosen = concept_neurons(original, erased, PROMPTS, top=2)
    steps = sensitivity(erased, PAIRS, chosen, quiet)
    assert [s.call for s in steps] == [1, 2, 3]
    assert steps[0].timestep > steps[1].timestep > steps[2].timestep > 0
    watched_pairs = [(watched(erased, p), watched(erased, q)) for p, q in PAIRS]
    for step in steps:
        groups: dict[str, list[float]] = {"concept": [], "others": []}
        for before, after in watched_pairs:
            layers: dict[str, list[float]] = {"concept": [], "others": []}
            for name, mine in chosen.items():
                z, w = before[name][step.call - 1], after[name][step.call - 1]
                each = [float((w[k] - z[k]).abs().mean()) for k in range(len(z))]
                layers["concept"].append(fmean(each[k] for k in mine.tolist()))
                layers["others"].append(
                    fmean(v for k, v in enumerate(each) if k not in mine.tolist())
                )
            for group, values in layers.items():
                groups[group].append(fmean(values))
        for group, m in (("concept", step.concept), ("others", step.others)):
            values = groups[group]
            assert m.n == 3
            assert m.value == pytest.approx(fmean(values), rel=1e-3)
            half = 4.302652729911275 * stdev(values) / sqrt(3)  # t of two degrees of freedom
            assert m.high - m.value == pytest.approx(half, rel=1e-2)


def test_concept_neurons_are_those_that_the_erasure_reduces_most(pair_of_models) -> None:
    original, erased = pair_of_models
    chosen = concept_neurons(original, erased, PROMPTS, top=2)
    assert torch.is_grad_enabled()  # two models are read in turn
    pairs = [(watched(original, p), watched(erased, p)) for p in PROMPTS]
    for name, mine in chosen.items():
        drops = [
            float(
                np.mean(
                    [(x[name][t][k] - y[name][t][k]).mean() for x, y in pairs for t in range(3)]
                )
            )
            for k in range(len(pairs[0][0][name][0]))
        ]
        assert set(mine.tolist()) == set(np.argsort(drops)[-2:].tolist())


def test_heat_is_in_units_of_the_original(pair_of_models) -> None:
    original, erased = pair_of_models
    chosen = concept_neurons(original, erased, PROMPTS, top=2)
    maps = heat(erased, PROMPTS, chosen, 2)
    z = watched(erased, PROMPTS[1])
    side = erased.sampling.size
    for name, mine in chosen.items():
        one = z[name][1][mine].clamp(min=0).mean(0)
        assert maps[name].shape == (3, side, side)
        if one.shape[0] == side:
            assert torch.allclose(maps[name][1], one, atol=1e-4)
        assert float(maps[name][1].max()) <= float(one.max()) + 1e-4
    first = {"a": torch.tensor([[[1.0, 4.0]]]), "b": torch.tensor([[[10.0, 0.0]]])}
    half = {name: value / 2 for name, value in first.items()}
    whole, less = relative([first, half])
    assert whole.tolist() == [[[1.0, pytest.approx(0.8)]]]  # (1/4 + 1) / 2 is the most, (1 + 0) / 2
    assert torch.allclose(less, whole / 2)


def test_pairs_are_those_that_all_erase() -> None:
    def attacked(number: int, own: float, text: str, **more):
        return row(number, own == 1.0, own=own, adversarial=text, **more)

    esd = [attacked(0, 0.0, "x a church"), attacked(1, 1.0, "x a church"), attacked(2, 0.0, "a church"),
           attacked(3, 0.0, "x a church", adversarial_seed=9), attacked(4, 0.0, "y a church")]  # fmt: skip
    other = [attacked(i, float(i == 0), "x a church") for i in range(5)]
    both = [target(esd), target(other, method="p-esd")]
    assert neuron_figures._erased_by_all(both) == ["4"]
    assert neuron_figures._erased_by_all(both[:1]) == ["0", "4"]
    none = [target(esd, method="none")]
    with pytest.raises(
        SpecError, match="run `bench run --method esd --method p-esd --attack unlearndiff"
    ):
        neuron_figures.neuron_sensitivity(none, Wanted(), Settings())
    with pytest.raises(SpecError, match="expected one cell, got 2: choose with"):
        neuron_figures.neuron_overlays(both, Wanted(), Settings())


def test_drawings_of_neurons(tmp_path: Path) -> None:
    from PIL import Image

    steps = [
        curves.Step("church", m, "unlearndiff", call, 4, 900.0 - call, group, 5, 0.1 * call, 0.05, 0.5)
        for m in ("esd", "p-esd") for group in ("concept", "others") for call in range(1, 5)
    ]  # fmt: skip
    drawing = curves.draw(steps)
    (axes,) = drawing.figure.axes
    assert len(axes.lines) == 4 and {line.get_linestyle() for line in axes.lines} == {"-", "--"}
    drawing.save(tmp_path / "a.svg")
    image = Image.new("RGB", (8, 8), "red")
    heats = [np.full((8, 8), 1.0), np.full((8, 8), 0.25), np.eye(8)]
    names = ("original", "erased", "attacked")
    tiles = [overlays.Overlay(n, image, h, "seen") for n, h in zip(names, heats, strict=True)]
    strip = overlays.Strip("a $church", "lo we a $church", tiles)
    assert overlays.shares(strip) == pytest.approx([1.0, 0.25, 0.125])
    for hide in (False, True):
        drawing = overlays.draw([strip, strip], "title", "when", hide=hide)
        drawing.save(tmp_path / "b.pdf")
    labels = [axes.get_xlabel() for axes in drawing.figure.axes]
    assert "[lo we] a $church" in labels and "a $church" in labels


# ---------------------------------------------------------------------------- pruning
def test_pruned_weights_are_counted_by_layer(tiny) -> None:
    erased = tiny.copy()
    group = erased.parameters("full")
    with torch.no_grad():
        v = next(p for n, p in group.items() if "attn2.to_v" in n)
        v.view(-1)[:7] = 0
        conv = next(p for n, p in group.items() if "resnets" in n and n.endswith("conv1.weight"))
        conv.view(-1)[3] = 0
        next(p for n, p in group.items() if ".ff." in n).mul_(2)  # changed, not pruned
        erased.pipe.text_encoder.get_input_embeddings().weight[0] = 0  # not the denoiser
    gone, total = pruned.pruned_weights(tiny, erased)
    assert {kind: n for kind, n in gone.items() if n} == {
        "cross-attention v": 7,
        "ResNet convolution": 1,
    }
    assert total.total() == sum(p.numel() for p in tiny.pipe.unet.state_dict().values())
    everything = {pruning.kind_of(n) for n in tiny.pipe.unet.state_dict()}
    assert {
        "self-attention q",
        "feed-forward",
        "projection in",
        "time",
        "other convolution",
    } <= everything


def test_pruning_shows_rates_and_shares(monkeypatch, tiny, tmp_path: Path) -> None:
    from collections import Counter

    def told(original, erased):
        return Counter({"feed-forward": 3, "time": 1}), Counter({"feed-forward": 30, "time": 10})

    monkeypatch.setattr(pruned, "pruned_weights", told)
    monkeypatch.setattr(pruned.Again, "original", lambda *_: tiny)
    monkeypatch.setattr(pruned.Again, "erased", lambda *_: type("E", (), {"model": tiny}))
    rows = [row(i, i < 2) for i in range(8)]
    records = [
        target(rows, a, method=m) for m in ("p-esd", "esd") for a in ("none", "unlearndiff", "p4d")
    ]
    drawing, bars = pruned.pruning_strategies(records, Wanted(), Settings())
    assert [(b.method, b.of) for b in bars if b.shows == "concept erasing rate"] == [
        ("esd", "none"), ("esd", "unlearndiff"), ("p-esd", "none"), ("p-esd", "unlearndiff"),
    ]  # fmt: skip
    assert {(b.value, b.count, b.total) for b in bars if b.of == "none"} == {(0.75, 6, 8)}
    shares = {(b.method, b.of): b.value for b in bars if b.shows == "pruned weights"}
    assert shares["esd", "all"] == 0.1 and shares["p-esd", "feed-forward"] == 0.75
    left, right = drawing.figure.axes
    assert [t.get_text() for t in left.get_xticklabels()] == [
        "esd\n10 % pruned",
        "p-esd\n10 % pruned",
    ]
    assert {bar.get_hatch() for bar in left.patches} == {"", "///"}
    assert sorted({round(bar.get_width()) for bar in right.patches}) == [25, 75]
    drawing.save(tmp_path / "a.pdf")


@pytest.mark.slow
def test_sensitivity_of_the_emoji_model(cli) -> None:
    """Erase, attack and watch for real, at the smallest size."""
    small = ("--task", "church", "--limit", "2", "--no-images")
    tiny = "steps=1,batch=1,sampling_steps=2"
    attack = ("--attack", "random")
    assert (
        cli("run", "--method", f"esd:{tiny}", "--method", f"p-esd:{tiny}", *attack, *small).code
        == 0
    )
    records = list(Store(Path("results/local")))
    for r in (
        records
    ):  # one step erases nothing, and nothing is attacked then: what counts here is watching
        rows = tuple(replace(x, own=0.0, adversarial=f"abbey lily {x.text}") for x in r.rows)
        Store(Path("erased")).put(replace(r, rows=rows))
    said = cli(
        "figure",
        "sensitivity",
        "--attack",
        "random",
        "--results",
        "erased",
        "--out",
        "a.png",
        "--data",
        "a.csv",
    )
    assert said.code == 0, said.err
    lines = list(csv.DictReader(Path("a.csv").read_text().splitlines()))
    assert len(lines) == 2 * 2 * 20  # methods, groups, denoiser calls
    assert {line["pairs"] for line in lines} == {"2"}
    assert all(float(line["sensitivity"]) > 0 for line in lines)
    said = cli(
        "figure",
        "neurons",
        "--results",
        "erased",
        "--method",
        "esd",
        "--out",
        "b.png",
        "--data",
        "b.csv",
    )
    assert said.code == 0, said.err
    activity = list(csv.DictReader(Path("b.csv").read_text().splitlines()))
    assert [line["image"] for line in activity] == ["original", "erased", "attacked"] * 2
    assert {line["call"] for line in activity} == {"12"}
    assert float(activity[0]["activity"]) == 1.0
    said = cli(
        "figure",
        "pruning",
        "--results",
        "erased",
        "--attack",
        "random",
        "--out",
        "c.png",
        "--data",
        "c.csv",
    )
    assert said.code == 0, said.err
    bars = {
        (b["method"], b["of"]): b for b in csv.DictReader(Path("c.csv").read_text().splitlines())
    }
    cards = {r.cell.method.name: r.erasure for r in records}
    for method, card in cards.items():
        assert int(bars[method, "all"]["count"]) == card["zeroed"]
    said = cli("figure", "examples", "--results", "erased", "--out", "d.pdf")
    assert said.code == 0, said.err
