"""``bench erase`` and ``bench apply``: an erasure as a file, on and off a model, bit by bit."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import save_file
from torch import nn

from bench import Prompt
from bench.errors import ContractError, StoreError
from bench.models import delta, load_model
from bench.sources.catalog import revision
from bench.tasks.concepts import find_concept, find_concepts

pytestmark = pytest.mark.usefixtures("few_steps")

ERASE = ("erase", "--model", "tiny-random", "--concept", "church")


def equal(a, b) -> bool:
    left, right = delta.weights(a), delta.weights(b)
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


def test_erase_apply_and_back(cli, tmp_path) -> None:
    said = cli(*ERASE, "--method", "uce", "--out", "e", "--export", "m")
    assert said.code == 0, said.err
    card = json.loads((tmp_path / "e/card.json").read_text())
    assert (card["method"]["name"], card["base"]["model"]) == ("uce", "tiny-random")
    assert card["concept"]["anchor"] == "house"
    assert said.out.startswith(f"e: {card['tensors']} tensors changed, 0 weights zeroed, ")
    assert StableDiffusionPipeline.from_pretrained("m", safety_checker=None).unet is not None
    base, erased = load_model("tiny-random"), load_model("m")
    assert not equal(base, erased)

    assert cli("apply", "e", "--model", "tiny-random", "--export", "again").code == 0
    assert equal(load_model("again"), erased)
    back = (
        "apply",
        "e/delta.safetensors",
        "--model",
        "m",
        "--undo",
        "--base",
        "tiny-random",
        "--export",
        "b",
    )
    assert cli(*back).code == 0
    assert equal(load_model("b"), base)


def test_masks_come_off_as_well(tiny) -> None:
    erased = tiny.copy()
    for p in erased.parameters("full").values():
        p.view(-1)[::7] = 0
    change = delta.diff(tiny, erased)
    assert equal(delta.revert(delta.apply(tiny, change), change, tiny), tiny)
    with pytest.raises(StoreError, match="the delta cannot be taken back: unet"):
        delta.revert(tiny, change, tiny)


def test_the_autoencoder_is_part_of_a_delta(tiny) -> None:
    prompts = [Prompt("p", "a church", 0)]
    before = tiny.generate(prompts)[0].tobytes()
    erased = delta.private(tiny)
    erased.pipe.vae.decoder.conv_out.weight.data.zero_()
    change = delta.diff(tiny, erased)
    assert [key.partition("|")[0] for key in change] == ["vae.decoder.conv_out.weight"]
    again = delta.apply(tiny, change)
    assert again.generate(prompts)[0].tobytes() == erased.generate(prompts)[0].tobytes() != before
    assert equal(delta.revert(again, change, tiny), tiny)
    assert tiny.generate(prompts)[0].tobytes() == before  # the base is as it was


def _lora(model) -> None:
    attention = model.pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    attention.to_k.lora_A = nn.Linear(attention.to_k.in_features, 2)


class Doubles(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


def _other_class(model) -> None:
    model.pipe.unet.conv_in.__class__ = Doubles


def _other_forward(model) -> None:
    model.pipe.unet.conv_in.forward = lambda x: x


def _scheduler(model) -> None:
    model.pipe.scheduler = DDIMScheduler(beta_start=0.1, beta_end=0.2)


FORBIDDEN = {
    "a hook": (lambda m: m.pipe.unet.mid_block.register_forward_hook(lambda *_: None),
               "a hook of unet.mid_block is not the base's"),
    "a hook before": (lambda m: m.pipe.vae.decoder.register_forward_pre_hook(lambda *_: None),
                      "a hook of vae.decoder is not the base's"),
    "a module": (lambda m: m.pipe.unet.add_module("more", nn.Linear(1, 1)),
                 "unet has 2 tensors that the base lacks, first more.weight"),
    "a module without tensors": (lambda m: m.pipe.unet.mid_block.add_module("d", nn.Dropout()),
                                 "the class of unet.mid_block.d is not the base's"),
    "layers of LoRA": (_lora, "unet has .* first .*lora.* .fuse it first: pipe.fuse_lora"),
    "a resized embedding": (lambda m: m.pipe.text_encoder.resize_token_embeddings(2000),
                            "token_embedding.weight: expected .1243, 32. float32, got .2000, 32. float32"),
    "a buffer": (lambda m: m.pipe.text_encoder.get_buffer(
        next(n for n, _ in m.pipe.text_encoder.named_buffers() if "position_ids" in n)).zero_(),
        "the buffer text_encoder.*position_ids is not the base's"),
    "a type": (lambda m: m.pipe.unet.half(), "unet.*: expected .* float32, got .* float16"),
    "another class": (_other_class, "the class of unet.conv_in is not the base's"),
    "another forward": (_other_forward, "a setting or the code of unet.conv_in is not the base's"),
    "a scale": (lambda m: setattr(m.pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2,
                                  "scale", 0.0), "a setting or the code of unet.*attn2 is not the base's"),
    "a pair of numbers": (lambda m: setattr(m.pipe.unet.conv_in, "dilation", (2, 2)),
                          "a setting or the code of unet.conv_in is not the base's"),
    "a function": (lambda m: setattr(m.pipe.text_encoder, "get_input_embeddings", list),
                   "a setting or the code of text_encoder is not the base's"),
    "a processor": (lambda m: m.pipe.unet.set_attn_processor(AttnProcessor()),
                    "a setting or the code of unet.*attn1 is not the base's"),
    "a processor's number": (lambda m: setattr(
        next(iter(m.pipe.unet.attn_processors.values())), "strength", 0.5),
        "a setting or the code of unet.*attn1 is not the base's"),
    "the noise schedule": (lambda m: m.alphas.mul_(0.5), "the noise schedule is not the base's"),
    "a longest text": (lambda m: setattr(m.pipe.tokenizer, "model_max_length", 3),
                       "the tokenizer is not the base's"),
    "a token": (lambda m: m.pipe.tokenizer.add_tokens(["<new>"]), "the tokenizer is not the base's"),
    "a scheduler": (_scheduler, "the scheduler is not the base's"),
    "a setting": (lambda m: m.pipe.vae.register_to_config(scaling_factor=0.5),
                  "the configuration of vae is not the base's"),
    "the sampler": (lambda m: setattr(m, "sampling", replace(m.sampling, steps=1)),
                    "the way of drawing is not the base's"),
    "a method of the model": (lambda m: setattr(m, "generate", list),
                             "the class or an attribute of the model is not the base's"),
    "weights of nan": (lambda m: m.pipe.unet.conv_in.weight.data.fill_(float("nan")),
                       "the erased weights are not finite .nan or inf.: unet.conv_in.weight"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORBIDDEN)
def test_what_a_delta_cannot_hold_is_refused(tiny, name: str) -> None:
    """Each is lost when the delta is put on the base, which would then be judged as erased."""
    change, message = FORBIDDEN[name]
    before = delta.private(tiny)
    erased = delta.private(tiny)
    change(erased)
    with pytest.raises(ContractError, match=message):
        delta.diff(tiny, erased)
    assert delta.diff(before, tiny) == {}  # a private copy: the base was not touched


def test_what_changes_no_image_is_no_change(tiny) -> None:
    erased = delta.private(tiny)
    erased.pipe.unet.train().requires_grad_(True).enable_gradient_checkpointing()
    erased.notes["steps"] = 3
    assert delta.diff(tiny, erased) == {}


def test_a_delta_is_cast_to_the_models_type(tiny) -> None:
    erased = tiny.copy()
    erased.pipe.unet.conv_in.weight.data.add_(0.1)
    half = delta.private(tiny)
    half.pipe.to(torch.bfloat16)
    got = delta.apply(half, delta.diff(tiny, erased)).pipe.unet.conv_in.weight
    assert torch.equal(got, erased.pipe.unet.conv_in.weight.to(torch.bfloat16))


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("--method", "uce", "--concept", "curch", "--out", "e"), 2,
         "error: unknown concept 'curch'. Did you mean 'church'? Known: "),
        (("--method", "uce", "--concept", "cup", "--kind", "thing", "--out", "e"), 2,
         "error: --kind: expected nsfw, style or object, got 'thing'"),
        (("--method", "sld", "--concept", "church", "--out", "e", "--export", "m"), 2,
         "error: sld changes how images are sampled, no weights: nothing to export"),
        (("--method", "ac", "--concept", "cup", "--kind", "object", "--anchor", "cup", "--out", "e"), 1,
         "error: the anchor of 'cup' is the concept itself: choose another"),
        (("--method", "safety-checker", "--concept", "church", "--out", "e"), 1,
         "error: safety-checker needs a model of the photo world: use it with --model sd14"),
    ],
)  # fmt: skip
def test_bad_erasures(cli, args, code: int, message: str) -> None:
    said = cli("erase", "--model", "tiny-random", *args)
    assert (said.code, said.err.lstrip().startswith(message)) == (code, True), said.err


@pytest.fixture
def erasure(tmp_path, tiny):
    """Write an erasure of ``tiny-random`` as ``bench erase --out`` does; return its folder and delta."""
    erased = tiny.copy()
    erased.pipe.unet.conv_in.bias.data[:] = 0  # more than one of 32: bits
    erased.pipe.unet.conv_in.weight.data.view(-1)[5] = 0  # one: indices
    erased.pipe.unet.conv_out.bias.data.add_(1)
    change = delta.diff(tiny, erased)
    card = {
        "method": {"name": "uce"},
        "base": {"model": "tiny-random", "revision": revision("tiny-random"), "dtype": "fp32"},
        "digest": delta.digest(change),
        "sampler_time": False,
    }
    folder = tmp_path / "e"
    folder.mkdir()
    (folder / "delta.safetensors").write_bytes(delta.to_bytes(change))
    (folder / "card.json").write_text(json.dumps(card))
    return folder, change, card


APPLY = ("apply", "e", "--model", "tiny-random", "--export", "m")


def test_a_delta_is_put_on_its_own_base_only(cli, tmp_path, erasure) -> None:
    folder, _, card = erasure

    def says(*args: str, **fields) -> tuple[int, str]:
        (folder / "card.json").write_text(json.dumps(card | fields))
        said = cli(*APPLY, *args)
        assert (tmp_path / "m").exists() == (said.code == 0)
        shutil.rmtree(tmp_path / "m", ignore_errors=True)
        return said.code, said.err.strip()

    assert says() == (0, "")
    moved = {"model": "tiny-random", "revision": revision("tiny-random") + "@photo"}
    assert says(base=moved) == (0, "")  # another world, the same weights
    other = {"model": "sd14", "revision": "133a"}
    assert says(base=other) == (2, (
        "error: e/delta.safetensors was made for sd14 at 133a, tiny-random is at random-0: "
        "give --model sd14, or --force to use it all the same"
    ))  # fmt: skip
    assert says("--force", base=other) == (0, "")
    undo = ("--undo", "--base", "tiny-random")
    assert "give --base sd14, or --force" in says(*undo, base=other)[1]
    for force in ((), ("--force",)):
        code, text = says(*force, digest="00")
        assert (code, text.startswith("error: e/delta.safetensors is not what its card")) == (
            5,
            True,
        )
        assert says(*force, sampler_time=True, method={"name": "sld"}) == (2, (
            "error: e/delta.safetensors: sld changes how images are sampled, no weights: "
            "nothing to apply"
        ))  # fmt: skip
    (folder / "delta.safetensors").write_bytes(delta.to_bytes({}))
    code, text = says("--force", digest=delta.digest({}))
    assert (code, "is empty: it changes no weight, so there is nothing to apply" in text) == (
        2,
        True,
    )


def test_a_delta_without_a_card_needs_force(cli, tmp_path, tiny, erasure) -> None:
    folder, change, _ = erasure
    (folder / "card.json").unlink()
    said = cli(*APPLY)
    assert (said.code, said.err.strip()) == (2, (
        "error: e/delta.safetensors has no card.json beside it, which says for which model it is: "
        "give --force to use it on tiny-random"
    ))  # fmt: skip
    assert cli(*APPLY, "--force").code == 0
    assert equal(load_model("m"), delta.apply(tiny, change))
    shutil.rmtree(tmp_path / "m")
    for text in ("{", "[]", "{}", '{"base": 1}', '{"base": {"model": 1}}', "[" * 100_000):
        (folder / "card.json").write_text(text)
        said = cli(*APPLY, "--force")
        assert said.err.strip().startswith("error: e/card.json is no card of an erasure: expected")
        assert said.code == 5


def _without_last(t):
    return t[:-1].clone()


MALFORMED = {
    "an unknown kind": lambda d: {"unet.conv_in.bias|halves": torch.ones(8)},
    "no kind": lambda d: {"unet.conv_in.bias": torch.ones(8)},
    "an unknown tensor": lambda d: {**d, "unet.nowhere|value": torch.ones(1)},
    "an unknown part": lambda d: {**d, "safety_checker.w|value": torch.ones(1)},
    "a tensor twice": lambda d: {**d, "unet.conv_in.bias|zeros": torch.zeros(1, dtype=torch.int32)},
    "another shape": lambda d: {**d, "unet.conv_out.bias|value": torch.ones(1)},
    "whole numbers": lambda d: {**d, "unet.conv_out.bias|value": d["unet.conv_out.bias|value"].int()},
    "nan": lambda d: {**d, "unet.conv_out.bias|value": d["unet.conv_out.bias|value"] * float("nan")},
    "an index too high": lambda d: {**d, "unet.conv_in.weight|zeros": torch.tensor([10**6]).int()},
    "an index below 0": lambda d: {**d, "unet.conv_in.weight|zeros": torch.tensor([-1]).int()},
    "an index twice": lambda d: {**d, "unet.conv_in.weight|zeros": torch.tensor([5, 5]).int()},
    "indices of floats": lambda d: {**d, "unet.conv_in.weight|zeros": torch.tensor([5.0])},
    "no index": lambda d: {**d, "unet.conv_in.weight|zeros": torch.zeros(0).int()},
    "too few bits": lambda d: {**d, "unet.conv_in.bias|bits": _without_last(d["unet.conv_in.bias|bits"])},
    "bits of int32": lambda d: {**d, "unet.conv_in.bias|bits": d["unet.conv_in.bias|bits"].int()},
    "bits beyond the end": lambda d: {"unet.conv_out.bias|bits": torch.tensor([255]).byte()},
}  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_deltas_are_refused(cli, tmp_path, erasure, name: str) -> None:
    folder, change, card = erasure
    assert {key.rpartition("|")[2] for key in change} == {"value", "zeros", "bits"}
    wrong = MALFORMED[name](dict(change))
    (folder / "delta.safetensors").write_bytes(delta.to_bytes(wrong))
    (folder / "card.json").write_text(json.dumps(card | {"digest": delta.digest(wrong)}))
    said = cli(*APPLY)
    assert said.code == 5
    assert re.fullmatch(
        r"error: the delta (does not fit this model|is damaged).*\n", said.err.lstrip()
    )
    assert not (tmp_path / "m").exists()


def test_what_is_exported_onto(cli, tmp_path, erasure) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    erase = (*ERASE, "--method", "uce", "--out", "out")
    for command in (erase, APPLY[:-2]):
        for target, what in (("file", "is a file"), ("full", "holds files")):
            said = cli(*command, "--export", target)
            message = f"error: --export {target} {what}: expected a new or an empty folder\n"
            assert (said.code, said.err) == (2, message)
        assert not (tmp_path / "out").exists()  # said before anything was computed
    said = cli(*APPLY[:-2], "--export", "file/m")
    assert (said.code, said.err.strip().count("\n")) == (5, 0)
    assert cli(*APPLY[:-2], "--export", "empty").code == 0
    assert StableDiffusionPipeline.from_pretrained("empty", safety_checker=None).unet is not None
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_bad_deltas(cli, tmp_path) -> None:
    said = cli("apply", "nowhere", "--model", "tiny-random", "--export", "m")
    assert said.err == "error: there is no delta at nowhere: give what `bench erase --out` wrote\n"
    assert said.code == 5
    save_file({"a": torch.zeros(9)}, tmp_path / "whole.safetensors")
    whole = (tmp_path / "whole.safetensors").read_bytes()
    for content in (b"no", b"", whole[:12], whole[:-3], b"\xff" * 99):
        (tmp_path / "bad.safetensors").write_bytes(content)
        said = cli("apply", "bad.safetensors", "--model", "tiny-random", "--export", "m")
        assert said.code == 5
        assert said.err.lstrip().startswith(
            "error: bad.safetensors: it is not a readable safetensors"
        )
        assert said.err.strip().count("\n") == 0
    (tmp_path / "bad.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    said = cli("apply", "bad.safetensors", "--model", "tiny-random", "--export", "m")
    assert (said.code, "it is a pointer of git-lfs, not the" in " ".join(said.err.split())) == (
        5,
        True,
    )
    (tmp_path / "loop").symlink_to("loop")
    said = cli("apply", "loop", "--model", "tiny-random", "--export", "m")
    assert (said.code, said.err.startswith("error: there is no delta at loop")) == (5, True)


def test_a_concept_of_ones_own(cli, tmp_path) -> None:
    said = cli("erase", "--model", "tiny-random", "--method", "concept-prune:calls=1,steps=2", "--concept",
               "castle", "--kind", "object", "--out", "e")  # fmt: skip
    assert said.code == 0, said.err
    card = json.loads((tmp_path / "e/card.json").read_text())
    assert card["concept"] == {"name": "castle", "kind": "object", "anchor": "", "terms": []}
    assert card["zeroed"] == card["notes"]["pruned"] > 0


SEVERAL = ("--concept", "church", "--concept", "pizza", "--concept", "tench", "--kind", "object")


def test_several_concepts_are_the_terms_of_one(cli, tmp_path) -> None:
    said = cli("erase", "--model", "tiny-random", "--method", "uce", *SEVERAL, "--out", "e")
    assert said.code == 0, said.err
    card = json.loads((tmp_path / "e/card.json").read_text())
    assert card["concept"] == {
        "name": "church, pizza, tench", "kind": "object", "anchor": "house; ; penguin",
        "terms": ["church", "pizza", "tench"],
    }  # fmt: skip
    mapped = find_concepts(["castle", "pizza"], "emoji", ["object"], ["house", "apple"])
    assert (mapped.phrases, mapped.anchors) == (("castle", "pizza"), ("house", "apple"))
    same = find_concepts(["castle", "pizza"], "emoji", ["object", "object"], ["house"])
    assert (same.anchor, same.anchors) == ("house", ("house", "house"))
    assert find_concepts(["church", "church"], "emoji") == find_concept("church", "emoji")
    assert find_concept("nudity", "emoji", "nsfw").terms[:2] == ("nudity", "a foot")
    assert find_concept("nudity", "emoji", "object").terms == ()


@pytest.mark.parametrize(
    "method",
    [
        "none", "esd:steps=1,sampling_steps=2", "p-esd:steps=1,sampling_steps=2", "uce", "negative-prompt",
        "ac:steps=1,images=2", "p-ac:steps=1,images=2", "fmn:steps=1", "concept-prune:calls=1,steps=2",
        "np-esd:steps=1,sampling_steps=2,images=2", "pre-prune:steps=1,sampling_steps=2",
        "post-prune:steps=1,sampling_steps=2", "sld",
    ],
)  # fmt: skip
def test_every_method_takes_several_concepts(cli, method: str) -> None:
    concepts = ("--concept", "church", "--concept", "pizza", "--kind", "object", "--anchor", "car")
    said = cli("erase", "--model", "tiny-random", "--method", method, *concepts, "--out", "e")
    assert said.code == 0, said.err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--concept", "castle, pizza", "--kind", "object"),
         "error: --concept: expected one concept, got the list 'castle, pizza': "
         "give --concept castle --concept pizza"),
        (("--concept", "hot dog;pizza", "--kind", "object"),
         "error: --concept: expected one concept, got the list 'hot dog;pizza': "
         "give --concept 'hot dog' --concept pizza"),
        (("--concept", "castle\npizza", "--kind", "object"),
         "error: --concept: expected one concept, got the list 'castle\\npizza': "
         "give --concept castle --concept pizza"),
        (("--concept", "church", "--concept", "van gogh"),
         "error: several concepts: expected one kind, got 'church' (object) and 'van gogh' (style)"),
        (("--concept", "castle", "--concept", "pizza"), "error: unknown concept 'castle'"),
        (("--concept", "a", "--concept", "b", "--concept", "c", "--kind", "object", "--kind", "style"),
         "error: --kind: expected it once for all concepts or once for each of the 3, got it 2 times"),
        (("--concept", "a", "--kind", "object", "--anchor", "x", "--anchor", "y"),
         "error: --anchor: expected it once for all concepts or once for each of the 1, got it 2 times"),
    ],
)  # fmt: skip
def test_lists_of_concepts_that_are_refused(cli, args, message: str) -> None:
    said = cli("erase", "--model", "tiny-random", "--method", "uce", *args, "--out", "e")
    assert (said.code, said.err.startswith(message)) == (2, True), said.err


def test_a_loss_that_is_not_finite_stops_and_saves_nothing(cli, tmp_path) -> None:
    said = cli(*ERASE, "--method", "esd:lr=1e30,steps=5,batch=2", "--out", "e")
    assert said.code == 3
    assert said.err.lstrip().startswith("error: method esd: the loss is nan at step ")
    assert not (tmp_path / "e").exists()
    assert not list((tmp_path / "cache").rglob("delta.safetensors"))


@pytest.mark.parametrize("method", ["esd:steps=1", "uce", "fmn:steps=1", "negative-prompt"])
def test_a_concept_that_the_text_encoder_cannot_read_whole(cli, method: str) -> None:
    name = "castle " * 40
    concept = ("--concept", name, "--kind", "object")
    said = cli("erase", "--model", "tiny-random", "--method", method, *concept, "--out", "e")
    assert said.code == 1
    assert "has 40 tokens: expected at most 30, or the text encoder cuts it" in said.err
    said = cli(
        "erase", "--model", "tiny-random", "--method", method, "--concept", " ", "--out", "e"
    )
    assert said.err == "error: --concept: expected a name, got an empty text\n"
