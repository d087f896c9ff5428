"""Models of the photo world: where they come from, how they draw, weights erased elsewhere."""

from __future__ import annotations

import json
import math
import pickle
import re
import shutil
import unicodedata
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
import regex
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    UNet2DConditionModel,
)
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from safetensors.torch import load_file, save_file
from tokenizers.models import BPE

from bench import AssetError, Concept, IncompatibleError, Prompt, SpecError
from bench.core.types import SamplerNoise
from bench.models import delta, load_model, loading
from bench.models.checkpoints import compvis_names, load_part, read_tensors
from bench.plan.plan import erasure_cell
from bench.plugins.registry import ROOT, Ref
from bench.sources.catalog import HUB_FILES, model_info, revision, settle
from bench.store.store import Store
from methods.external import External

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
    index.unlink()
    with pytest.raises(
        SpecError, match="mine is no diffusers model: expected a folder with model_i"
    ):
        model_info("mine")


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


ODD = {
    "inpainting": (
        lambda f: change(f / "unet" / "config.json", in_channels=9),
        "the denoiser takes 9 channels, latents have 4: an inpainting model",
    ),
    "editing": (
        lambda f: change(f / "unet" / "config.json", in_channels=8),
        "the denoiser takes 8 channels, latents have 4: an image-editing model",
    ),
    "another text encoder": (
        lambda f: change(f / "model_index.json", text_encoder=["transformers", "T5EncoderModel"]),
        "its text_encoder is T5EncoderModel, expected a CLIPTextModel",
    ),
    "no text encoder": (
        lambda f: change(f / "model_index.json", text_encoder=[None, None]),
        "its text_encoder is missing, expected a CLIPTextModel",
    ),
    "widths": (
        lambda f: change(f / "unet" / "config.json", cross_attention_dim=48),
        "takes text of width 48, the text encoder gives 32",
    ),
    "SDXL's conditions": (
        lambda f: change(f / "unet" / "config.json", addition_embed_type="text_time"),
        r"takes more than text \(text_time\): expected SD 1 or 2",
    ),
    "no size": (
        lambda f: change(f / "unet" / "config.json", sample_size=None),
        "expected 8 or more as sample_size, got None",
    ),
    "no image": (
        lambda f: change(f / "unet" / "config.json", sample_size=0),
        "expected 8 or more as sample_size, got 0",
    ),
    "no class": (
        lambda f: change(f / "model_index.json", unet="UNet2DConditionModel"),
        "its unet is missing, expected a UNet2DConditionModel",
    ),
    "no kind of scheduler": (
        lambda f: change(f / "model_index.json", scheduler=[]),
        "its scheduler is missing, expected the name of one",
    ),
    "no tokenizer": (
        lambda f: shutil.rmtree(f / "tokenizer"),
        "is no whole diffusers model: it has no tokenizer/vocab.json and merges.txt, or tokenizer.json",
    ),
    "no scheduler": (
        lambda f: (f / "scheduler" / "scheduler_config.json").unlink(),
        "it has no scheduler/scheduler_config.json",
    ),
    "no weights": (
        lambda f: (f / "vae" / "diffusion_pytorch_model.safetensors").unlink(),
        "it has no vae/diffusion_pytorch_model.safetensors",
    ),
    "a broken configuration": (
        lambda f: (f / "unet" / "config.json").write_text("{"),
        "expected a folder with unet/config.json",
    ),
    "a link to nothing": (
        lambda f: (f / "text_encoder" / "model.safetensors").replace(f / "gone")
        and (f / "text_encoder" / "model.safetensors").symlink_to(f / "nowhere"),
        "it has no text_encoder/model.safetensors",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ODD)
def test_odd_folders_are_named_before_anything_is_loaded(tmp_path, tiny, cli, kind: str) -> None:
    tiny.pipe.save_pretrained(tmp_path / "mine")
    spoil, said = ODD[kind]
    spoil(tmp_path / "mine")
    with pytest.raises(SpecError, match=said):
        model_info("mine")
    ran = cli("plan", "--model", "mine", "--task", "church", "--method", "none", "--attack", "none")
    assert ran.code == 2 and ran.err.startswith("error: mine") and ran.err.count("\n") == 1


def without(name: str):
    def spoil(folder: Path, file: str) -> None:
        tensors = load_file(folder / file)
        del tensors[next(n for n in tensors if n.endswith(name))]
        save_file(tensors, folder / file)

    return spoil


UNET, VAE = (f"{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "vae"))
TEXT = "text_encoder/model.safetensors"


@pytest.mark.parametrize(
    ("file", "spoil", "said"),
    [
        (UNET, without("conv_in.weight"), r"unet: 1 of \d+ weights are missing or .* shape.*conv_i"),
        (VAE, without("conv_out.bias"), r"vae: 1 of \d+ weights are missing .* be random: .*conv_out"),
        (TEXT, without("token_embedding.weight"), "text_encoder: 1 of 36 weights are missing"),
        (UNET, lambda f, n: save_file(load_file(f / n) | {"lora.up": torch.zeros(1)}, f / n),
         "unet: 1 weights are not in the model that its config.json describes: lora.up"),
        (UNET, lambda f, n: save_file({k: t.to(torch.int8) for k, t in load_file(f / n).items()}, f / n),
         r"unet: conv_in.weight is quantised \(torch.int8\); expected floats"),
        ("unet/config.json", lambda f, n: change(f / n, block_out_channels=[16, 64]),
         r"unet: \d+ of \d+ weights are missing or of another shape"),
        ("unet/config.json", lambda f, n: change(f / n, down_block_types=["NoBlock", "DownBlock2D"]),
         "cannot load mine: "),
        ("scheduler/scheduler_config.json", lambda f, n: (f / n).write_text("["), "cannot load mine: "),
        ("tokenizer/tokenizer.json", lambda f, n: (f / n).write_text("{}"), "cannot load mine: "),
    ],
)  # fmt: skip
def test_weights_are_all_there_or_none(tmp_path, tiny, file, spoil, said) -> None:
    tiny.pipe.save_pretrained(tmp_path / "mine")
    for old in (*(tmp_path / "mine" / "tokenizer").glob("vocab.json"),):
        old.unlink()
    spoil(tmp_path / "mine", file)
    with pytest.raises(AssetError, match=said):
        load_model("mine")


def shard(folder: Path, stem: str, variant: str = "") -> None:
    whole = folder / f"{stem}.safetensors"
    tensors, middle = load_file(whole), f".{variant}" if variant else ""
    names = sorted(tensors)
    files = [f"{stem}{middle}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for i, file in enumerate(files):
        save_file({n: tensors[n] for n in names[i::2]}, folder / file)
    listing = {n: files[i % 2] for i, n in enumerate(names)}
    index = folder / f"{stem}.safetensors.index{middle}.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": listing}))
    whole.unlink()


def test_shards_variants_and_older_names(tmp_path, tiny) -> None:
    """Weights in every form that the libraries write, and by the names that Stable Diffusion's hub has."""
    tiny.pipe.save_pretrained(tmp_path / "plain")
    expected = delta.weights(load_model("plain"))

    def same(name: str) -> bool:
        return all(torch.equal(expected[n], t) for n, t in delta.weights(load_model(name)).items())

    sharded = shutil.copytree(tmp_path / "plain", tmp_path / "sharded")
    shard(sharded / "unet", "diffusion_pytorch_model")
    shard(sharded / "text_encoder", "model", "fp16")
    assert same("sharded")
    variant = shutil.copytree(tmp_path / "plain", tmp_path / "variant")
    for file in (UNET, VAE, TEXT):
        (variant / file).rename((variant / file).with_suffix(".fp16.safetensors"))
    assert same("variant")
    save_file(
        {"a": torch.zeros(1)},
        tmp_path / "plain" / "unet" / "diffusion_pytorch_model.non_ema.safetensors",
    )
    assert same("plain")  # the whole one is there
    old = shutil.copytree(tmp_path / "plain", tmp_path / "old")
    new = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}
    renamed = {
        re.sub("|".join(map(re.escape, new)), lambda m: new[m[0]], name): tensor
        for name, tensor in load_file(old / VAE).items()
    }
    assert renamed.keys() != load_file(old / VAE).keys()
    save_file(renamed, old / VAE)
    bare = {n.removeprefix("text_model."): t for n, t in load_file(old / TEXT).items()}
    ids = {"text_model.embeddings.position_ids": torch.arange(32)[None]}
    save_file({f"text_model.{n}": t for n, t in bare.items()} | ids, old / TEXT)
    torch.save(load_file(old / UNET), old / "unet" / "diffusion_pytorch_model.bin")
    (old / UNET).unlink()
    assert same("old")
    (old / "unet" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps({"a": Path("/")}))
    with pytest.raises(SpecError, match="holds more than tensors: .* refused"):
        load_model("old")
    (sharded / "unet" / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(SpecError, match="it has no unet/diffusion_pytorch_model.safetensors"):
        load_model("sharded")


def test_what_names_a_folder_is_what_is_drawn_with(tmp_path, tiny) -> None:
    tiny.pipe.save_pretrained(tmp_path / "mine")
    revision.cache_clear()
    before = revision("mine")
    (tmp_path / "mine" / "README.md").write_text("about")
    save_file(
        {"a": torch.zeros(1)},
        tmp_path / "mine" / "unet" / "diffusion_pytorch_model.fp16.safetensors",
    )
    (tmp_path / "mine" / "safety_checker").mkdir()
    (tmp_path / "mine" / "safety_checker" / "config.json").write_text("{}")
    revision.cache_clear()
    assert revision("mine") == before
    change(
        tmp_path / "mine" / "scheduler" / "scheduler_config.json", prediction_type="v_prediction"
    )
    revision.cache_clear()
    assert revision("mine") != before


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


def test_a_folder_is_read_in_its_type(tmp_path, tiny) -> None:
    tiny.pipe.save_pretrained(tmp_path / "mine")
    model = load_model("mine", dtype="bf16")
    parts = (model.pipe.unet, model.pipe.text_encoder, model.pipe.vae)
    assert {p.dtype for part in parts for p in part.parameters()} == {torch.bfloat16}
    assert not any(p.is_meta for part in parts for p in (*part.parameters(), *part.buffers()))


def _cached(root: Path, model, name: str) -> Path:
    """Write what is fetched of a repository that is laid out as Stable Diffusion's on the hub."""
    whole, snapshot = root / "whole", root / "hub" / name / "snapshots" / COMMIT
    model.pipe.save_pretrained(whole)
    index = json.loads((whole / "model_index.json").read_text())
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (whole / "model_index.json").write_text(json.dumps(index))
    more = (
        "README.md",
        "sd-v1-4.ckpt",
        "feature_extractor/preprocessor_config.json",
        "safety_checker/config.json",
        "safety_checker/model.safetensors",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors",
    )
    for file in more:
        (whole / file).parent.mkdir(exist_ok=True)
        (whole / file).write_text("{}")
    files = [f for f in whole.rglob("*") if f.is_file()]
    for file in (f.relative_to(whole) for f in files):
        if any(fnmatch(file.as_posix(), pattern) for pattern in HUB_FILES):
            (snapshot / file).parent.mkdir(parents=True, exist_ok=True)
            (snapshot / file).write_bytes((whole / file).read_bytes())
    assert not (snapshot / "feature_extractor").exists()
    (root / "hub" / name / "refs").mkdir()
    (root / "hub" / name / "refs" / "main").write_text(COMMIT)
    return root / "hub" / name


@pytest.fixture
def hub(tmp_path, tiny, monkeypatch):
    """Return the commit's folder of ``a/tiny`` in a hub cache without network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repo = _cached(tmp_path, tiny, "models--a--tiny")
    revision.cache_clear()
    yield repo / "snapshots" / COMMIT
    revision.cache_clear()


def test_a_hub_model_from_the_cache(hub, tiny) -> None:
    """Its folder names a safety checker and a feature extractor, as Stable Diffusion's does."""
    change(
        hub / "model_index.json",
        feature_extractor=["transformers", "CLIPImageProcessor"],
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
    )
    assert revision("a/tiny") == COMMIT
    model = load_model("a/tiny")
    assert all(torch.equal(a, b) for a, b in _pairs(model, tiny))
    settle("a/tiny")  # nothing to do: it is here
    settle("sd14")  # nothing to do: its commit is known
    assert revision("sd14") == "133a221b8aa7292a167afc5127cb63fb5005638b"


@pytest.mark.parametrize(
    "file",
    ["vae/diffusion_pytorch_model.safetensors", "unet/config.json", "tokenizer/tokenizer.json",
     "scheduler/scheduler_config.json"],
)  # fmt: skip
def test_a_hub_model_that_is_half_there(hub, file: str) -> None:
    (hub / file).unlink()
    assert revision("a/tiny") == "a/tiny"
    with pytest.raises(AssetError, match=rf"a/tiny has no {Path(file).parent}/.*--model /path"):
        load_model("a/tiny")
    with pytest.raises(AssetError, match=r"a/none is not here, and cannot fetch a/none.*--model"):
        settle("a/none")


def test_a_hub_model_is_fetched_without_pickles(hub, tiny, monkeypatch) -> None:
    """The client's download is replaced; what it is asked for is what the test looks at."""
    asked = []

    def download(**kwargs):
        asked.append(kwargs)
        repo = _cached(hub.parents[3], tiny, "models--b--other")
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


def compvis_vae(state: dict[str, torch.Tensor], last: int) -> dict[str, torch.Tensor]:
    """Return an autoencoder's tensors under the names of CompVis's code; ``last`` up block is its 0."""
    rules = (
        (r"down_blocks\.(\d)\.resnets", r"down.\1.block"),
        (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
        (r"up_blocks\.(\d)\.resnets", lambda m: f"up.{last - int(m[1])}.block"),
        (r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{last - int(m[1])}.upsample"),
        (r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"),
        (r"mid_block\.attentions\.0", "mid.attn_1"),
        ("group_norm", "norm"), ("to_out.0", "proj_out"), (r"to_([qkv])", r"\1"),
        ("conv_norm_out", "norm_out"), ("conv_shortcut", "nin_shortcut"),
    )  # fmt: skip
    renamed = {}
    for name, tensor in state.items():
        inner, image = name, tensor
        for old, new in rules:
            inner = re.sub(old, new, inner)
        if "attn_1" in inner and inner.endswith("weight") and image.dim() == 2:
            image = image[:, :, None, None]  # linear layers were convolutions
        renamed[f"first_stage_model.{inner}"] = image.clone()
    return renamed


def checkpoint(pipe) -> dict[str, torch.Tensor]:
    """Return a whole model in CompVis's layout, its noise schedule and an averaged weight beside it."""
    text = {n.removeprefix("text_model."): t for n, t in pipe.text_encoder.state_dict().items()}
    prefix = "cond_stage_model.transformer.text_model"
    return {
        **compvis(pipe.unet.state_dict()),
        **compvis_vae(pipe.vae.state_dict(), 2),
        **{f"{prefix}.{name}": tensor.clone() for name, tensor in text.items()},
        f"{prefix}.embeddings.position_ids": torch.arange(32)[None],
        "alphas_cumprod": torch.ones(1000),
        "model_ema.decay": torch.ones(1),
    }


def test_single_file_checkpoints(tmp_path, tiny, cli) -> None:
    tiny.pipe.save_pretrained(tmp_path / "config")
    tensors = checkpoint(tiny.pipe)
    save_file(tensors, tmp_path / "m.safetensors")
    torch.save({"state_dict": tensors, "global_step": 3}, tmp_path / "m.ckpt")
    expected = {
        **delta.weights(tiny),
        **{f"vae.{n}": t for n, t in tiny.pipe.vae.state_dict().items()},
    }
    for file in ("m.safetensors", "m.ckpt"):
        model = load_model(f"{file}:config=config")
        assert (model.world, model.prediction, model.sampling.size) == ("photo", "epsilon", 32)
        got = {
            **delta.weights(model),
            **{f"vae.{n}": t for n, t in model.pipe.vae.state_dict().items()},
        }
        assert got.keys() == expected.keys()
        assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert revision("m.safetensors:config=config") != revision("m.ckpt:config=config")
    (tmp_path / "bad.ckpt").write_bytes(pickle.dumps({"state_dict": Path("/")}))
    with pytest.raises(SpecError, match=r"bad.ckpt holds more than tensors: .* refused. Save its"):
        load_model("bad.ckpt")
    odd = "first_stage_model.encoder.conv_in.weight"
    save_file(tensors | {odd: torch.zeros(1, 2)}, tmp_path / "odd.safetensors")
    with pytest.raises(AssetError, match=r"cannot load odd.safetensors by .* config.*vae: 1 of"):
        load_model("odd.safetensors:config=config")
    save_file({n: t for n, t in tensors.items() if n != odd}, tmp_path / "odd.safetensors")
    with pytest.raises(AssetError, match="odd.safetensors"):
        load_model("odd.safetensors:config=config")
    first = "model.diffusion_model.input_blocks.0.0.weight"
    save_file(tensors | {first: torch.zeros(16, 9, 3, 3)}, tmp_path / "paint.safetensors")
    with pytest.raises(
        SpecError, match="paint.safetensors: the denoiser takes 9 channels: an inpai"
    ):
        load_model("paint.safetensors:config=config")
    save_file({first: tensors[first]}, tmp_path / "unet.safetensors")
    with pytest.raises(
        SpecError, match="is no whole checkpoint of .* A denoiser alone goes with --u"
    ):
        load_model("unet.safetensors")


def test_the_prediction_of_ones_own_model(tmp_path, tiny, cli) -> None:
    """What a checkpoint predicts is the user's word, part of its revision, and in force."""
    tiny.pipe.save_pretrained(tmp_path / "config")
    save_file(checkpoint(tiny.pipe), tmp_path / "m.safetensors")
    names = [f"m.safetensors:{said}config=config" for said in
             ("", "prediction=epsilon,", "prediction=v_prediction,")]  # fmt: skip
    assert len({revision(name) for name in names}) == 3
    plain, noise, velocity = map(load_model, names)
    assert [m.prediction for m in (plain, noise, velocity)] == [
        "epsilon",
        "epsilon",
        "v_prediction",
    ]
    x, cond, t = plain.noise([1]), plain.encode(["a church"]), torch.tensor([500])
    assert torch.equal(plain.predict_noise(x, t, cond), noise.predict_noise(x, t, cond))
    assert not torch.equal(plain.predict_noise(x, t, cond), velocity.predict_noise(x, t, cond))
    assert load_model("config:prediction=v_prediction").prediction == "v_prediction"
    for name, said in {
        "m.safetensors:prediction=sample": "--prediction: expected epsilon or v_prediction, got 'samp",
        "sd14:prediction=epsilon": "are for a model of one's own, sd14 is known",
        "config:config=config": "--config is for a checkpoint file, config has its own",
        "m.safetensors:prediction=epsilon,steps=3": "expected prediction or config, got 'steps'",
    }.items():
        with pytest.raises(SpecError, match=said):
            model_info(name)
    said = cli("plan", "--model", "m.safetensors", "--prediction", "x", "--task", "church",
               "--method", "none", "--attack", "none")  # fmt: skip
    assert (said.code, said.err) == (
        2, "error: --prediction: expected epsilon or v_prediction, got 'x'\n"
    )  # fmt: skip


def test_a_stable_diffusion_2_needs_a_word(tmp_path, tiny, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def write(width: int) -> None:
        tensors = checkpoint(tiny.pipe)
        tensors |= {n: torch.zeros(32, width) for n in tensors if "attn2.to_k" in n}
        save_file(tensors, tmp_path / "m.safetensors")

    write(1024)
    with pytest.raises(SpecError, match="is a Stable Diffusion 2: .* give --prediction epsilon or"):
        load_model("m.safetensors")
    for said, repo in {
        "epsilon": "stable-diffusion-2-1-base",
        "v_prediction": "stable-diffusion-2-1 ",
    }.items():
        with pytest.raises(
            AssetError, match=rf"tokenizer of m.safetensors are not here.*{repo}.*--config"
        ):
            load_model(f"m.safetensors:prediction={said}")
    write(768)
    with pytest.raises(
        AssetError, match=r"not here, and cannot fetch stable-diffusion-v1-5/.*--config"
    ):
        load_model("m.safetensors")
    write(2048)
    with pytest.raises(
        SpecError, match=r"text of width 2048: expected Stable Diffusion 1 \(768\) or 2"
    ):
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


def test_betas_that_are_given_may_end_without_signal(tiny) -> None:
    """They are the same schedule as the rescaled one, for every sampler."""
    model = zero_snr(tiny)
    tiny.pipe.scheduler = DDIMScheduler(
        trained_betas=DDIMScheduler(**SD, **ZERO).betas.tolist(),
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )
    given = type(tiny)(tiny.pipe, "photo", tiny.sampling)
    assert float(given.alphas[-1]) == 0
    x, cond = model.noise([1]), model.encode(["a church"])
    for sampler in ("lms", "ddim", "dpm"):
        (*_, (_, own)), (*_, (_, theirs)) = (
            m.denoise(x, cond, 7.5, steps=5, sampler=sampler) for m in (model, given)
        )
        assert (own - theirs).abs().max() <= 1e-2 * own.abs().max(), sampler
    with pytest.raises(IncompatibleError, match="pndm cannot draw with this model"):
        given._scheduler("pndm")


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
        (DDIMScheduler(trained_betas=[math.nan] * 1000), "betas that are not all from 0 to 1"),
        (DDIMScheduler(trained_betas=[1e-3] * 999 + [1.5]), "betas that are not all from 0 to 1"),
        (DDIMScheduler(trained_betas=[1e-3] * 999 + [1.0]), "ends at a signal level of 0"),
        (DDIMScheduler(**SD, timestep_spacing="even"), "timestep_spacing is 'even': expected lea"),
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


ODD_TEXTS = [  # and what ftfy makes of them
    ("“a church” on the ‘beach’", "\"a church\" on the 'beach'"),
    ("it’s a dog’s house", "it's a dog's house"),
    ("a church &amp; a house", "a church & a house"),
    ("a church &lt;3 &quot;red&quot;", 'a church <3 "red"'),
    ("ａ ｃｈｕｒｃｈ！", "a church!"),
    ("a ﬁne ﬂower", "a fine flower"),
    ("schÃ¶n cafÃ©", "schön café"),
    ("cafe\u0301", "café"),
    ("a\u00a0church\u2003here", "a\u00a0church\u2003here"),
    ("\x1b[31mred\x1b[0m church", "red church"),
    ("tabs\tand\r\nlines", "tabs\tand\nlines"),
    ("A plain Church, 50% off…", "A plain Church, 50% off…"),
]


def test_texts_are_read_as_transformers_4_read_them(tiny) -> None:
    """Its slow tokenizer: ftfy, white space, small letters, words by a pattern, then merges of bytes."""
    folder = ROOT / "bench" / "emoji" / "weights" / "model" / "tokenizer"
    files = (str(folder / name) for name in ("vocab.json", "merges.txt"))
    bpe = BPE.from_file(*files, unk_token="<|endoftext|>", end_of_word_suffix="</w>")
    words = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    shown = {b: chr(b) for b in printed}
    shown |= {b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in shown)}

    def ids(text: str) -> list[int]:
        found = words.findall(re.sub(r"\s+", " ", text).strip().lower())
        pieces = ["".join(shown[b] for b in word.encode()) for word in found]
        return [token.id for piece in pieces for token in bpe.tokenize(piece)]

    photo = type(tiny)(tiny.pipe, "photo", tiny.sampling)
    for odd, plain in ODD_TEXTS:
        assert photo.token_ids([odd]) == [ids(plain)], odd
        assert torch.equal(photo.encode([odd]), photo.encode([plain])), odd
        assert tiny.token_ids([odd]) == [ids(unicodedata.normalize("NFC", odd))], odd
    assert sum(tiny.token_ids([a]) != tiny.token_ids([b]) for a, b in ODD_TEXTS) >= 7


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
    ldm = compvis(whole)
    few = {n: t for n, t in ldm.items() if "attn2" in n}
    schedule = {"betas": torch.zeros(3), "alphas_cumprod_prev": torch.zeros(3)}
    rest = {"first_stage_model.conv_in.weight": torch.zeros(1), "model_ema.decay": torch.zeros(1)}
    index = "diffusion_pytorch_model.safetensors.index.json"
    whole_forms = {
        "whole.safetensors": whole,
        "ldm.safetensors": ldm | rest | schedule,
        "whole.pt": whole,
        "both.pth": {"unet": whole, "text_encoder": text, "epoch": 3},
        "state.pt": {"state_dict": {f"module.{n}": t for n, t in whole.items()}},
        "compiled.safetensors": {f"_orig_mod.{n}": t for n, t in whole.items()},
        "model.pt": {"model": {f"unet.module._orig_mod.{n}": t for n, t in whole.items()}},
        "blocks.pt": {n.replace("blocks.0.", "blocks.0._orig_mod."): t for n, t in whole.items()},
        "bare.safetensors": {n.removeprefix("model."): t for n, t in ldm.items()},
        "barest.ckpt": {n.removeprefix("model.diffusion_model."): t for n, t in ldm.items()},
        "half.safetensors": {n: t.double() for n, t in whole.items()},
    }
    trained_forms = {
        "trained.safetensors": trained,
        "prefix.safetensors": {f"unet.{n}": t for n, t in trained.items()},
        "modules.pt": modules,
        "few.ckpt": {"state_dict": few},
        "few.safetensors": few,
    }
    for name, data in (whole_forms | trained_forms).items():
        save = save_file if name.endswith(".safetensors") else torch.save
        save(data, tmp_path / name)
    torch.save(whole, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    torch.save(whole, tmp_path / "torch.safetensors")  # named for what it is not
    save_file(whole, tmp_path / "safe.pt")
    save_file(whole, tmp_path / "safe.ckpt")
    erased.pipe.save_pretrained(tmp_path / "pipe")
    (tmp_path / "variant" / "unet").mkdir(parents=True)
    save_file(whole, tmp_path / "variant/unet/diffusion_pytorch_model.fp16.safetensors")
    (tmp_path / "binary").mkdir()
    torch.save(whole, tmp_path / "binary" / "diffusion_pytorch_model.bin")
    erased.pipe.unet.save_pretrained(tmp_path / "shards", max_shard_size="200KB")
    assert (tmp_path / "shards" / index).is_file()
    others = ("old.bin", "torch.safetensors", "safe.pt", "safe.ckpt", "pipe", "pipe/unet",
              "variant", "variant/unet", "binary", "shards", f"shards/{index}")  # fmt: skip
    for name in (*whole_forms, *trained_forms, *others):
        fresh = tiny.copy()
        loaded = load_part(fresh.pipe, "unet", tmp_path / name)
        tensors = len(trained if name in trained_forms else whole)
        assert (loaded.tensors, loaded.changed) == (tensors, len(trained)), name
        got = fresh.pipe.unet.state_dict()
        assert all(torch.equal(got[n], t) for n, t in whole.items()), name
        untouched = fresh.pipe.text_encoder.state_dict()
        base = tiny.pipe.text_encoder.state_dict()
        assert all(torch.equal(untouched[n], t) for n, t in base.items())
    assert load_part(tiny.copy().pipe, "unet", tmp_path / "both.pth").elsewhere == len(text)
    again = load_part(erased.pipe, "unet", tmp_path / "pipe")
    assert (again.tensors, again.changed) == (len(whole), 0)


@pytest.mark.parametrize("linear", [False, True])
def test_names_of_compvis_are_the_librarys(linear: bool) -> None:
    """On Stable Diffusion's own shapes (SD 2 with linear projections), the library as reference."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, use_linear_projection=linear)
    names = compvis_names(unet)
    theirs = {f"model.diffusion_model.{n}": n for n in names}
    converted = convert_ldm_unet_checkpoint(theirs, dict(unet.config))
    assert {ours: ldm for ldm, ours in names.items()} == converted
    assert set(converted) == set(unet.state_dict())


LORA = {  # names of down, up and alpha; what alpha / rank is; where the configuration lies
    "kohya": ("lora_unet_{flat}.lora_down.weight", "lora_unet_{flat}.lora_up.weight",
              "lora_unet_{flat}.alpha", 0.5, ""),
    "kohya, CompVis": ("lora_unet_{ldm}.lora_down.weight", "lora_unet_{ldm}.lora_up.weight",
                       "lora_unet_{ldm}.alpha", 0.5, ""),
    "diffusers": ("unet.{name}.lora_A.weight", "unet.{name}.lora_B.weight", "", 1.0, ""),
    "diffusers with alpha": ("unet.{name}.lora.down.weight", "unet.{name}.lora.up.weight",
                             "unet.{name}.alpha", 0.5, ""),
    "diffusers with metadata": ("unet.{name}.lora_A.weight", "unet.{name}.lora_B.weight", "", 0.5,
                                "metadata"),
    "diffusers' DreamBooth": ("unet.{name}.lora_linear_layer.down.weight",
                              "unet.{name}.lora_linear_layer.up.weight", "", 1.0, ""),
    "diffusers before PEFT": ("unet.{old}_lora.down.weight", "unet.{old}_lora.up.weight", "", 1.0, ""),
    "PEFT": ("base_model.model.{name}.lora_A.weight", "base_model.model.{name}.lora_B.weight", "",
             0.5, "beside"),
    "PEFT with rslora": ("base_model.model.{name}.lora_A.default.weight",
                         "base_model.model.{name}.lora_B.default.weight", "", 0.5, "rslora"),
}  # fmt: skip


@pytest.mark.parametrize("layout", LORA)
def test_lora_is_fused(tmp_path, tiny, layout: str) -> None:
    weights = tiny.pipe.unet.state_dict()
    trained = [n for n in tiny.parameters("esd-x") if n.endswith("weight")]
    trained += ["conv_in.weight", "mid_block.attentions.0.proj_in.weight"]
    *names, scale, where = LORA[layout]
    if "old" in names[0]:
        trained = [n for n in trained if ".to_" in n]  # attention is all that it could name
    files, expected, rank = {}, {}, 4
    ldm = {ours: theirs for theirs, ours in compvis_names(tiny.pipe.unet).items()}
    for weight in trained:
        out, width, *kernel = weights[weight].shape
        down = torch.randn(rank, width, *kernel)
        up = torch.randn(out, rank, *(1 for _ in kernel))
        product = np.einsum("or,rn->on", up.double().flatten(1), down.double().flatten(1))
        expected[weight] = weights[weight].double() + scale * product.reshape(weights[weight].shape)
        name, theirs = (n.removesuffix(".weight") for n in (weight, ldm[weight]))
        module, _, last = name.replace(".to_out.0", ".to_out").rpartition(".")
        forms = {"flat": name.replace(".", "_"), "ldm": theirs.replace(".", "_"), "name": name,
                 "old": f"{module}.processor.{last}"}  # fmt: skip
        tensors = (down, up, torch.tensor(scale * rank))
        files |= {n.format(**forms): t for n, t in zip(names, tensors, strict=True) if n}
    config = {"lora_alpha": scale * rank, "use_rslora": False}
    if where == "rslora":
        config = {"lora_alpha": scale * rank**0.5, "use_rslora": True}
    said = {f"unet.{k}": v for k, v in config.items()}
    metadata = {"lora_adapter_metadata": json.dumps(said)} if where == "metadata" else None
    save_file(files, tmp_path / "adapter_model.safetensors", metadata)
    if where in {"beside", "rslora"}:
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    loaded = load_part(tiny.pipe, "unet", tmp_path)
    assert (loaded.layout, loaded.tensors) == ("LoRA", len(trained))
    for name, want in expected.items():
        assert torch.allclose(weights[name].double(), want, atol=1e-4), name


def test_lora_that_cannot_be_fused_says_why(tmp_path, tiny, ctx) -> None:
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    width = tiny.pipe.unet.get_parameter(f"{name}.weight").shape
    a, b = torch.ones(2, width[1]), torch.ones(width[0], 2)
    kohya = f"lora_unet_{name.replace('.', '_')}"
    text = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    te = {
        f"{text}.lora_down.weight": torch.ones(2, 32),
        f"{text}.lora_up.weight": torch.ones(32, 2),
    }
    plain = {f"{kohya}.lora_down.weight": a, f"{kohya}.lora_up.weight": b}
    peft = {
        f"base_model.model.{name}.lora_A.weight": a,
        f"base_model.model.{name}.lora_B.weight": b,
    }
    cases = {
        "is a LoRA, but .*lora_mid.weight .2, 2. is not understood: fuse it into the base .*fuse_lora":
            plain | {f"{kohya}.lora_mid.weight": torch.ones(2, 2)},
        "is a LoRA, but .*dora_scale .* is not understood": plain | {f"{kohya}.dora_scale": a + 1},
        "is a LoRA, but lora_unet_nowhere.lora_down":
            {"lora_unet_nowhere.lora_down.weight": a, "lora_unet_nowhere.lora_up.weight": b},
        "is a LoRA that lacks one half of its layer for mid_block": {f"{kohya}.lora_down.weight": a},
        "is a LoRA that does not fit: its layer for mid_block.* expected the shape":
            {f"{kohya}.lora_down.weight": a[:1].T.contiguous(), f"{kohya}.lora_up.weight": b},
        "is a LoRA without a layer of the model's unet": te,
        "is a PEFT LoRA whose strength is not known: give the folder with its adapter_config": peft,
        "It looks like a LyCORIS or DoRA adapter: merge it": {f"lycoris_{name}.hada_w1_a": a},
    }  # fmt: skip
    for message, files in cases.items():
        save_file(files, tmp_path / "x.safetensors")
        with pytest.raises(SpecError, match=message):
            load_part(tiny.pipe, "unet", tmp_path / "x.safetensors")
    save_file(peft, tmp_path / "adapter_model.safetensors")
    dora = {"lora_alpha": 2, "use_dora": True}
    unread = "configuration cannot be read"
    for config, message in (
        (dora, "use_dora: merge it with PEFT"),
        ({"r": 2}, unread),
        ([], unread),
    ):
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        with pytest.raises(SpecError, match=message):
            load_part(tiny.pipe, "unet", tmp_path / "adapter_model.safetensors")
    assert all(torch.equal(x, y) for x, y in _pairs(tiny, load_model("tiny-random")))
    save_file(plain | te, tmp_path / "both.safetensors")
    both = tmp_path / "both.safetensors"
    assert load_part(tiny.copy().pipe, "unet", both).elsewhere == 2
    assert load_part(tiny.copy().pipe, "text_encoder", both).tensors == 1
    church = Concept("church", "object")
    message = (
        "both.safetensors has 2 tensors for another part as well: give it with --unet and --text"
    )
    for method in (External(unet=both), External(text_encoder=both)):
        with pytest.raises(SpecError, match=message):
            method.erase(tiny.copy(), church, ctx)
    erased = External(both, both).erase(tiny.copy(), church, ctx)
    assert (erased.notes["unet_layout"], erased.notes["text_encoder_tensors"]) == ("LoRA", 1)


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


@pytest.mark.parametrize(("name", "message"), [
    ("some.double_blocks.0.weight", "a transformer's denoiser: only Stable Diffusion 1 and 2"),
    ("add_embedding.linear_1.weight", "Stable Diffusion XL's: only"),
    ("control_model.input_blocks.0.0.weight", "a ControlNet: an added network"),
    ("string_to_param.*", "a textual inversion: it changes no weights"),
    ("model.transformer.resblocks.0.ln_1.weight", "OpenCLIP's text encoder: convert .*from_single_file"),
    ("optimizer.state.0.exp_avg", "the state of an optimiser: save the model's"),
    ("what.is.this", r"what.is.this \(2,\)$"),
])  # fmt: skip
def test_layouts_that_are_not_read_are_named(tmp_path, tiny, name: str, message: str) -> None:
    good = tiny.pipe.unet.state_dict()["conv_out.bias"]
    for known in ({}, {"conv_out.bias": good}):  # alone, or among tensors that fit
        save_file({name: torch.ones(2)} | known, tmp_path / "x.safetensors")
        with pytest.raises(
            SpecError, match=f"x.safetensors does not fit the model's unet: .*{message}"
        ):
            load_part(tiny.pipe, "unet", tmp_path / "x.safetensors")


def test_tensors_that_are_not_read_in_part(tmp_path, tiny) -> None:
    whole = tiny.pipe.unet.state_dict()
    cases = {
        "holds two copies: ema.conv_in.bias and model.conv_in.bias. Save the state dict that": {
            f"{copy}.{n}": t.clone() for copy in ("ema", "model") for n, t in whole.items()},
        "expected .*It looks like an inpainting denoiser: only text-to-image":
            whole | {"conv_in.weight": torch.zeros(len(whole["conv_in.bias"]), 9, 3, 3)},
        "conv_in.weight .* int8.*Give weights that are not quantised":
            whole | {"conv_in.weight": whole["conv_in.weight"].to(torch.int8)},
    }  # fmt: skip
    for message, files in cases.items():
        save_file(files, tmp_path / "x.safetensors")
        with pytest.raises(SpecError, match=message):
            load_part(tiny.pipe, "unet", tmp_path / "x.safetensors")


def damaged(folder: Path, tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    """Write files and folders that cannot be read, and return what is said of each."""
    save_file(tensors, folder / "whole.safetensors")
    torch.save(tensors, folder / "whole.pt")
    torch.save(tensors, folder / "whole.bin", _use_new_zipfile_serialization=False)
    said = {}
    for name in ("whole.safetensors", "whole.pt", "whole.bin"):
        content = (folder / name).read_bytes()
        for at in (9, len(content) // 2, len(content) - 9):
            (folder / f"{at}-{name}").write_bytes(content[:at])
            said[f"{at}-{name}"] = "not a readable|damaged|holds more than tensors"
    torch.save({"state_dict": {"a": torch.zeros(1)}, "callbacks": Path("x")}, folder / "more.pt")
    torch.save({"epoch": 1}, folder / "none.pt")
    torch.save(tensors["conv_in.weight"], folder / "bare.pt")
    texts = {"empty.pt": b"", "text.pt": b"no tensors at all", "page.safetensors": b"<!DOCTYPE html>",
             "lfs.bin": b"version https://git-lfs.github.com/spec/v1", "zip.pt": b"PK\x03\x04 no",
             "0x80.bin": b"\x80\x02", "index.json": b"{", "list.json": b"[]", "o.json": b"{}"}  # fmt: skip
    for name, content in texts.items():
        (folder / name).write_bytes(content)
    (folder / "loop.pt").symlink_to("loop.pt")
    for name in ("nothing", "odd", "two", "shard"):
        (folder / name).mkdir()
    (folder / "odd" / "readme.md").touch()
    for variant in ("fp16", "non_ema"):
        (folder / "two" / f"model.{variant}.safetensors").touch()
    first, second = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    save_file(tensors, folder / "shard" / first)
    index = {"weight_map": {"a": first, "b": f"../../{second}"}}
    (folder / "shard" / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "folder.pt").mkdir()
    return said | {
        "more.pt": "holds more than tensors: reading it means running what is in it",
        "none.pt": "holds no tensors",
        "bare.pt": "holds no tensors",
        "empty.pt": "it is empty",
        "text.pt": "it is neither safetensors nor a torch file",
        "page.safetensors": "it is a web page",
        "lfs.bin": "it is a pointer of git-lfs, .* `git lfs pull`",
        "zip.pt": "is a damaged torch file",
        "0x80.bin": "is a damaged torch file",
        "index.json": "is no index of shards",
        "list.json": "is no index of shards",
        "o.json": "is no index of shards",
        "loop.pt": "is not a readable file",
        "gone.pt": "is not a readable file of tensors: .*No such file",
        "nothing": "has no weights: expected diffusion_pytorch_model.safetensors .* there is nothing",
        "odd": "has no weights: .* there is readme.md",
        "two": "has several: model.fp16.safetensors, model.non_ema.safetensors. Give one file",
        "shard": f"names shards that are not there: {second}",
        f"shard/{first}": "is one shard of several: give the folder with its index.json",
        "folder.pt": "has no weights",
    }


def test_files_that_are_no_weights(tmp_path, tiny) -> None:
    """Each is one line that says what it is: never a traceback, never other weights."""
    for name, message in damaged(tmp_path, tiny.pipe.unet.state_dict()).items():
        with pytest.raises(SpecError, match=rf"{re.escape(name)}.*({message})") as caught:
            read_tensors(tmp_path / name)
        assert "\n" not in str(caught.value), name


def test_a_damaged_file_is_one_line_of_the_command(cli, tmp_path, tiny) -> None:
    names = damaged(tmp_path, tiny.pipe.unet.state_dict())
    for name in ("empty.pt", "more.pt", "loop.pt", "gone.pt", "nothing", "folder.pt", "9-whole.bin",
                 "lfs.bin", "index.json"):  # fmt: skip
        assert name in names
        said = cli("erase", "--model", "tiny-random", "--method", f"external:unet={name}",
                   "--concept", "church", "--out", "out")  # fmt: skip
        assert said.code == 2, said
        assert said.err.strip().startswith("error: ") and said.err.strip().count("\n") == 0
        assert name in said.err and not (tmp_path / "out").exists()


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


def test_a_file_that_changes_nothing_is_said(cli, tmp_path, tiny) -> None:
    torch.save(tiny.pipe.unet.state_dict(), tmp_path / "same.pt")
    said = cli(*RUN, "--unet", "same.pt")
    assert said.code == 0
    assert "external, attack none: the file changes nothing, its weights are the base's" in said.err
    (record,) = Store(Path("results/local"))
    assert record.erasure["notes"]["unchanged"] is True
    assert record.erasure["digest"] == "unchanged"


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
