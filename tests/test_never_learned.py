"""Models that never learned a concept, and the method that puts them in place."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

from bench import Concept, Context, IncompatibleError
from bench.emoji import NEVER_LEARNED, PATH, WEIGHTS
from bench.emoji.recipe.measure import never_learned
from bench.models import DiffusersModel, load_model
from bench.sources.catalog import check_shipped
from methods.never_learned import NeverLearned

SHIPPED = sorted(path.name.replace("-", " ") for path in NEVER_LEARNED.iterdir())


@pytest.fixture(scope="module")
def base() -> DiffusersModel:
    return load_model("emoji-sd")


@pytest.mark.parametrize("name", SHIPPED)
def test_it_takes_the_denoiser_that_never_saw_the_concept(name, base, ctx: Context) -> None:
    model = base.copy()
    assert NeverLearned().erase(model, Concept(name, "object"), ctx) is model
    path = next((NEVER_LEARNED / name.replace(" ", "-")).iterdir())
    expected = load_file(path)
    for key, weight in model.pipe.unet.state_dict().items():
        assert torch.equal(weight, expected[key].float())
    kept = base.pipe.text_encoder.state_dict(), model.pipe.text_encoder.state_dict()
    assert all(torch.equal(kept[0][key], kept[1][key]) for key in kept[0])
    assert not any(p.requires_grad for p in model.pipe.unet.parameters())


def test_of_other_concepts_and_other_models_there_is_none(base, tiny, ctx: Context) -> None:
    with pytest.raises(IncompatibleError, match="never learned 'fox' is shipped, but: .*van-gogh"):
        NeverLearned().erase(base.copy(), Concept("fox", "object"), ctx)
    with pytest.raises(IncompatibleError, match="for --model emoji-sd"):
        NeverLearned().erase(tiny, Concept(SHIPPED[0], "object"), ctx)
    edited = base.copy()
    with torch.no_grad():
        edited.pipe.unet.conv_in.weight *= 2
    with pytest.raises(IncompatibleError, match="for --model emoji-sd"):
        NeverLearned().erase(edited, Concept(SHIPPED[0], "object"), ctx)


def test_what_is_shipped_is_whole_and_small() -> None:
    check_shipped(WEIGHTS)
    listed = json.loads((WEIGHTS / "digests.json").read_text())
    files = list(WEIGHTS.rglob("*.safetensors"))
    assert {path.relative_to(WEIGHTS).as_posix() for path in files} <= listed.keys()
    nets = [path for path in files if "never-learned" in path.parts]
    assert nets and all(path.stat().st_size < 7e6 for path in nets)
    shapes = {k: v.shape for k, v in UNet2DConditionModel.from_pretrained(
        PATH / "unet").state_dict().items()}  # fmt: skip
    for net in never_learned(WEIGHTS).values():
        assert {k: v.shape for k, v in net.state_dict().items()} == shapes


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_asked_for_the_concept_it_draws_something_else_and_all_else_as_well(name, base) -> None:
    """Few prompts, far apart: what the judge sees in at least 6 of 8 pictures, it sees in at most 3."""
    from bench.engine import api
    from bench.plan.spec import Spec
    from bench.plugins.registry import Ref

    task = name.replace(" ", "-")
    methods = (Ref("none"), Ref("never-learned"))
    spec = Spec("emoji-sd", methods, (Ref("none"),), (task, "retain"), limit=8)
    records = {(r.cell.method.name, r.cell.task): r for r in api.run(spec)}
    asr = {key: r.measurements["asr"].value for key, r in records.items() if key[1] == task}
    assert asr["none", task] >= 6 / 8 and asr["never-learned", task] <= 3 / 8
    kept = [
        next(iter(records[m, "retain"].measurements.values())).value
        for m in ("none", "never-learned")
    ]
    assert min(kept) >= 6 / 8
