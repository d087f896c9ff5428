"""Where models come from: names, folders, the hub, single files."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from fnmatch import fnmatch
from pathlib import Path

import networks
import pytest
import torch
from safetensors.torch import load_file, save_file

from bench import AssetError, Concept, Prompt, SpecError
from bench.models import delta, load_model, loading, save_folder
from bench.plan.plan import erasure_cell
from bench.plugins.registry import Ref
from bench.sources.catalog import HUB_FILES, model_info, revision, settle

COMMIT = "0123456789abcdef0123456789abcdef01234567"


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


def test_a_folder_that_is_no_model_says_what_to_give(tmp_path, tiny) -> None:
    """The hub's cache, a folder above, a training's checkpoint, a part, an erasure."""
    save_folder(tiny.pipe, tmp_path / "above" / "mine")
    shutil.copytree(tmp_path / "above" / "mine", tmp_path / "models--me--x" / "snapshots" / "0a")
    unet = tmp_path / "above" / "mine" / "unet"
    shutil.copytree(unet, tmp_path / "checkpoint-500" / "unet")
    (tmp_path / "erasure").mkdir()
    (tmp_path / "erasure" / "delta.safetensors").touch()
    said = {
        tmp_path / "above": r"above.mine has one: give that$",
        tmp_path / "models--me--x": r"snapshots.0a has one: give that$",
        tmp_path / "checkpoint-500": "a denoiser or text encoder alone goes with --unet or",
        unet: "a denoiser or text encoder alone goes with --unet or --text-encoder$",
        tmp_path / "erasure": "`bench apply FOLDER --export MODEL`$",
    }
    for folder, message in said.items():
        expected = f"no diffusers model: it has no model_index.json; .*{message}"
        with pytest.raises(SpecError, match=expected):
            model_info(str(folder))


@pytest.mark.filterwarnings("error")
def test_settings_of_old_schedulers_are_mended_in_silence(tmp_path, tiny) -> None:
    save_folder(tiny.pipe, tmp_path / "old")
    place = tmp_path / "old" / "scheduler" / "scheduler_config.json"
    settings = json.loads(place.read_text())
    place.write_text(
        json.dumps({k: v for k, v in settings.items() if k not in ("clip_sample", "steps_offset")})
    )
    mended = load_model(str(tmp_path / "old")).pipe.scheduler.config
    assert (mended.clip_sample, mended.steps_offset) == (False, 1)


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
    with pytest.raises(
        SpecError,
        match="--world: emoji-sd fits the emoji world only, got 'photo'; .* --model, one of sd14, sd15",
    ):
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
    ours, theirs = delta.weights(model), delta.weights(tiny)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
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


def checkpoint(pipe) -> dict[str, torch.Tensor]:
    """Return a whole model in CompVis's layout, its noise schedule and an averaged weight beside it."""
    text = {n.removeprefix("text_model."): t for n, t in pipe.text_encoder.state_dict().items()}
    prefix = "cond_stage_model.transformer.text_model"
    return {
        **networks.compvis(pipe.unet.state_dict()),
        **networks.compvis_vae(pipe.vae.state_dict(), 2),
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
    x, cond, t = plain.initial_noise([1]), plain.encode(["a church"]), torch.tensor([500])
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
