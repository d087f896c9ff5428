"""ESD and P-ESD against formulas written out here."""

import types
import weakref

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from fakes import finished
from torch.nn.utils import parameters_to_vector
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from bench import Concept, IncompatibleError, PluginError, trainable
from bench.models.diffusers import DiffusersModel
from methods._esd import EsdObjective, compvis_stops
from methods._masks import SoftMasks, prunable
from methods.esd import ESD
from methods.p_esd import PESD

CHURCH = Concept("church", "object")
FAST = {"batch": 2, "sampling_steps": 5, "reuse": 1, "xt_alignment": "exact", "templates": False}


def objective(model, **changes):
    settings = ESD(**{**FAST, "sampling_steps": 10, **changes})
    return EsdObjective(settings, model, ["church", "a church"], seed=5)


@pytest.mark.parametrize("eta", [1.0, 2.5])
def test_esd_target(tiny, eta: float) -> None:
    x, t, target = objective(tiny, eta=eta).sample(tiny)
    null, cond = tiny.encode(["", ""]), tiny.encode(["church", "a church"])
    with torch.no_grad():
        e_null = tiny.pipe.unet(x, t, encoder_hidden_states=null).sample.double()
        e_cond = tiny.pipe.unet(x, t, encoder_hidden_states=cond).sample.double()
    assert torch.allclose(target.double(), (1 + eta) * e_null - eta * e_cond, atol=1e-5)


def test_exact_alignment_stops_where_the_label_says(tiny) -> None:
    """Re-derive every latent by running DDIM by hand to the label's timestep."""
    o = objective(tiny)
    x, t, _ = o.sample(tiny)
    rng = torch.Generator().manual_seed(5)
    torch.randint(10, (2,), generator=rng)
    seeds = torch.randint(2**31, (2,), generator=rng).tolist()
    alphas, both = tiny.alphas.double(), tiny.encode(["", "", "church", "a church"])
    latents, times = tiny.initial_noise(seeds).double(), list(range(901, 0, -100))
    for i, now in enumerate(times):
        for row in range(2):
            if int(t[row]) == now:
                assert torch.allclose(x[row].double(), latents[row], atol=1e-4)
        with torch.no_grad():
            pair = torch.cat([latents, latents]).float()
            e = tiny.pipe.unet(pair, now, encoder_hidden_states=both).sample.double()
        u, c = e.chunk(2)
        noise = u + 3.0 * (c - u)
        a, b = alphas[now], alphas[times[i + 1]] if i + 1 < 10 else alphas[0]
        clean = (latents - (1 - a).sqrt() * noise) / a.sqrt()
        latents = b.sqrt() * clean + (1 - b).sqrt() * noise


def test_compvis_levels() -> None:
    """The published loop: 49 steps from 961, break when index + 1 == t_enc; t_enc 0 never breaks."""
    for t_enc in range(50):
        taken = 0
        for i in range(49):
            taken += 1
            if 49 - i - 1 + 1 == t_enc:
                break
        assert int(compvis_stops(torch.tensor(t_enc), 50)) == taken


def test_compvis_labels_are_noisier_than_the_latents(tiny) -> None:
    o = objective(tiny, xt_alignment="compvis", sampling_steps=50)
    t_enc = torch.randint(50, (2,), generator=torch.Generator().manual_seed(5))
    x, t, _ = o.sample(tiny)
    assert all(
        20 * k <= label < 20 * (k + 1) for k, label in zip(t_enc.tolist(), t.tolist(), strict=True)
    )
    assert int(o._trajectory[0][0]) == 961
    assert torch.equal(x[0], o._trajectory[int(compvis_stops(t_enc, 50)[0])][1][0])


def test_one_esd_step_equals_adam_on_the_formula(tiny, ctx) -> None:
    base = tiny.copy()
    esd = ESD(params="esd-x", steps=1, lr=1e-3, **FAST)
    erased = esd.erase(tiny.copy(), CHURCH, ctx)
    o = EsdObjective(esd, base, CHURCH.phrases, seed=ctx.seed("esd"))
    x, t, target = o.sample(base)
    student = base.copy()
    params = student.parameters("esd-x")
    for p in params.values():
        p.requires_grad_(True)
    ((student.predict_noise(x, t, o.cond) - target) ** 2).mean().backward()
    for name, p in params.items():
        step = 1e-3 * p.grad / (p.grad.abs() + 1e-8)  # Adam's first step
        after = erased.parameters("esd-x")[name]
        assert torch.allclose(after, p.detach() - step, atol=1e-6), name
    for name, p in erased.parameters("esd-u").items():
        assert torch.equal(p, base.parameters("esd-u")[name]), name


def test_reuse_shares_a_trajectory(tiny) -> None:
    o = objective(tiny, reuse=3)
    seen = []
    for _ in range(6):
        o.sample(tiny)
        seen.append(id(o._trajectory))
    assert seen[0] == seen[1] == seen[2] != seen[3]


def test_mask_gradient_equals_autograd(tiny) -> None:
    params = dict(list(prunable(tiny, "full").items())[:6])
    weights = {k: v.detach().clone() for k, v in params.items()}
    m = {k: torch.randn_like(v, requires_grad=True) for k, v in weights.items()}
    x, t, c = torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), tiny.encode(["a", "b"])
    effective = {k: weights[k] * torch.sigmoid(10 * m[k]) for k in m}
    y = torch.func.functional_call(tiny.pipe.unet, effective, (x, t), {"encoder_hidden_states": c})
    y.sample.square().mean().backward()

    masks = SoftMasks(params, PESD(), weights)
    for k in m:
        masks.logits[k].copy_(m[k].detach())
    masks.apply()
    ours = {}
    masks.optimizer.step = lambda: ours.update({k: v.grad.clone() for k, v in masks.logits.items()})
    with trainable(params.values()):
        tiny.predict_noise(x, t, c).square().mean().backward()
        masks.step()
    for k in m:
        assert torch.allclose(ours[k], m[k].grad, rtol=1e-3, atol=1e-7), k


def test_hardening_zeroes_or_restores_every_weight(tiny) -> None:
    params = tiny.parameters("esd-x")
    weights = {k: v.detach().clone() for k, v in params.items()}
    masks = SoftMasks(params, PESD(), weights)
    for logits in masks.logits.values():
        logits.copy_(torch.randn_like(logits))
    report = masks.harden()
    pruned = 0
    for k, p in params.items():
        keep = masks.logits[k] >= 0
        assert torch.equal(p, torch.where(keep, weights[k], 0))
        pruned += int((~keep).sum())
    in_scope = sum(w.numel() for w in weights.values())
    assert (report["pruned"], report["share"]) == (pruned, pruned / in_scope)
    assert report["in_scope"] == in_scope == sum(report["mask_histogram"])


def test_large_m0_leaves_the_model_as_it_was(tiny, ctx) -> None:
    before = parameters_to_vector(tiny.pipe.unet.parameters()).clone()
    erased = PESD(params="esd-u", m0=5.0, steps=2, **FAST).erase(tiny, CHURCH, ctx)
    assert torch.equal(parameters_to_vector(erased.pipe.unet.parameters()), before)
    assert erased.notes["pruned"] == 0


def test_pesd_only_zeroes_and_logs(tiny, ctx) -> None:
    base = tiny.copy()
    erased = PESD(params="esd-u", steps=12, lr=0.3, eps=1e-15, **FAST).erase(tiny, CHURCH, ctx)
    zeroed = 0
    for name, p in erased.parameters("full").items():
        old = base.parameters("full")[name]
        assert ((p == old) | (p == 0)).all()
        zeroed += int(((p == 0) & (old != 0)).sum())
        assert not p.requires_grad
    assert erased.notes["pruned"] >= zeroed > 0
    assert 0 < erased.notes["share"] < 1
    assert erased.notes["hard_loss"] > 0


SD14 = {  # tensors and values of SD v1.4's denoiser, counted by hand in the published code's sets
    "esd-x": (80, 43_962_560), "esd-x-strict": (32, 19_169_280), "esd-u": (598, 813_495_680),
    "selfattn": (80, 49_574_080), "attn": (160, 93_536_640), "full": (686, 859_520_964),
}  # fmt: skip
SD14_PRUNABLE = {"esd-x": (80, 43_962_560), "esd-u": (388, 815_358_084), "full": (468, 859_320_644)}


def test_groups_on_the_shapes_of_stable_diffusion() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    model = types.SimpleNamespace(pipe=types.SimpleNamespace(unet=unet))
    model.parameters = lambda group: DiffusersModel.parameters(model, group)

    def count(parameters):
        return len(parameters), sum(p.numel() for p in parameters.values())

    assert {g: count(model.parameters(g)) for g in SD14} == SD14
    assert {g: count(prunable(model, g)) for g in SD14_PRUNABLE} == SD14_PRUNABLE
    assert not any("norm" in name for name in prunable(model, "full"))


@pytest.mark.parametrize("params", ["esd-u", "full"])
def test_esd_trains_norms_as_its_first_code_does(tiny, ctx, params: str) -> None:
    erased = ESD(params=params, steps=1, lr=1e-3, **FAST).erase(tiny.copy(), CHURCH, ctx)
    before = dict(tiny.pipe.unet.named_parameters())
    moved = {n for n, p in erased.pipe.unet.named_parameters() if not torch.equal(p, before[n])}
    assert any("norm" in n for n in moved)
    assert moved <= set(tiny.parameters(params))
    assert (params == "full") == any(n.startswith("time_embedding") for n in moved)


def test_state_of_masks_is_fp32(tiny) -> None:
    masks = SoftMasks(prunable(tiny, "esd-x"), PESD(), prunable(tiny.copy(), "esd-x"))
    for p in prunable(tiny, "esd-x").values():
        p.grad = torch.ones_like(p)
    masks.step()
    states = [v for s in masks.optimizer.state.values() for v in s.values()]
    assert {t.dtype for t in [*masks.logits.values(), *states]} == {torch.float32}


@pytest.mark.parametrize("name", ["esd", "p-esd", "ac", "p-ac", "fmn", "np-esd", "pre-prune"])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_no_method_trains_in_half_precision(tiny, ctx, name: str, dtype: str, monkeypatch) -> None:
    """Where small steps are lost; the harness hands over float32 whatever is drawn in."""
    monkeypatch.setattr("methods._ac.anchor_examples", lambda model, *_, **__: [None] * 4)
    method = finished("methods", name, CHURCH, steps=1)
    with pytest.raises(IncompatibleError, match="training needs float32 weights, got torch"):
        method.erase(tiny.cast(dtype), CHURCH, ctx)


def test_gradients_are_off_again_after_a_loss_that_is_not_finite(tiny, ctx) -> None:
    tiny.pipe.unet.conv_in.weight.data[0] = float("nan")
    for name in ("esd", "p-esd"):
        with pytest.raises(PluginError, match=r"the loss is nan at step 0: lower lr \(0.01\)"):
            finished("methods", name, CHURCH, steps=3, lr=0.01).erase(tiny, CHURCH, ctx)
        assert not any(p.requires_grad for p in tiny.pipe.unet.parameters())
        assert all(p.grad is None for p in tiny.pipe.unet.parameters())


def test_esd_lowers_its_own_loss(tiny, ctx) -> None:
    base = tiny.copy()
    erased = ESD(params="full", steps=30, lr=3e-5, **FAST).erase(tiny, CHURCH, ctx)
    x, t, target = objective(base).sample(base)
    cond = base.encode(["church", "a church"])
    before, after = (F.mse_loss(m.predict_noise(x, t, cond), target) for m in (base, erased))
    assert after < before


class _Peak(TorchDispatchMode):
    """Counts the bytes of every storage that an operation made and that is still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
            if storage is not None and storage._cdata not in self.seen:
                self.seen.add(storage._cdata)
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return out

    def _gone(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.live -= size


def test_peak_memory_of_masks_is_what_they_say(tiny) -> None:
    parameters, original = prunable(tiny, "esd-u"), prunable(tiny.copy(), "esd-u")
    with _Peak() as memory:
        masks = SoftMasks(parameters, PESD(), original)
        for _ in range(3):
            for p in parameters.values():
                p.grad = torch.randn_like(p)
            masks.step()
    in_scope = sum(p.numel() for p in parameters.values())
    assert memory.peak == pytest.approx(6 * 4 * in_scope, rel=0.2)
