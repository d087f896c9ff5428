"""Models of the photo world: where they come from, how they draw, weights erased elsewhere."""

from __future__ import annotations

import pickle
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
)
from safetensors.torch import save_file

from bench import AssetError, Concept, IncompatibleError, Prompt, SpecError
from bench.catalog import model_info, revision, settle
from bench.models import delta, load_model, loading
from bench.models.checkpoints import load_part, read_tensors
from bench.plan import erasure_cell
from bench.registry import ROOT, Ref
from bench.store import Store
from bench.types import SamplerNoise

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


# ---------------------------------------------------------------------- where models come from
def test_what_a_name_means(tmp_path, tiny) -> None:
    hub = model_info("somebody/some-model.v2")
    assert (hub.world, hub.source, hub.sampling.sampler) == (
        "photo", "hub:somebody/some-model.v2", "lms"
    )  # fmt: skip
    tiny.pipe.save_pretrained(tmp_path / "a" / "b")
    assert model_info("a/b").source == "a/b"  # a folder that is there is no hub id
    assert model_info("sd21").sampling.size == 768
    assert model_info("sd21-base").sampling.size == 512
    (tmp_path / "m.ckpt").touch()
    assert model_info("m.ckpt").about == "a single-file checkpoint"


def test_what_is_no_model(tmp_path, tiny) -> None:
    with pytest.raises(SpecError, match="unknown model 'a/b/c'.* a hub id .owner/name.$"):
        model_info("a/b/c")
    (tmp_path / "x.pt").touch()
    with pytest.raises(SpecError, match=r"x.pt: expected a checkpoint .* or a folder"):
        model_info("x.pt")
    tiny.pipe.save_pretrained(tmp_path / "mine")
    index = tmp_path / "mine" / "model_index.json"
    index.write_text(index.read_text().replace("StableDiffusionPipeline", "FluxPipeline"))
    with pytest.raises(SpecError, match="mine is a FluxPipeline: expected a StableDiffusion"):
        model_info("mine")
    (tmp_path / "mine" / "unet" / "config.json").unlink()
    with pytest.raises(SpecError, match="mine is no diffusers model: expected a folder with"):
        model_info("mine")


def test_world_of_a_model_that_fits_both() -> None:
    info = model_info("tiny-random", "photo")
    assert (info.world, info.sampling.sampler, info.sampling.steps) == ("photo", "lms", 50)
    model = load_model("tiny-random", world="photo")
    assert (model.world, model.generate([Prompt("p", "a", 0)])[0].size) == ("photo", (32, 32))
    church = Concept("church", "object")
    cells = [erasure_cell("tiny-random", Ref("none"), church, world=w) for w in ("emoji", "photo")]
    assert cells[0] == erasure_cell("tiny-random", Ref("none"), church)
    assert len({(c.id, c.erase_key, c.attack_key) for c in cells}) == 2
    assert cells[0].erase_key != cells[1].erase_key
    with pytest.raises(SpecError, match="--world: emoji-sd fits the emoji world only, got 'photo'"):
        model_info("emoji-sd", "photo")
    with pytest.raises(SpecError, match="--world: expected emoji or photo, got 'moon'"):
        model_info("tiny-random", "moon")


def test_random_weights_are_trained_briefly_unless_told() -> None:
    def steps(model: str, method: str) -> object:
        cell = erasure_cell(
            model,
            Ref.parse(method),
            Concept("church", "object"),
            world=model_info(model, "photo").world,
        )
        return cell.method.params["steps"]

    assert [steps("tiny-random", m) for m in ("esd", "p-esd", "esd:steps=7")] == [20, 20, 7]
    assert steps("sd14-random", "esd") == 1000


def test_cli_takes_the_world(cli) -> None:
    said = cli("show", "models", "sd14")
    assert "the built-in safety checker is off" in said.out
    said = cli("plan", "--model", "tiny-random", "--world", "moon", "--task", "church",
               "--method", "none", "--attack", "none")  # fmt: skip
    assert (said.code, said.err) == (2, "error: --world: expected emoji or photo, got 'moon'\n")
    photo = cli("plan", "--model", "tiny-random", "--world", "photo", "--task", "no-such-task",
                "--method", "none", "--attack", "none")  # fmt: skip
    assert "unknown photo task 'no-such-task'" in photo.err


def test_a_folder_is_read_in_its_type(tmp_path, tiny, monkeypatch) -> None:
    tiny.pipe.save_pretrained(tmp_path / "mine")
    real, read = StableDiffusionPipeline.from_pretrained, []

    def spy(*args, **kwargs):
        read.append(real(*args, **kwargs))
        return read[-1]

    monkeypatch.setattr(StableDiffusionPipeline, "from_pretrained", spy)
    monkeypatch.setattr(StableDiffusionPipeline, "to", lambda self, *_, **__: self)
    model = load_model("mine", dtype="bf16")
    assert len(read) == 1 and read[0] is model.pipe
    parts = (model.pipe.unet, model.pipe.text_encoder, model.pipe.vae)
    assert {p.dtype for part in parts for p in part.parameters()} == {torch.bfloat16}


@pytest.fixture
def hub(tmp_path, tiny, monkeypatch):
    """Return the commit's folder of ``a/tiny`` in a hub cache without network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repo = tmp_path / "hub" / "models--a--tiny"
    tiny.pipe.save_pretrained(repo / "snapshots" / COMMIT)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    revision.cache_clear()
    yield repo / "snapshots" / COMMIT
    revision.cache_clear()


def test_a_hub_model_from_the_cache(hub, tiny) -> None:
    assert revision("a/tiny") == COMMIT
    model = load_model("a/tiny")
    assert all(torch.equal(a, b) for a, b in _pairs(model, tiny))
    settle("a/tiny")  # nothing to do: it is here
    settle("sd14")  # nothing to do: its commit is known
    assert revision("sd14") == "133a221b8aa7292a167afc5127cb63fb5005638b"


def test_a_hub_model_that_is_half_there(hub) -> None:
    (hub / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    assert revision("a/tiny") == "a/tiny"
    with pytest.raises(AssetError, match=r"no safetensors weights of all of .*--model /path/to"):
        load_model("a/tiny")
    with pytest.raises(AssetError, match=r"a/none is not here, and cannot fetch a/none.*--model"):
        settle("a/none")


def test_a_hub_model_is_fetched_without_pickles(hub, tiny, monkeypatch) -> None:
    """The client's download is replaced; what it is asked for is what the test looks at."""
    asked = []

    def download(**kwargs):
        asked.append(kwargs)
        repo = hub.parents[2] / "models--b--other"
        tiny.pipe.save_pretrained(repo / "snapshots" / COMMIT)
        (repo / "refs").mkdir()
        (repo / "refs" / "main").write_text(COMMIT)
        return str(repo / "snapshots" / COMMIT)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert load_model("b/other").world == "photo"
    (one,) = asked
    assert (one["repo_id"], one["repo_type"], one["revision"]) == ("b/other", "model", None)

    def wanted(name: str) -> bool:
        return any(fnmatch(name, pattern) for pattern in one["allow_patterns"])

    assert wanted("unet/diffusion_pytorch_model.safetensors")
    assert wanted("text_encoder/model.safetensors") and wanted("tokenizer/merges.txt")
    unwanted = (
        "sd-v1-4.ckpt",
        "safety_checker/model.safetensors",
        "unet/diffusion_pytorch_model.bin",
        "vae/diffusion_pytorch_model.fp16.safetensors",
    )
    assert not any(map(wanted, unwanted))


def test_single_file_checkpoints(tmp_path, tiny, monkeypatch) -> None:
    """Reading one needs SD's own shapes, so the library's reader is replaced: only the call is tested."""
    asked = []

    def reader(name, **kwargs):
        asked.append((name, kwargs))
        return tiny.pipe

    monkeypatch.setattr(StableDiffusionPipeline, "from_single_file", reader)
    save_file({"a": torch.zeros(1)}, tmp_path / "m.safetensors")
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "m.ckpt")
    for name in ("m.safetensors", "m.ckpt"):
        assert load_model(name).world == "photo"
        assert asked.pop() == (name, {"torch_dtype": torch.float32, "safety_checker": None})
    (tmp_path / "bad.ckpt").write_bytes(pickle.dumps({"state_dict": Path("/")}))
    with pytest.raises(SpecError, match=r"bad.ckpt holds more than tensors: .* refused. Save its"):
        load_model("bad.ckpt")
    assert not asked
    assert revision("m.safetensors") != revision("m.ckpt")


def test_a_single_file_offline_says_what_is_missing(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    save_file({"model.diffusion_model.x": torch.zeros(1)}, tmp_path / "m.safetensors")
    with pytest.raises(AssetError, match=r"cannot load the checkpoint m.safetensors .*--model"):
        load_model("m.safetensors")


def test_sd14_random_has_the_shapes_of_sd14() -> None:
    with torch.device("meta"):
        pipe = loading._sd14_random()
    count = {name: sum(p.numel() for p in getattr(pipe, name).parameters())
             for name in ("unet", "vae", "text_encoder")}  # fmt: skip
    assert count == {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480}
    assert pipe.unet.config.sample_size * pipe.vae_scale_factor == 512
    assert pipe.text_encoder.config.hidden_act == "quick_gelu"
    tokenizer = pipe.tokenizer
    assert (len(tokenizer), tokenizer.model_max_length) == (49408, 77)
    (ids,) = tokenizer(["A photo, please: of étude n° 7!"]).input_ids
    assert (ids[0], ids[-1]) == (49406, 49407)
    assert tokenizer.unk_token_id not in ids[1:-1]
    assert tokenizer.decode(ids[1:-1]).replace(" ", "") == "aphoto,please:ofétuden°7!"
    assert tokenizer.pad_token_id == 49407


# ---------------------------------------------------------------------- how models draw
def test_lms_steps_are_those_of_unlearndiffatk(tiny) -> None:
    scheduler = tiny._scheduler("lms")
    scheduler.set_timesteps(50)
    t = scheduler.timesteps.tolist()
    assert t[:2] + t[-2:] == pytest.approx([999.0, 978.612, 20.388, 0.0], abs=1e-3)
    assert float(scheduler.init_noise_sigma) == pytest.approx(14.6146, abs=1e-4)


LIBRARY = {
    "lms": LMSDiscreteScheduler(**SD),
    "ddim": DDIMScheduler(**SD, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
    "pndm": PNDMScheduler(**SD, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1),
    "dpm": DPMSolverMultistepScheduler(
        **SD, steps_offset=1, algorithm_type="dpmsolver++", solver_order=2
    ),
}


CASES = [(s, p) for s in LIBRARY for p in ("epsilon", "v_prediction")]


@pytest.mark.parametrize(("sampler", "prediction"), CASES)
def test_samplers_equal_the_librarys_pipeline(tiny, sampler: str, prediction: str) -> None:
    kind = type(LIBRARY[sampler])
    tiny.pipe.scheduler = kind.from_config(LIBRARY[sampler].config, prediction_type=prediction)
    model = type(tiny)(tiny.pipe, "photo", tiny.sampling)
    start, text = model.noise([3]), "a church on the beach"
    *_, (_, ours) = model.denoise(start, model.encode([text]), 7.5, steps=5, sampler=sampler)
    call = {"num_inference_steps": 5, "guidance_scale": 7.5, "latents": start}
    theirs = tiny.pipe(text, output_type="latent", **call).images
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    image = np.array(tiny.pipe(text, **call).images[0]).astype(int)
    assert np.abs(np.array(model._decode(ours)[0]).astype(int) - image).max() <= 1


def test_lms_with_two_passes_for_guidance(tiny) -> None:
    scheduler = LMSDiscreteScheduler(**SD)
    scheduler.set_timesteps(5)
    cond, null = tiny.encode(["a church"]), tiny.encode([""])
    x = tiny.noise([5]) * scheduler.init_noise_sigma
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        z = x / (sigma**2 + 1) ** 0.5
        scheduler.is_scale_input_called = True
        with torch.no_grad():
            u, c = (tiny.pipe.unet(z, t, encoder_hidden_states=e).sample for e in (null, cond))
        x = scheduler.step(u + 7.5 * (c - u), t, x).prev_sample
    *_, (_, ours) = tiny.denoise(tiny.noise([5]), cond, 7.5, steps=5, sampler="lms")
    assert (ours - x).abs().max() <= 1e-5 * x.abs().max()


def test_velocity_becomes_noise(tiny) -> None:
    """eps = sqrt(a) v + sqrt(1 - a) x in float64, at whole timesteps and between two of them."""
    tiny.pipe.scheduler = DDIMScheduler(**SD, prediction_type="v_prediction")
    model = type(tiny)(tiny.pipe, "photo", tiny.sampling)
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alphas = np.cumprod(1 - betas)
    sigmas = ((1 - alphas) / alphas) ** 0.5
    x, cond = tiny.noise([1, 2, 3]), tiny.encode(["a church"] * 3)
    t = torch.tensor([1.0, 20.388, 999.0])
    with torch.no_grad():
        v = tiny.pipe.unet(x, t, encoder_hidden_states=cond).sample.double().numpy()
    sigma = np.interp(t.double(), np.arange(1000), sigmas).reshape(3, 1, 1, 1)
    expected = v / (1 + sigma**2) ** 0.5 + sigma / (1 + sigma**2) ** 0.5 * x.double().numpy()
    with torch.no_grad():
        got = model.predict_noise(x, t, cond).double().numpy()
    assert np.abs(got - expected).max() < 1e-5
    with torch.no_grad():
        one = model.predict_noise(x, torch.tensor(500), cond)  # one timestep for the whole batch
        each = model.predict_noise(x, torch.full((3,), 500), cond)
    assert torch.equal(one, each)


ZERO = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}


def rescaled() -> np.ndarray:
    """Algorithm 1 of arXiv 2305.08891 in float64."""
    roots = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2) ** 0.5
    return ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2


def zero_snr(tiny, **more):
    tiny.pipe.scheduler = DDIMScheduler(**SD, **ZERO, timestep_spacing="trailing", **more)
    return type(tiny)(tiny.pipe, "photo", tiny.sampling)


def test_a_schedule_that_ends_without_signal(tiny) -> None:
    """DDIM's formula in float64; where the signal level is 0, a velocity is minus the clean image."""
    model, alphas = zero_snr(tiny), rescaled()
    assert np.abs(model.alphas.double().numpy() - alphas).max() < 1e-5
    assert float(model.alphas[-1]) == 0
    cond, null = model.encode(["a church on the beach"]), model.encode([""])
    x = model.noise([3]).double()
    for t, then in zip([999, 799, 599, 399, 199], [799, 599, 399, 199, 0], strict=True):
        with torch.no_grad():
            u, c = (model.pipe.unet(x.float(), t, encoder_hidden_states=e).sample.double()
                    for e in (null, cond))  # fmt: skip
        v, a, b = u + 7.5 * (c - u), alphas[t], alphas[then]
        clean = a**0.5 * x - (1 - a) ** 0.5 * v
        x = b**0.5 * clean + (1 - b) ** 0.5 * (a**0.5 * v + (1 - a) ** 0.5 * x)
    *_, (_, ours) = model.denoise(model.noise([3]), cond, 7.5, steps=5, sampler="ddim")
    assert (ours - x).abs().max() <= 1e-3 * x.abs().max()


@pytest.mark.parametrize("sampler", ["ddim", "dpm"])
@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_a_schedule_without_signal_in_the_librarys_pipeline(tiny, sampler, spacing) -> None:
    own = {**SD, **ZERO, "timestep_spacing": spacing}
    tiny.pipe.scheduler = DDIMScheduler(**own, set_alpha_to_one=False, clip_sample=False)
    model = type(tiny)(tiny.pipe, "photo", tiny.sampling)
    if sampler == "dpm":
        tiny.pipe.scheduler = DPMSolverMultistepScheduler(**own)
    start, text = model.noise([3]), "a church on the beach"
    *_, (_, ours) = model.denoise(start, model.encode([text]), 7.5, steps=5, sampler=sampler)
    theirs = tiny.pipe(text, num_inference_steps=5, guidance_scale=7.5, latents=start,
                       output_type="latent").images  # fmt: skip
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def test_every_use_of_a_schedule_without_signal_is_finite(tiny, tmp_path) -> None:
    model = zero_snr(tiny)
    model.pipe.save_pretrained(tmp_path / "zero")
    model = load_model("zero", world="photo")
    assert (model.sampling.sampler, model._scheduler("lms").config.timestep_spacing) == (
        "lms", "trailing"
    )  # fmt: skip
    x, cond = model.noise([1, 2]), model.encode(["a church"] * 2)
    last = torch.tensor([999.0, 999.0])
    assert torch.equal(model.predict_noise(x, last, cond), x)  # there is nothing but noise
    between = model.predict_noise(x, torch.tensor([998.5, 20.388]), cond)
    assert torch.isfinite(between).all()
    for sampler in ("lms", "ddim", "dpm"):
        *_, (_, latents) = model.denoise(x, cond, 7.5, steps=5, sampler=sampler)
        assert torch.isfinite(latents).all() and latents.std() > 0.1, sampler
    noisy = [SamplerNoise(0.0, seed=1), SamplerNoise(1.85, 1.04, seed=2)]
    *_, (_, latents) = model.denoise(x, cond, 7.5, steps=5, noise=noisy)
    *_, (_, plain) = model.denoise(x, cond, 7.5, steps=5, sampler="ddim")
    assert torch.isfinite(latents).all()
    assert torch.allclose(latents[0], plain[0], atol=1e-4 * float(plain.abs().max()))
    with pytest.raises(IncompatibleError, match="pndm cannot draw with this model, .* signal"):
        model._scheduler("pndm")


def test_a_schedule_is_the_models_own(tiny, tmp_path) -> None:
    """Betas that were given, and timesteps that were chosen; a class's default is no choice."""
    betas = np.linspace(0.001, 0.01, 1000)
    tiny.pipe.scheduler = DDIMScheduler(trained_betas=betas.tolist(), timestep_spacing="trailing")
    model = type(tiny)(tiny.pipe, "photo", tiny.sampling)
    alphas = np.cumprod(1 - betas)
    assert np.allclose(model.alphas.double().numpy(), alphas, atol=1e-5)
    for sampler in LIBRARY:
        scheduler = model._scheduler(sampler)
        scheduler.set_timesteps(10)
        assert torch.equal(scheduler.alphas_cumprod, model.alphas)
        assert int(scheduler.timesteps[0]) == 999
    tiny.pipe.scheduler = PNDMScheduler(**SD)  # as Stable Diffusion's own: "leading" by default
    tiny.pipe.save_pretrained(tmp_path / "saved")
    scheduler = load_model("saved", world="photo")._scheduler("lms")
    scheduler.set_timesteps(50)
    assert float(scheduler.timesteps[1]) == pytest.approx(978.612, abs=1e-3)


@pytest.mark.parametrize(
    ("scheduler", "said"),
    [
        (
            DDIMScheduler(**SD, prediction_type="sample"),
            "the model predicts 'sample': expected 'eps",
        ),
        (DDIMScheduler(**SD, rescale_betas_zero_snr=True), "ends at a signal level of 0"),
        (DDIMScheduler(**SD, num_train_timesteps=500), "has 500 training timesteps: expected 1000"),
        (
            FlowMatchEulerDiscreteScheduler(),
            "FlowMatchEulerDiscreteScheduler has no betas: expected",
        ),
    ],
)
def test_schedules_that_are_refused(tiny, scheduler, said: str) -> None:
    tiny.pipe.scheduler = scheduler
    with pytest.raises(SpecError, match=said):
        type(tiny)(tiny.pipe, "photo", tiny.sampling)


# ---------------------------------------------------------------------- weights erased elsewhere
@pytest.fixture
def erased(tiny):
    """Return the tiny model with other cross-attention and another text encoder."""
    other = tiny.copy()
    for p in other.parameters("esd-x").values():
        p.data.add_(torch.randn_like(p))
    for p in other.pipe.text_encoder.parameters():
        p.data.add_(torch.randn_like(p))
    return other


def test_denoiser_in_every_published_form(tmp_path, tiny, erased) -> None:
    whole = erased.pipe.unet.state_dict()
    trained = {name: whole[name].clone() for name in erased.parameters("esd-x")}
    modules: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in trained.items():
        module, _, kind = name.rpartition(".")
        modules.setdefault(module, {})[kind] = tensor
    text = erased.pipe.text_encoder.state_dict()
    save_file(whole, tmp_path / "whole.safetensors")
    save_file(trained, tmp_path / "trained.safetensors")
    save_file({f"unet.{n}": t for n, t in trained.items()}, tmp_path / "prefix.safetensors")
    save_file(
        compvis(whole) | {"first_stage_model.x": torch.zeros(1)}, tmp_path / "ldm.safetensors"
    )
    torch.save(whole, tmp_path / "whole.pt")
    torch.save(whole, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    torch.save(modules, tmp_path / "modules.pt")
    torch.save({"unet": whole, "text_encoder": text, "epoch": 3}, tmp_path / "both.pth")
    torch.save({"state_dict": {f"module.{n}": t for n, t in whole.items()}}, tmp_path / "state.pt")
    erased.pipe.save_pretrained(tmp_path / "pipe")
    counts = {"trained.safetensors": len(trained), "prefix.safetensors": len(trained),
              "modules.pt": len(trained)}  # fmt: skip
    for name in ("whole.safetensors", "trained.safetensors", "prefix.safetensors",
                 "ldm.safetensors", "whole.pt", "old.bin", "modules.pt", "both.pth", "state.pt",
                 "pipe", "pipe/unet"):  # fmt: skip
        fresh = tiny.copy()
        assert load_part(fresh.pipe, "unet", tmp_path / name) == counts.get(name, len(whole)), name
        got = fresh.pipe.unet.state_dict()
        assert all(torch.equal(got[n], t) for n, t in whole.items()), name
        untouched = fresh.pipe.text_encoder.state_dict()
        base = tiny.pipe.text_encoder.state_dict()
        assert all(torch.equal(untouched[n], t) for n, t in base.items())


def test_text_encoder_with_and_without_its_old_prefix(tmp_path, tiny, erased) -> None:
    state = {n.removeprefix("text_model."): t
             for n, t in erased.pipe.text_encoder.state_dict().items()}  # fmt: skip
    old = {f"text_model.{n}": t for n, t in state.items()}
    ids = {"text_model.embeddings.position_ids": torch.arange(32)[None]}
    save_file(state, tmp_path / "new.safetensors")
    save_file(old | ids, tmp_path / "old.safetensors")
    torch.save({f"text_encoder.{n}": t for n, t in old.items()}, tmp_path / "wrapped.pt")
    ldm = {f"cond_stage_model.transformer.{n}": t for n, t in old.items()}
    save_file(ldm, tmp_path / "ldm.safetensors")
    expected = erased.encode(["a church on the beach"])
    assert not torch.equal(expected, tiny.encode(["a church on the beach"]))
    for name in ("new.safetensors", "old.safetensors", "wrapped.pt", "ldm.safetensors"):
        fresh = tiny.copy()
        load_part(fresh.pipe, "text_encoder", tmp_path / name)
        assert torch.equal(fresh.encode(["a church on the beach"]), expected), name


def test_weights_that_do_not_fit(tmp_path, tiny) -> None:
    whole = tiny.pipe.unet.state_dict()
    changed = whole | {"conv_in.weight": torch.zeros(1, 2), "new.bias": torch.zeros(3)}
    save_file(changed, tmp_path / "some.safetensors")
    save_file(tiny.pipe.text_encoder.state_dict(), tmp_path / "text.safetensors")
    n = len(whole)
    with pytest.raises(
        SpecError, match=rf"unet: {n - 1} of {n + 1} tensors fit; .* not: conv_in.weight \(1, 2\)"
    ):
        load_part(tiny.pipe, "unet", tmp_path / "some.safetensors")
    with pytest.raises(SpecError, match=r"unet: 0 of 36 tensors fit; the first that do not: emb"):
        load_part(tiny.pipe, "unet", tmp_path / "text.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(
        whole.values(), load_model("tiny-random").pipe.unet.state_dict().values(), strict=True
    ))  # fmt: skip


def test_files_that_are_no_weights(tmp_path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(1)}, "callbacks": Path("x")}, tmp_path / "more.pt")
    with pytest.raises(SpecError, match=r"more.pt holds more than tensors: reading it means"):
        read_tensors(tmp_path / "more.pt")
    torch.save({"epoch": 1}, tmp_path / "none.pt")
    with pytest.raises(SpecError, match="none.pt holds no tensors"):
        read_tensors(tmp_path / "none.pt")
    for name in ("bad.safetensors", "bad.pt"):
        (tmp_path / name).write_bytes(b"no tensors at all")
        with pytest.raises(SpecError, match=rf"{name} (is not a readable|holds more)"):
            read_tensors(tmp_path / name)


RUN = ("run", "--model", "tiny-random", "--attack", "none", "--task", "church", "--limit", "2")


def test_run_with_a_denoiser_from_elsewhere(cli, tmp_path, tiny, erased) -> None:
    trained = {n: p.data.clone() for n, p in erased.parameters("esd-x").items()}
    save_file(trained, tmp_path / "mine.safetensors")
    assert cli(*RUN, "--unet", "mine.safetensors").code == 0
    (record,) = Store(Path("results/local"))
    assert (record.cell.method.name, record.status) == ("external", "ok")
    assert record.erasure["tensors"] == record.erasure["notes"]["unet_tensors"] == len(trained)
    expected = delta.digest(delta.diff(tiny, _with(tiny, trained)))
    assert record.erasure["digest"] == expected

    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "mine.safetensors").rename(tmp_path / "elsewhere" / "x.safetensors")
    moved = ("--unet", "elsewhere/x.safetensors")  # where it lies changes nothing
    assert "1 of 1 cells were there already" in cli(*RUN, *moved).out
    save_file({n: 2 * t for n, t in trained.items()}, tmp_path / "other.safetensors")
    both = cli(*RUN, "--unet", "other.safetensors", "--method", "none")
    assert both.code == 0 and "0 of 2 cells were there already" in both.out


def test_run_refuses_what_is_not_weights(cli, tmp_path) -> None:
    torch.save({"unet": Path("x")}, tmp_path / "bad.pt")
    said = cli(*RUN, "--unet", "bad.pt")
    assert said.code == 2
    assert said.err.strip().startswith("error: bad.pt holds more than tensors: ")
    assert said.err.strip().count("\n") == 0
    said = cli(*RUN, "--text-encoder", "nowhere.pt")
    assert (said.code, said.err) == (
        2, "error: external: text_encoder=nowhere.pt: expected a file or folder, there is none\n"
    )  # fmt: skip
    assert "got neither" in cli(*RUN, "--method", "external").err
    changed = cli(*RUN, "--method", "external:unet=bad.pt,unet_digest=00")
    assert changed.err.startswith("error: bad.pt has changed: expected digest 00, got ")


def test_ids_of_committed_records_are_as_they_were() -> None:
    store = Store(ROOT / "results" / "reference")
    records = list(store)
    assert records
    assert all(store.path(record.cell).is_file() for record in records)  # its name holds the id


def _pairs(a, b):
    return zip(delta.weights(a).values(), delta.weights(b).values(), strict=True)


def _with(tiny, tensors):
    other = tiny.copy()
    for name, parameter in other.pipe.unet.named_parameters():
        if name in tensors:
            parameter.data.copy_(tensors[name])
    return other


BLOCKS = {
    "conv_in": "input_blocks.0.0",
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.attentions.0": "input_blocks.1.1",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0": "input_blocks.3.0",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "up_blocks.0.resnets.0": "output_blocks.0.0",
    "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.1.conv",
    "up_blocks.1.resnets.0": "output_blocks.2.0",
    "up_blocks.1.attentions.0": "output_blocks.2.1",
    "up_blocks.1.resnets.1": "output_blocks.3.0",
    "up_blocks.1.attentions.1": "output_blocks.3.1",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def compvis(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tiny denoiser's tensors under the names of CompVis's code, written out by hand."""
    renamed = {}
    for name, tensor in state.items():
        block = next(b for b in BLOCKS if name.startswith(f"{b}."))
        rest = name.removeprefix(f"{block}.")
        if "resnets" in block:
            layer, _, kind = rest.rpartition(".")
            rest = f"{RESNET[layer]}.{kind}"
        renamed[f"model.diffusion_model.{BLOCKS[block]}.{rest}"] = tensor.clone()
    assert len(renamed) == len(state)
    return renamed
