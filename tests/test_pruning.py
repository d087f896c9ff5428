"""Magnitude pruning, neurons and ConceptPrune against loops and other libraries."""

import copy

import pytest
import torch
from fakes import finished
from torch import nn
from torch.nn.utils import prune

from bench import Concept, IncompatibleError, Prompt
from bench.models.neurons import (
    concept_scores,
    neuron_layers,
    neuron_maps,
    zero_neurons,
)
from methods._masks import prunable, prune_smallest
from methods.concept_prune import _prompts, skilled

CHURCH = Concept("church", "object", "house")
FAST = {
    "batch": 2, "sampling_steps": 5, "reuse": 1, "xt_alignment": "exact", "templates": False,
    "steps": 3, "lr": 1e-3, "params": "esd-u",
}  # fmt: skip
PROMPTS = [Prompt(str(i), text, i, 5.0) for i, text in enumerate(("a church", "a house at night"))]


def weights(model):
    return {n: p for n, p in prunable(model, "full").items() if n.endswith(".weight")}


def post_prune(**params):
    return finished("methods", "post-prune", CHURCH, **FAST, **params)


def looks(concept, calls):
    """ConceptPrune in a few steps."""
    params = {"ratio": 0.05, "calls": calls, "steps": 4, "sampler": "ddim"}
    return finished("methods", "concept-prune", concept, **params)


def test_prune_smallest_equals_global_unstructured(tiny) -> None:
    unet = copy.deepcopy(tiny.pipe.unet)
    modules = [(m, "weight") for m in unet.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    prune.global_unstructured(modules, pruning_method=prune.L1Unstructured, amount=0.1)
    keep = prune_smallest(tiny, 0.1)
    by_name = dict(unet.named_modules())
    for name, w in weights(tiny).items():
        theirs = by_name[name.removesuffix(".weight")]
        assert torch.equal(keep[name], theirs.weight_mask.bool()), name
        assert torch.equal(w, theirs.weight), name


def test_pre_prune_keeps_zeros_while_the_rest_learns(tiny, ctx) -> None:
    keep = prune_smallest(tiny.copy(), 0.1)
    erased = finished("methods", "pre-prune", CHURCH, **FAST).erase(tiny.copy(), CHURCH, ctx)
    changed = 0
    for name, w in weights(erased).items():
        assert (w[~keep[name]] == 0).all(), name
        changed += int((w != tiny.parameters("full")[name])[keep[name]].sum())
    assert changed > 1000


def test_post_prune_prunes_the_erased_weights(tiny, ctx) -> None:
    erased = weights(post_prune().erase(tiny.copy(), CHURCH, ctx))
    zeros, total = (
        sum(int((w == 0).sum()) for w in erased.values()),
        sum(w.numel() for w in erased.values()),
    )
    assert zeros == round(0.1 * total)
    esd = weights(post_prune(share=0.0).erase(tiny.copy(), CHURCH, ctx))
    largest = max(float(esd[n][w == 0].abs().max()) for n, w in erased.items() if (w == 0).any())
    assert largest <= min(float(w[w != 0].abs().min()) for w in erased.values())


def test_neurons_are_the_input_of_conv2(tiny) -> None:
    """The second SiLU of a block, found by recording every call of ``nonlinearity``."""
    blocks = {
        n: m for n, m in tiny.pipe.unet.named_modules() if type(m).__name__ == "ResnetBlock2D"
    }
    assert [f"{n}.conv2" for n in blocks] == list(neuron_layers(tiny))
    calls = {n: [] for n in blocks}
    hooks = [  # a block's own nonlinearity module is shared, so count per block by its conv2's input
        m.norm2.register_forward_hook(lambda _, __, out, n=n: calls[n].append(out))
        for n, m in blocks.items()
    ]
    maps = [maps for _, maps in neuron_maps(tiny, PROMPTS)]
    for hook in hooks:
        hook.remove()
    steps = tiny.sampling.steps
    assert len(maps) == steps
    for name, outs in calls.items():
        assert len(outs) == steps
        for call in range(0, steps, 7):
            expected = torch.nn.functional.silu(outs[call])[len(PROMPTS) :]
            assert torch.allclose(maps[call][f"{name}.conv2"], expected, atol=1e-6)


def test_scores_equal_a_loop(tiny) -> None:
    other = tiny.copy()
    with torch.no_grad():
        for p in other.parameters("full").values():
            p.mul_(0.9)
    a, b = ([maps for _, maps in neuron_maps(model, PROMPTS)] for model in (tiny, other))
    for absolute in (False, True):
        scores = concept_scores(tiny, other, PROMPTS, absolute=absolute, batch=1)
        for name, score in scores.items():
            for channel in (0, len(score) - 1):
                values = []
                for x, y in zip(a, b, strict=True):
                    d = x[name][:, channel].double() - y[name][:, channel].double()
                    values += (d.abs() if absolute else d).flatten().tolist()
                assert float(score[channel]) == pytest.approx(sum(values) / len(values), abs=1e-5)


def test_zeroing_a_neuron_equals_zeroing_its_input(tiny) -> None:
    name, conv = next(iter(neuron_layers(tiny).items()))
    edited = tiny.copy()
    zero_neurons(edited, {name: [1]})
    conv.register_forward_pre_hook(
        lambda _, inputs: (inputs[0].index_fill(1, torch.tensor([1]), 0.0),)
    )
    x, t, cond = tiny.initial_noise([3]), torch.tensor([500]), tiny.encode(["a church"])
    assert torch.allclose(
        edited.predict_noise(x, t, cond), tiny.predict_noise(x, t, cond), atol=1e-6
    )
    assert not torch.equal(neuron_layers(edited)[name].weight, conv.weight)


def test_np_esd_zeroes_the_top_neuron_of_each_layer(tiny, ctx) -> None:
    erased = finished("methods", "np-esd", CHURCH, **FAST, images=2).erase(tiny.copy(), CHURCH, ctx)
    esd = post_prune(share=0.0).erase(tiny.copy(), CHURCH, ctx)  # ESD with the same draws
    layers, before = neuron_layers(erased), neuron_layers(esd)
    assert set(erased.notes["neurons"]) == set(layers)
    for name, (k,) in erased.notes["neurons"].items():
        assert (layers[name].weight[:, k] == 0).all()
        rest = [i for i in range(layers[name].weight.shape[1]) if i != k]
        assert torch.equal(layers[name].weight[:, rest], before[name].weight[:, rest])


def test_skilled_weights_equal_a_loop() -> None:
    w, target, base = torch.randn(5, 40), torch.rand(40), torch.rand(40)
    chosen = skilled(w, target, base, 0.1)
    for i in range(5):
        ranked = sorted(range(40), key=lambda j: -abs(float(w[i, j])) * float(target[j]))[:4]
        assert {j for j in range(40) if chosen[i, j]} == {j for j in ranked if target[j] > base[j]}


def test_concept_prune_equals_a_loop(tiny, ctx) -> None:
    """Norms by hand: run each denoiser call's rows through a python loop, then the rule above."""
    method = looks(CHURCH, calls=2)
    base, target = _prompts("church", "object", "emoji")
    layers = {n: m for n, m in tiny.pipe.unet.named_modules() if n.endswith("ff.net.2")}
    sides = []
    for texts in (target, base):
        rows = {n: [] for n in layers}
        hooks = [
            m.register_forward_pre_hook(
                lambda _, x, rows=rows[n]: rows.append(x[0].reshape(-1, x[0].shape[-1]))
            )
            for n, m in layers.items()
        ]
        list(
            tiny.denoise(
                tiny.initial_noise([0] * len(texts)),
                tiny.encode(texts),
                7.5,
                steps=4,
                sampler="ddim",
            )
        )
        for hook in hooks:
            hook.remove()
        sides.append(rows)
    erased = method.erase(tiny.copy(), CHURCH, ctx)
    by_name, pruned = dict(erased.pipe.unet.named_modules()), 0
    for name, module in layers.items():
        gone = torch.zeros_like(module.weight, dtype=torch.bool)
        for call in range(2):
            norms = []
            for rows in sides:
                h = rows[name][call].double()
                norms.append((h / h.norm(dim=1, keepdim=True)).square().sum(0).sqrt().float())
            gone |= skilled(module.weight, *norms, 0.05)
        assert torch.equal(by_name[name].weight == 0, gone | (module.weight == 0)), name
        pruned += int(gone.sum())
    assert erased.notes["pruned"] == pruned > 0


def test_concept_prune_takes_the_union_over_terms(tiny, ctx) -> None:
    def gone(*terms):
        concept = Concept("n", "nsfw", "", terms)
        erased = looks(concept, calls=1).erase(tiny.copy(), concept, ctx)
        return torch.cat([(m.weight == 0).flatten() for n, m in erased.pipe.unet.named_modules()
                          if n.endswith("ff.net.2")])  # fmt: skip

    assert torch.equal(gone("a foot", "an ear"), gone("a foot") | gone("an ear"))


def test_concept_prune_needs_geglu(tiny, ctx, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, module in tiny.pipe.unet.named_modules():
        if name.endswith(".ff"):
            module.net[0] = nn.Linear(1, 1)
    with pytest.raises(IncompatibleError, match="needs GEGLU feed-forward blocks"):
        looks(CHURCH, calls=1).erase(tiny, CHURCH, ctx)
