"""``bench erase`` and ``bench apply``: an erasure as a file, on and off a model, bit by bit."""

import json

import pytest
import torch
from diffusers import StableDiffusionPipeline

from bench.errors import StoreError
from bench.models import delta, load_model

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
         "error: safety-checker knows photographs only: use it with --model sd14"),
    ],
)  # fmt: skip
def test_bad_erasures(cli, args, code: int, message: str) -> None:
    said = cli("erase", "--model", "tiny-random", *args)
    assert (said.code, said.err.lstrip().startswith(message)) == (code, True), said.err


def test_bad_deltas(cli, tmp_path) -> None:
    said = cli("apply", "nowhere", "--model", "tiny-random", "--export", "m")
    assert said.err == "error: there is no delta at nowhere: give what `bench erase --out` wrote\n"
    assert said.code == 5
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    said = cli("apply", "bad.safetensors", "--model", "tiny-random", "--export", "m")
    assert (
        said.code,
        said.err.lstrip().startswith("error: bad.safetensors is not a readable"),
    ) == (5, True)


def test_a_concept_of_ones_own(cli, tmp_path) -> None:
    said = cli("erase", "--model", "tiny-random", "--method", "concept-prune:calls=1,steps=2", "--concept",
               "castle", "--kind", "object", "--out", "e")  # fmt: skip
    assert said.code == 0, said.err
    card = json.loads((tmp_path / "e/card.json").read_text())
    assert card["concept"] == {"name": "castle", "kind": "object", "anchor": "", "terms": []}
    assert card["zeroed"] == card["notes"]["pruned"] > 0


def test_a_loss_that_is_not_finite_stops_and_saves_nothing(cli, tmp_path) -> None:
    said = cli(*ERASE, "--method", "esd:lr=1e30,steps=5,batch=2", "--out", "e")
    assert said.code == 3
    assert said.err.lstrip().startswith("error: the loss is nan at step ")
    assert not (tmp_path / "e").exists()
    assert not list((tmp_path / "cache").rglob("delta.safetensors"))
