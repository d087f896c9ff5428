"""What methods keep in memory: counted, for no GPU is needed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import UNet2DConditionModel
from fakes import finished
from torch.autograd.graph import saved_tensors_hooks

from bench import Batch, Concept, PluginError, fit, fused
from bench.core import devices
from bench.engine.runner import Runner
from bench.engine.settings import Settings
from bench.models import delta
from bench.models.diffusers import DiffusersModel
from bench.plan.plan import erasure_cell
from bench.plugins.registry import Ref
from bench.store.artifacts import Artifacts
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
    made, stored = [], delta.stored
    monkeypatch.setattr(delta, "stored", lambda change: (made.append(1), stored(change))[1])
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


@pytest.mark.parametrize(("free", "reserved", "short"), [(24, 0, True), (20, 20, False)])
def test_where_a_gpu_has_little_free_memory_few_activations_are_kept(
    monkeypatch, free: int, reserved: int, short: bool
) -> None:
    """What the library has reserved and not given out is free, too."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free * 2**30, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: reserved * 2**30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: reserved // 2 * 2**30)
    assert devices.is_short("cuda") is (free + reserved / 2 < 30) is short
    assert not devices.is_short("cpu")


def test_a_batch_that_does_not_fit_is_taken_in_parts(ctx) -> None:
    """Least squares in float64. Memory ends at first, and again in the middle of the second step."""
    rng = torch.Generator().manual_seed(0)
    rows = torch.randn(3, 7, 4, generator=rng, dtype=torch.float64)
    goals = torch.randn(3, 7, generator=rng, dtype=torch.float64)
    weight, expected = (torch.zeros(4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    sizes, step = [], iter(range(3))

    def draw() -> Batch:
        i = next(step)

        def error(part: slice) -> torch.Tensor:
            sizes.append(part.stop - part.start)
            if len(sizes) in {1, 6}:
                raise torch.OutOfMemoryError
            return (rows[i, part] @ weight - goals[i, part]).square().mean()

        return Batch(7, error)

    losses = []
    for i in range(3):
        loss = (rows[i] @ expected - goals[i]).square().mean()
        losses.append(loss.item())
        expected.data -= 0.1 * torch.autograd.grad(loss, expected)[0]
    found = fit(draw, torch.optim.SGD([weight], 0.1), 3, ctx)
    assert sizes == [7, 3, 3, 1, 3, 3, *[1] * 14]
    assert found == pytest.approx(losses, rel=1e-14)
    assert torch.allclose(weight, expected, rtol=1e-13)


def test_one_row_that_does_not_fit_is_the_end(ctx) -> None:
    def error(part: slice) -> torch.Tensor:
        raise torch.OutOfMemoryError

    weight = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(torch.OutOfMemoryError):
        fit(lambda: Batch(3, error), torch.optim.SGD([weight]), 1, ctx)


FEW = {"batch": 4, "steps": 3, "sampling_steps": 4, "reuse": 2}
AC = {"batch": 4, "steps": 2, "images": 4, "augment": True, "prior": 0.5}
IN_PARTS = {
    "esd": FEW,
    "p-esd": {**FEW, "eps": 1e-9, "m0": 0.05},
    "np-esd": {**FEW, "images": 3},
    "pre-prune": FEW,
    "ac": AC,
    "p-ac": {**AC, "eps": 1e-9, "m0": 0.05, "lr": 0.1},
    "concept-prune": {"steps": 4, "calls": 2, "words": "emoji"},
}


@pytest.mark.parametrize("name", IN_PARTS)
def test_a_method_gives_the_same_with_too_little_memory(exact, ctx, monkeypatch, name) -> None:
    """Denoiser passes of more than two rows fail. All in float64, so that only rounding is left."""
    sizes, limit = [], 99

    def predict(self, latents, t, cond):
        if len(latents) > limit:
            raise torch.OutOfMemoryError
        sizes.append(len(latents))
        latents, cond = latents.double(), cond.double()
        return self.pipe.unet(latents, t, encoder_hidden_states=cond, return_dict=False)[0]

    monkeypatch.setattr(DiffusersModel, "predict", predict)

    def erased() -> DiffusersModel:
        method = finished("methods", name, CHURCH, **IN_PARTS[name])
        return method.erase(delta.private(exact), CHURCH, ctx)

    whole, at_once = erased(), max(sizes)
    sizes.clear()
    limit = 2
    parts = erased()
    assert at_once > max(sizes) == 2
    assert parts.notes.keys() == whole.notes.keys()
    for key, note in whole.notes.items():
        assert parts.notes[key] == (pytest.approx(note) if isinstance(note, float) else note)
    before, after = delta.weights(whole), delta.weights(parts)
    assert delta.digest(delta.diff(exact, whole)) != delta.digest({})
    for key, value in before.items():
        assert torch.allclose(after[key], value, rtol=1e-9, atol=1e-12), key


def test_relearning_gives_the_same_with_too_little_memory(exact, ctx, monkeypatch) -> None:
    latents = exact.initial_noise(range(5)).double()
    texts, real, sizes = ["a church"] * 5, DiffusersModel.predict, []

    def predict(self, latents, t, cond):
        sizes.append(len(latents))
        if len(latents) > 2:
            raise torch.OutOfMemoryError
        return real(self, latents, t, cond)

    attack = finished("attacks", "relearn", CHURCH, steps=2)
    whole = attack.tune(exact.copy(), latents, texts, ctx)
    monkeypatch.setattr(DiffusersModel, "predict", predict)
    assert attack.tune(exact.copy(), latents, texts, ctx) == pytest.approx(whole, rel=1e-5)
    assert sizes == [5, 2, 2, 1, 2, 2, 1]


RECOMPUTED = {**IN_PARTS, "fmn": {"steps": 2, "images": 1, "inversion_steps": 1}}


@pytest.mark.parametrize("name", [n for n in RECOMPUTED if n != "concept-prune"])
def test_a_method_gives_the_same_with_gradient_checkpointing(tiny, tmp_path, name) -> None:
    """Bit for bit, also where hooks change the passes that are computed again."""

    def erased(*, recompute: bool) -> DiffusersModel:
        settings = Settings(recompute=recompute, artifacts=Artifacts(tmp_path / str(recompute)))
        cell = erasure_cell("tiny-random", Ref(name, RECOMPUTED[name]), CHURCH)
        return Runner(settings).erase(cell).model

    whole, again = erased(recompute=False), erased(recompute=True)
    assert again.pipe.unet.is_gradient_checkpointing > whole.pipe.unet.is_gradient_checkpointing
    before, after = delta.weights(whole), delta.weights(again)
    assert any(not torch.equal(t, delta.weights(tiny)[key]) for key, t in before.items())
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())


def test_a_method_that_runs_out_of_memory_is_begun_again_with_checkpointing(
    monkeypatch, caplog
) -> None:
    cell = erasure_cell("tiny-random", Ref.parse("esd:steps=1"), CHURCH)
    expected = Runner(Settings(recompute=False)).erase(cell)
    real, found = DiffusersModel.predict, []

    def predict(self, *rest):
        found.append(self.pipe.unet.is_gradient_checkpointing)
        if torch.is_grad_enabled() and not found[-1]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, *rest)

    monkeypatch.setattr(DiffusersModel, "predict", predict)
    with pytest.raises(PluginError, match="method esd raised .*out of memory"):
        Runner(Settings(recompute=False, artifacts=Artifacts(Path("no")))).erase(cell)
    short = Runner(Settings(artifacts=Artifacts(Path("short"))))
    assert short.erase(cell).card["digest"] == expected.card["digest"]
    assert found[-1]
    assert "begun again with --recompute" in caplog.text


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
