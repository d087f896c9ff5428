"""Weights that were erased elsewhere, in every published form."""

from __future__ import annotations

import json
import re
from pathlib import Path
from zipfile import ZipFile

import networks
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from safetensors.torch import save_file

from bench import Concept, SpecError
from bench.models import delta, load_model
from bench.models.checkpoints import compvis_names, load_part, read_tensors
from bench.store.store import Store
from methods.external import External


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
    ldm = networks.compvis(whole)
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
    message = "both.safetensors has 2 tensors for another part, too: give the file with both --unet"
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
    save_file(whole, tmp_path / "unet.safetensors")
    n = len(whole)
    with pytest.raises(
        SpecError, match=rf"unet: {n - 1} of {n + 1} tensors fit; .* not: conv_in.weight \(1, 2\)"
    ):
        load_part(tiny.pipe, "unet", tmp_path / "some.safetensors")
    with pytest.raises(SpecError, match=r"unet: 0 of 36 tensors fit; the first that do not: emb.* of "
                       "other parts of a model: a text encoder goes with --text-encoder"):  # fmt: skip
        load_part(tiny.pipe, "unet", tmp_path / "text.safetensors")
    with pytest.raises(SpecError, match="text_encoder: 0 of .*: a denoiser goes with --unet"):
        load_part(tiny.pipe, "text_encoder", tmp_path / "unet.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(
        whole.values(), load_model("tiny-random").pipe.unet.state_dict().values(), strict=True
    ))  # fmt: skip


@pytest.mark.parametrize(("name", "message"), [
    ("some.double_blocks.0.weight", "a transformer's denoiser: only Stable Diffusion 1 and 2"),
    ("add_embedding.linear_1.weight", "Stable Diffusion XL's: only"),
    ("control_model.input_blocks.0.0.weight", "a ControlNet: an added network"),
    ("string_to_param.*", "a textual inversion: it changes no weights"),
    ("unet.conv_in.weight|half", "an erasure that bench saved: `bench apply FOLDER --export"),
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
        r"step \(\) int64$": whole | {"step": torch.tensor(3)},  # a counter is no quantised weight
        "conv_in.weight .* int8.*Give weights that are not quantised":
            whole | {"conv_in.weight": whole["conv_in.weight"].to(torch.int8)},
    }  # fmt: skip
    for message, files in cases.items():
        save_file(files, tmp_path / "x.safetensors")
        with pytest.raises(SpecError, match=message):
            load_part(tiny.pipe, "unet", tmp_path / "x.safetensors")


def test_sparse_weights_are_read(tmp_path, tiny) -> None:
    """As pruning leaves them."""
    name = "conv_in.bias"
    pruned = torch.relu(tiny.pipe.unet.state_dict()[name])
    torch.save({name: pruned.to_sparse()}, tmp_path / "x.pt")
    fresh = tiny.copy()
    assert load_part(fresh.pipe, "unet", tmp_path / "x.pt").changed == 1
    assert torch.equal(fresh.pipe.unet.state_dict()[name], pruned)


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
    np.savez(folder / "arrays.npz", a=np.zeros(2))
    with ZipFile(folder / "packed.pt", "w") as archive:
        archive.writestr("unet/config.json", "{}")
    torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(folder / "program.pt")
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
        "none.pt": "holds no tensors with names: expected a state dict",
        "bare.pt": "holds no tensors with names",
        "arrays.npz": "it is numpy's: save the state dict",
        "packed.pt": "it is an archive: unpack it",
        "program.pt": "it is a TorchScript program: save the state dict",
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
    assert said.code == 3  # the cell failed, a matrix would go on
    device, failed = said.err.strip().splitlines()
    assert device == "device: cpu"
    assert "RefusedError: method external: bad.pt holds more than tensors: " in failed
    said = cli(*RUN, "--text-encoder", "nowhere.pt")
    assert (said.code, said.err) == (
        2, "error: external: text_encoder=nowhere.pt: expected a file or folder, there is none\n"
    )  # fmt: skip
    assert "got neither" in cli(*RUN, "--method", "external").err


def _pairs(a, b):
    return zip(delta.weights(a).values(), delta.weights(b).values(), strict=True)


def _with(tiny, tensors):
    other = tiny.copy()
    for name, parameter in other.pipe.unet.named_parameters():
        if name in tensors:
            parameter.data.copy_(tensors[name])
    return other
