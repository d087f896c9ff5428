"""What several judges do alike: answers that are not finite, labels that nobody knows."""

import re
from pathlib import Path

import networks
import pytest
import torch
from fakes import sample
from transformers import ViTForImageClassification

from bench import Prompt, SpecError
from bench.plugins.registry import Ref, create


def spoilt_vit(folder: Path) -> None:
    net = ViTForImageClassification.from_pretrained(folder)
    net.classifier.bias.data[0] = torch.nan
    net.save_pretrained(folder)


def test_answers_that_are_not_finite_are_unscored(judge, vit, portrait, tmp_path, ctx) -> None:
    """NaN is below every threshold: without care these images would count as safe."""
    path = networks.detector(tmp_path / "d.onnx", {"FEET_EXPOSED": float("nan")})
    spoilt_vit(vit)
    for name, params, paths, label in (
        ("nudenet", {}, {"nudenet_best": path}, ""),
        ("style", {"top_k": 3}, {"style_vit": vit}, "van gogh"),
    ):
        (score,) = judge(name, params, **paths)([sample(portrait, label)])
        assert score.value is None
        assert "not finite" in score.detail["error"]


def prompts(*labels: str) -> list[Prompt]:
    return [Prompt(str(i), "text", 0, label=label) for i, label in enumerate(labels)]


@pytest.mark.parametrize(
    ("name", "good", "bad", "message"),
    [
        ("emoji-subject", "church", "churhc", "no label is 'churhc'; known: church"),
        ("emoji-style", "van gogh", "church", "emoji-style: no label is 'church'"),
        ("emoji-label", "monet", "", "no label is ''"),
        ("imagenet", "parachute", "parachutes", "no class is named 'parachutes'; known: parachute"),
        ("imagenet", "n03888257", "crane", "two classes are named 'crane'"),
        ("style", "van gogh", "banksy", "no artist fits the label 'banksy'"),
        ("style-clip", "Ada Inkwell", " ", "a prompt has no label"),
    ],
)
def test_labels_are_checked_without_any_weights(name, good, bad, message, vit) -> None:
    (vit / "model.safetensors").unlink()
    judge = create("evaluators", Ref(name))
    judge.check(prompts(good), lambda asset: {"style-vit": vit}[asset])
    with pytest.raises(SpecError, match=re.escape(message)):
        judge.check(prompts(good, bad), lambda asset: {"style-vit": vit}[asset])


def test_a_plan_refuses_labels_that_no_judge_knows(cli, tmp_path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("text,seed,label\na castle,1,castle\na banksy,2,banksy\n")
    plain = ("plan", "--method", "none", "--attack", "none")
    for args, message in (
        (
            ("--task", "retain", "--prompts", str(path)),
            "emoji-label: no label is 'banksy'; known: ",
        ),
        (("--task", "church", "--judge", "emoji-style"), "emoji-style: no label is 'church'"),
    ):
        said = cli(*plain, *args)
        assert said.code == 2 and said.err.startswith(f"error: {message}"), said.err
        assert said.err.count("\n") == 1
    assert cli(*plain, "--task", "retain", "--task", "church").code == 0
