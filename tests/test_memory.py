"""What methods keep in memory: counted, for no GPU is needed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import UNet2DConditionModel
from fakes import finished
from torch.autograd.graph import saved_tensors_hooks

from bench import Concept, PluginError, fit, fused
from bench.core import devices
from bench.engine.runner import Runner
from bench.engine.settings import Settings
from bench.models import delta
from bench.models.diffusers import DiffusersModel
from bench.plan.plan import erasure_cell
from bench.plugins.registry import Ref
from methods._masks import prunable

CHURCH = Concept("church", "object", "house")


@pytest.mark.parametrize(
    ("name", "params", "copies"),
    [
        ("esd", {"steps": 1}, 0),
        ("p-esd", {"steps": 1}, 0),
        ("p-ac", {"steps": 1, "images": 2}, 0),
        ("np-esd", {"steps": 1, "images": 1}, 0),
        ("pre-prune", {"steps": 1}, 1),  # its teacher is the pruned model
    ],
)
def test_the_base_is_the_teacher(tiny, ctx, monkeypatch, name, params, copies) -> None:
    """No method makes a copy beside its private one, and the base stays as it is."""
    before = {n: t.clone() for n, t in delta.weights(tiny).items()}
    mine = delta.private(tiny)
    assert mine.original() is tiny
    made, copy = [], DiffusersModel.copy
    monkeypatch.setattr(DiffusersModel, "copy", lambda self: (made.append(1), copy(self))[1])
    finished("methods", name, CHURCH, **params).erase(mine, CHURCH, ctx)
    assert len(made) == copies
    assert all(torch.equal(t, before[n]) for n, t in delta.weights(tiny).items())


def test_a_model_that_is_nobodys_copy_gives_a_copy_of_itself(tiny) -> None:
    assert tiny.original() is not tiny
    assert tiny.copy().source is None


def test_an_erased_model_does_not_lead_to_the_base(monkeypatch) -> None:
    """An attack gets the erased model; and what changed is written once, for it may be gigabytes."""
    made, to_bytes = [], delta.to_bytes
    monkeypatch.setattr(delta, "to_bytes", lambda change: (made.append(1), to_bytes(change))[1])
    cell = erasure_cell("tiny-random", Ref.parse("esd:steps=1"), CHURCH)
    erased = Runner(Settings()).erase(cell)
    assert erased.model.source is None
    assert made == [1]
    cell = erasure_cell("tiny-random", Ref("negative-prompt"), CHURCH)
    assert Runner(Settings()).erase(cell).model.source is None  # which is no delta's copy


def test_too_little_memory_is_said_before_the_first_step(ctx, monkeypatch) -> None:
    weight = torch.nn.Parameter(torch.zeros(1000))
    monkeypatch.setattr("bench.core.training.free_bytes", lambda device: 11_999)
    with pytest.raises(PluginError, match=r"training 1,000 values takes .* train fewer"):
        fit(lambda: pytest.fail("a step was taken"), torch.optim.Adam([weight]), 1, ctx)
    monkeypatch.setattr("bench.core.training.free_bytes", lambda device: 12_000)
    assert fit(weight.sum, torch.optim.Adam([weight]), 1, ctx) == [0.0]


def test_adam_is_fused_where_all_is_on_a_gpu() -> None:
    gpu, cpu = SimpleNamespace(is_cuda=True), SimpleNamespace(is_cuda=False)
    assert fused([gpu, gpu]) == {"fused": True}
    assert fused([gpu, cpu]) == fused([cpu]) == {}


@pytest.mark.parametrize(("gigabytes", "small"), [(24, True), (80, False)])
def test_a_small_gpu_keeps_few_activations(monkeypatch, gigabytes: int, small: bool) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (0, gigabytes * 2**30))
    assert devices.is_small("cuda") is small
    assert not devices.is_small("cpu")


def gradient(model) -> tuple[list[torch.Tensor], int]:
    """Return the gradients of a loss, and how many bytes were kept for them."""
    kept: dict[int, torch.Tensor] = {}
    weights = {p.untyped_storage().data_ptr() for p in model.pipe.unet.parameters()}

    def keep(x: torch.Tensor) -> torch.Tensor:
        if (place := x.untyped_storage().data_ptr()) not in weights:
            kept[place] = x
        return x

    torch.manual_seed(0)
    x, cond = torch.randn(2, *model.latent_shape), model.encode(["a", "b"])
    params = list(model.parameters("full").values())
    for p in params:
        p.requires_grad_(True)
    with saved_tensors_hooks(keep, lambda x: x):
        loss = model.predict_noise(x, torch.tensor([3, 700]), cond).square().mean()
    return list(torch.autograd.grad(loss, params)), sum(
        x.untyped_storage().nbytes() for x in kept.values()
    )


def test_keeping_few_activations_changes_no_gradient(tiny) -> None:
    whole, kept = gradient(tiny)
    other = tiny.copy()
    other.pipe.unet.enable_gradient_checkpointing()
    again, less = gradient(other)
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))
    assert less < kept / 4
    delta.check(tiny, other)  # it is no change of the model


def test_p_esd_on_stable_diffusion_counts_to_less_than_24_gb() -> None:
    """The base, the private copy, and four numbers per prunable entry; then what a step keeps."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    names = dict(unet.named_parameters())
    model = SimpleNamespace(
        pipe=SimpleNamespace(unet=unet),
        parameters=lambda group: {
            n: p for n, p in names.items() if group == "full" or "attn2" in n
        },
    )
    scope = sum(p.numel() for p in prunable(model, "esd-u").values())  # type: ignore[arg-type]
    denoiser = sum(p.numel() for p in names.values())
    assert (scope, denoiser) == (815_358_084, 859_520_964)
    others = 123_060_480 + 83_653_863  # CLIP ViT-L/14's text encoder, the autoencoder
    fixed = 4 * (2 * (denoiser + others) + 4 * scope)
    unet.enable_gradient_checkpointing()
    kept: dict[int, torch.Tensor] = {}
    x = torch.empty(1, 4, 64, 64, device="meta")
    weights = {p.untyped_storage()._cdata for p in unet.parameters()}

    def keep(x: torch.Tensor) -> torch.Tensor:
        if (place := x.untyped_storage()._cdata) not in weights:
            kept[place] = x
        return x

    with saved_tensors_hooks(keep, lambda x: x):
        unet(x, torch.tensor([5], device="meta"), torch.empty(1, 77, 768, device="meta"))
    activations = sum(x.untyped_storage().nbytes() for x in kept.values())
    assert activations == pytest.approx(0.31e9, rel=0.02)
    assert fixed == pytest.approx(21.6e9, rel=0.01)
    assert fixed + activations < 24e9 - 1.5e9  # the rest: one block again, the GPU's own libraries
