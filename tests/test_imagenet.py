"""The judge of ImageNet's classes, against the networks themselves."""

import re

import networks
import numpy as np
import pytest
import torch
import torchvision
from fakes import sample
from PIL import Image
from transformers import ResNetForImageClassification

from bench import AssetError, SpecError
from evaluators import imagenet


def test_imagenet_names() -> None:
    published = {
        "tench": 0, "English springer": 217, "cassette player": 482, "chain saw": 491, "church": 497,
        "French horn": 566, "garbage truck": 569, "gas pump": 571, "golf ball": 574, "parachute": 701,
        "n03888257": 701, "garbage_truck": 569, "Chainsaw": 491,
    }  # fmt: skip
    assert {name: imagenet.class_of(name) for name in published} == published
    with pytest.raises(SpecError, match="'crane'; say which by WordNet id: n02012849, n03126707"):
        imagenet.class_of("crane")
    with pytest.raises(SpecError, match="no class is named 'parachutes'; known: parachute"):
        imagenet.class_of("parachutes")


def test_a_class_that_spells_a_name_twice_is_one_class() -> None:
    """Every name of every class is its class's, but for those that two classes have."""
    twice = {
        "bow tie": 457, "tree frog": 31, "ash bin": 412, "horse cart": 603, "shoe shop": 788,
        "hen of the woods": 996, "bow-tie": 457, "hen-of-the-woods": 996,
    }  # fmt: skip
    assert {name: imagenet.class_of(name) for name in twice} == twice
    owners: dict[str, set[int]] = {}
    for i, described in enumerate(imagenet.class_names()):
        for name in described:
            owners.setdefault(re.sub(r"[^a-z0-9]+", " ", name.lower()).strip(), set()).add(i)
    refused = set()
    for i, described in enumerate(imagenet.class_names()):
        for name in described:
            try:
                assert imagenet.class_of(name) == i
            except SpecError:
                refused.add(re.sub(r"[^a-z0-9]+", " ", name.lower()).strip())
    assert refused == {name for name, classes in owners.items() if len(classes) > 1}
    assert refused >= {"crane", "maillot"} and len(refused) < 20


def top_and_rank(chances: torch.Tensor, target: int) -> tuple[int, int]:
    return int(chances.argmax()), 1 + int((chances > chances[target]).sum())


def test_imagenet_unlearndiffatk_is_the_hub_network(judge, tmp_path, portrait, group) -> None:
    folder = networks.resnet(tmp_path / "ms")
    net = ResNetForImageClassification.from_pretrained(folder).eval()
    for picture in (portrait, group):
        scale = 256 / min(picture.size)
        width, height = (int(n * scale) for n in picture.size)
        left, top = (width - 224) // 2, (height - 224) // 2
        small = picture.resize((width, height), Image.Resampling.BICUBIC)
        array = np.asarray(small.crop((left, top, left + 224, top + 224))) / 255
        array = (array - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        with torch.no_grad():
            logits = net(torch.tensor(array).float().permute(2, 0, 1)[None]).logits
        chances = logits[0].softmax(0)
        best, rank = top_and_rank(chances, 701)
        (score,) = judge("imagenet", {}, resnet50_ms=folder)([sample(picture, "parachute")])
        assert score.detail["found"] == imagenet.class_names()[best][0]
        assert score.detail["rank"] == rank
        assert score.value == float(best == 701)
        (score,) = judge("imagenet", {"top_k": rank}, resnet50_ms=folder)(
            [sample(picture, "parachute")]
        )
        assert score.value == 1.0
        own = imagenet.class_names()[best][-1]
        (score,) = judge("imagenet", {}, resnet50_ms=folder)([sample(picture, own)])
        assert score.value == 1.0
        assert score.detail["probability"] == pytest.approx(float(chances.max()), abs=1e-3)


def test_imagenet_tv2_is_torchvisions(judge, tmp_path, group) -> None:
    torch.manual_seed(4)
    net = torchvision.models.resnet50(weights=None).eval()
    net.fc.weight.data /= 8  # logits with a spread of 2
    path = tmp_path / "resnet50.pth"
    torch.save(net.state_dict(), path)
    transform = torchvision.models.ResNet50_Weights.IMAGENET1K_V2.transforms()
    with torch.no_grad():
        chances = net(transform(group)[None])[0].softmax(0)
    best, rank = top_and_rank(chances, 497)
    score = judge("imagenet", {"profile": "timm-tv2"}, resnet50_tv2=path)
    church, own = score([sample(group, "church"), sample(group, imagenet.class_names()[best][-1])])
    assert (church.detail["rank"], church.value) == (rank, float(rank == 1))
    assert own.value == 1.0
    assert own.detail["probability"] == pytest.approx(float(chances.max()), abs=1e-3)


def test_imagenet_refuses_other_weights(judge, tmp_path, vit) -> None:
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"nothing")
    with pytest.raises(AssetError, match=r"resnet50-tv2=.*: expected a ResNet-50 state dict"):
        judge("imagenet", {"profile": "timm-tv2"}, resnet50_tv2=bad)
    with pytest.raises(AssetError, match="resnet50-ms=.*: expected 1000 classes, got 7"):
        judge("imagenet", {}, resnet50_ms=vit)
