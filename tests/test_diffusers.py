import json
from copy import deepcopy
from hashlib import sha256

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, LMSDiscreteScheduler, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save
from tokenizers.models import BPE

from bench import AssetError, Prompt, SpecError
from bench.emoji import WEIGHTS
from bench.errors import StoreError, UnknownNameError
from bench.models import delta, load_model, save_folder
from bench.sources.catalog import check_shipped, model_info

PROMPTS = [Prompt(str(i), f"a photo of a church {i}", 10 + i, 2.0 + i) for i in range(5)]


def test_an_image_depends_on_its_own_prompt_only(tiny) -> None:
    tiny.batch_size = 5
    together = tiny.generate(PROMPTS)
    tiny.batch_size = 2
    apart = tiny.generate(PROMPTS[::-1])[::-1]
    for a, b in zip(together, apart, strict=True):
        x, y = (torch.tensor(np.array(i)).float() for i in (a, b))
        assert (x - y).abs().max() <= 1  # one grey level: the last bit of a sum


def test_sampling_equals_the_pipeline(tiny) -> None:
    """Our DDIM loop with guidance against diffusers' own pipeline."""
    prompt = Prompt("p", "a church on the beach", 3, 6.0)
    *_, (_, ours) = tiny.denoise(tiny.initial_noise([3]), tiny.encode([prompt.text]), 6.0, steps=7)
    theirs = tiny.pipe(
        prompt.text, num_inference_steps=7, guidance_scale=6.0, latents=tiny.initial_noise([3]),
        output_type="latent",
    ).images  # fmt: skip
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_lms_loop_equals_diffusers(exact) -> None:
    scheduler = LMSDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000
    )
    scheduler.set_timesteps(6)
    cond, null = exact.encode(["a church"]), exact.encode([""])
    x = exact.initial_noise([5]) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        z = scheduler.scale_model_input(x, t)
        with torch.no_grad():
            u, c = (
                exact.pipe.unet(z.double(), t, encoder_hidden_states=e).sample.float()
                for e in (null, cond)
            )
        x = scheduler.step(u + 7.5 * (c - u), t, x).prev_sample
    *_, (_, ours) = exact.denoise(exact.initial_noise([5]), cond, 7.5, steps=6, sampler="lms")
    assert torch.allclose(ours, x, atol=1e-4)


def test_ddim_settings_are_those_of_sd(tiny) -> None:
    scheduler = tiny.schedule.sampler("ddim")
    assert isinstance(scheduler, DDIMScheduler)
    config = scheduler.config
    assert (config.clip_sample, config.set_alpha_to_one, config.steps_offset) == (False, False, 1)
    with pytest.raises(SpecError, match="unknown sampler 'euler'. Known: ddim, dpm, lms, pndm"):
        tiny.schedule.sampler("euler")


def test_swapped_embeddings_equal_encoding(tiny) -> None:
    text = "a photo of a church"
    ids = tiny.pipe.tokenizer([text], padding="max_length", max_length=32, return_tensors="pt")
    table = tiny.pipe.text_encoder.get_input_embeddings().weight
    assert torch.allclose(
        tiny.encode_embeddings(table[ids.input_ids]), tiny.encode([text]), atol=1e-5
    )
    free = table[ids.input_ids].detach().clone().requires_grad_(True)
    (tiny.encode_embeddings(free)[0, -1] * torch.randn(32)).sum().backward()
    assert free.grad.abs().sum(-1).gt(0).all()  # causal: the last state sees every token
    hooks = tiny.pipe.text_encoder.get_input_embeddings()._forward_hooks
    assert not hooks


def test_parameter_groups_are_those_of_the_published_code(tiny) -> None:
    full, cross, rest = (set(tiny.parameters(g)) for g in ("full", "esd-x", "esd-u"))
    left_out = {
        n for n in full if n.split(".")[0] in {"time_embedding", "conv_norm_out", "conv_out"}
    }
    assert full == {n for n, _ in tiny.pipe.unet.named_parameters()}
    assert len(full) == 208
    assert len(left_out) == 8
    assert rest == full - cross - left_out
    assert not cross & rest
    strict = set(tiny.parameters("esd-x-strict"))
    assert strict < cross
    assert all(n.endswith(("to_k.weight", "to_v.weight")) for n in strict)
    assert all("attn1" in n for n in tiny.parameters("selfattn"))
    assert set(tiny.parameters("attn")) == cross | set(tiny.parameters("selfattn"))
    assert "conv_in.weight" in rest
    assert any("norm" in n for n in rest)


def test_latents_of_images_are_scaled_means(tiny) -> None:
    image = Image.new("RGB", (32, 32), (255, 0, 128))
    x = torch.tensor([1.0, -1.0, 128 / 127.5 - 1]).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    expected = tiny.pipe.vae.encode(x).latent_dist.mean * tiny.pipe.vae.config.scaling_factor
    assert torch.allclose(tiny.encode_images([image]), expected, atol=1e-4)


def test_delta_of_values_restores_bit_for_bit(tiny) -> None:
    erased = tiny.copy()
    for p in erased.parameters("esd-x").values():
        p.data.add_(torch.randn_like(p))
    change = delta.diff(tiny, erased)
    assert len(change) == len(tiny.parameters("esd-x"))
    again = delta.apply(tiny, change)
    assert all(torch.equal(a, b) for a, b in _pairs(again, erased))
    assert delta.diff(tiny, delta.apply(tiny, {})) == {}


@pytest.mark.parametrize(("share", "kind"), [(0.001, "zeros"), (0.5, "bits")])
def test_pruning_is_stored_as_a_mask(tiny, share: float, kind: str, tmp_path) -> None:
    erased = tiny.copy()
    for p in erased.parameters("full").values():
        p.data[torch.rand_like(p) < share] = 0
    change = delta.diff(tiny, erased)
    weight = [k for k in change if k.startswith("unet.down_blocks.0.resnets.0.conv1.weight|")]
    assert weight == [f"unet.down_blocks.0.resnets.0.conv1.weight|{kind}"]
    path = tmp_path / "delta.safetensors"
    path.write_bytes(delta.to_bytes(change))
    again = delta.apply(tiny, delta.from_file(path))
    assert all(torch.equal(a, b) for a, b in _pairs(again, erased))


def test_a_file_is_the_librarys_and_made_tensor_by_tensor() -> None:
    """With masks, odd shapes and every type of weights; no value is one that half precision holds."""
    rng = torch.Generator().manual_seed(0)
    values = torch.randn(5, 7, generator=rng)
    change = {
        "b|value": values,
        "a|value": values.t(),
        "é|zeros": torch.tensor([1, 2], dtype=torch.int32),
        "c|bits": torch.tensor([7], dtype=torch.uint8),
        "d|value": values[0].bfloat16(),
        "e|value": values[0].half(),
        "f|value": values[0].double(),
        "g": torch.tensor(3),
        "h": torch.zeros(0),
        "i": torch.tensor([True]),
    }
    form = delta.stored(change)
    pieces = [bytes(piece) for piece in form.pieces()]
    expected = save({key: t.contiguous() for key, t in sorted(change.items())})
    assert b"".join(pieces) == expected == delta.to_bytes(change)
    assert form.size == len(expected)
    assert len(pieces) == 1 + len(change)
    assert delta.digest(change) == sha256(expected).hexdigest()[:16]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_values_that_half_precision_holds_take_half_the_room(tiny, dtype, tmp_path) -> None:
    erased = tiny.copy()
    first, *others = erased.parameters("esd-x").values()
    first.data.add_(torch.randn_like(first))
    for p in others:
        p.data.copy_(p.to(dtype))
    others[0].data.view(-1)[0] = -0.0
    change = delta.diff(tiny, erased)
    whole, path = save(dict(sorted(change.items()))), tmp_path / "delta.safetensors"
    path.write_bytes(delta.to_bytes(change))
    exact, halved = first.numel(), sum(p.numel() for p in others)
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    assert path.stat().st_size - header == 4 * exact + 2 * halved
    again = delta.from_file(path)
    assert again.keys() == change.keys()
    for key, value in change.items():
        assert torch.equal(again[key].view(torch.int32), value.view(torch.int32))
    assert delta.digest(again) == delta.digest(change) == sha256(whole).hexdigest()[:16]
    assert all(torch.equal(a, b) for a, b in _pairs(delta.apply(tiny, again), erased))


def test_a_tensor_in_two_precisions_is_damaged() -> None:
    two = {"a|value": torch.zeros(2), "a|half": torch.zeros(2, dtype=torch.float16)}
    with pytest.raises(StoreError, match="damaged: it changes a twice"):
        delta.from_bytes(save(two))
    wide = delta.from_bytes(save({"a|half": torch.zeros(2)}))
    assert wide.keys() == {"a|half"}  # which no model takes


def test_damaged_or_foreign_deltas(tiny, tmp_path) -> None:
    path = tmp_path / "delta.safetensors"
    path.write_bytes(b"no tensors")
    with pytest.raises(StoreError, match="is not a readable safetensors file"):
        delta.from_file(path)
    with pytest.raises(StoreError, match="this model, which has no unet.nowhere"):
        delta.apply(tiny, {"unet.nowhere|value": torch.zeros(2)})


def _pairs(a, b):
    return zip(delta.weights(a).values(), delta.weights(b).values(), strict=True)


def test_models_by_name_and_folder(tmp_path, tiny) -> None:
    with pytest.raises(UnknownNameError, match="unknown model 'emoji-ds'. Did you mean 'emoji-sd'"):
        model_info("emoji-ds")
    with pytest.raises(
        SpecError, match="is no diffusers model: expected a folder with model_index"
    ):
        model_info(str(tmp_path))
    folder = tmp_path / "mine"
    save_folder(tiny.pipe, folder)
    mine = load_model(str(folder))
    assert mine.world == "emoji"
    prompt = PROMPTS[:1]
    assert mine.generate(prompt)[0].tobytes() == tiny.generate(prompt)[0].tobytes()


def test_what_is_written_is_read_by_transformers_4_and_5(tmp_path, tiny) -> None:
    """4 takes a text encoder's tensors by their old names only, and a tokenizer from two files."""
    save_folder(tiny.pipe, tmp_path / "mine")
    tokenizer = tiny.pipe.tokenizer
    for folder in (tmp_path / "mine", WEIGHTS / "model"):
        tensors = load_file(folder / "text_encoder" / "model.safetensors")
        assert all(name.startswith("text_model.") for name in tensors)
        files = (str(folder / "tokenizer" / name) for name in ("vocab.json", "merges.txt"))
        bpe = BPE.from_file(*files, unk_token="<|endoftext|>", end_of_word_suffix="</w>")
        words = ["church", "beach", "a", "paradeground"]
        ids = [[token.id for token in bpe.tokenize(word)] for word in words]
        assert ids == [list(i) for i in tokenizer(words, add_special_tokens=False).input_ids]
        index = json.loads((folder / "model_index.json").read_text())
        assert index["tokenizer"] == ["transformers", "CLIPTokenizer"]
    again = load_model(str(tmp_path / "mine"))
    assert all(torch.equal(a, b) for a, b in _pairs(again, tiny))
    theirs = StableDiffusionPipeline.from_pretrained(tmp_path / "mine", safety_checker=None)
    ids = tokenizer(["a church"], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(theirs.text_encoder(ids)[0], tiny.encode(["a church"]))


def test_hub_model_without_network_says_what_to_do(monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(AssetError, match=r"sd14 is not here, .*4266 MB.* --model /path/to"):
        load_model("sd14")


def test_shipped_weights_are_checked(tmp_path) -> None:
    with pytest.raises(AssetError, match="weights are missing: expected .*digests.json"):
        check_shipped(tmp_path)
    (tmp_path / "digests.json").write_text('{"model/a.bin": "00"}')
    with pytest.raises(AssetError, match="weights are missing: expected .*a.bin"):
        check_shipped(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a.bin").write_bytes(b"other")
    with pytest.raises(
        AssetError, match=r"a.bin has changed: expected sha256 00\.\.\., got d9298a"
    ):
        check_shipped(tmp_path)
    check_shipped(WEIGHTS)


def test_out_of_memory_halves_the_batch(tiny, monkeypatch) -> None:
    expected = [image.tobytes() for image in tiny.generate(PROMPTS)]
    real, sizes = tiny._sample, []

    def small_memory(prompts, embeddings, noise):
        sizes.append(len(prompts))
        if len(prompts) > 2:
            raise torch.OutOfMemoryError
        return real(prompts, embeddings, noise)

    monkeypatch.setattr(tiny, "_sample", small_memory)
    images = tiny.generate(PROMPTS)
    assert sizes == [5, 2, 2, 1]
    assert len(images) == len(expected)


def test_the_autoencoder_takes_few_images_at_once(tiny, monkeypatch) -> None:
    """Its chunks depend on the images' size, not on the batch, and lose none."""
    images, latents = tiny.generate(PROMPTS), tiny.initial_noise(range(5))
    together, means = tiny._decode(latents), tiny.encode_images(images)
    tiny._rooms.clear()
    sizes = []
    for name in ("encode", "decode"):
        real = getattr(tiny.pipe.vae, name)
        monkeypatch.setattr(
            tiny.pipe.vae, name,
            lambda x, *a, real=real, **k: sizes.append(len(x)) or real(x, *a, **k),
        )  # fmt: skip
    monkeypatch.setattr("bench.models.diffusers._PIXELS", 2 * 32 * 32 + 1)
    apart = tiny._decode(latents)
    assert torch.allclose(tiny.encode_images(images), means, atol=1e-4)
    assert sizes == [2, 2, 1, 2, 2, 1]
    for a, b in zip(together, apart, strict=True):
        assert np.abs(np.array(a).astype(int) - np.array(b).astype(int)).max() <= 1


def test_what_is_not_finite_is_black_and_must_not_be_judged(tiny) -> None:
    fine = tiny.generate(PROMPTS[:2])
    assert not any("unscored" in image.info for image in fine)
    embeddings = tiny.encode([p.text for p in PROMPTS[:2]])
    embeddings[1] = float("nan")  # one prompt's conditioning; its neighbour must not suffer
    tiny.screen = lambda images: [image.rotate(180) for image in images]
    good, bad = tiny.generate(PROMPTS[:2], embeddings=embeddings)
    assert np.abs(np.array(good.rotate(180)).astype(int) - np.array(fine[0])).max() <= 1
    assert (bad.size, bad.getbbox()) == ((32, 32), None)
    assert bad.info["unscored"] == "latents are not finite"
    tiny.screen = None
    tiny.pipe.vae = deepcopy(tiny.pipe.vae)  # copies share it
    tiny.pipe.vae.decoder.conv_out.bias.data.fill_(float("inf"))
    (image,) = tiny.generate(PROMPTS[:1])
    assert image.info["unscored"] == "pixels are not finite" and image.getbbox() is None


def test_a_copy_in_another_type(tiny) -> None:
    tiny.notes["steps"] = 3
    tiny.refuse = lambda text: "on the beach" in text
    half = tiny.cast("bf16")
    parts = (half.pipe.unet, half.pipe.text_encoder, half.pipe.vae)
    assert {p.dtype for part in parts for p in part.parameters()} == {torch.bfloat16}
    assert (half.notes, half.refuse) == (tiny.notes, tiny.refuse)
    assert {p.dtype for p in tiny.pipe.vae.parameters()} == {
        torch.float32
    }  # it is shared by copies
    same = tiny.cast("fp32")
    assert same.pipe.unet is not tiny.pipe.unet
    assert all(torch.equal(a, b) for a, b in _pairs(same, tiny))


@pytest.mark.parametrize("seed", [-(2**63) - 1, 2**64])
def test_seeds_beyond_the_generators(tiny, seed: int) -> None:
    with pytest.raises(SpecError, match=rf"seed {seed}: expected a whole number from 0 to 2\*\*64"):
        tiny.initial_noise([0, seed])
    assert torch.isfinite(tiny.initial_noise([2**63, 2**64 - 1])).all()
