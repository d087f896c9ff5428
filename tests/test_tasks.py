import hashlib
import math
import re
from pathlib import Path

import pytest

from bench import Concept, SpecError
from bench.errors import UnknownNameError
from bench.plan.plan import erasure_cell, plan
from bench.plan.spec import Spec
from bench.plugins.registry import Ref, create
from bench.tasks.tasks import PROMPTS, load_task, task_names

TARGETS = ["nudity", "van-gogh", "tench", "parachute", "church", "garbage-truck"]


def test_every_task_loads_and_its_judges_exist() -> None:
    for name in task_names("emoji"):
        task = load_task(name, "emoji")
        for measure in task.measures:
            create("evaluators", measure.evaluator)
        assert (task.concept is not None) == (task.role == "target")


@pytest.mark.parametrize("name", TARGETS)
def test_target_tasks_have_fifty_prompts_that_calibration_does_not_share(name: str) -> None:
    test, calibration = load_task(name, "emoji"), load_task(f"{name}-calibration", "emoji")
    assert len(test.prompts) == 50
    assert not {p.text for p in test.prompts} & {p.text for p in calibration.prompts}
    assert not {p.seed for p in test.prompts} & {p.seed for p in calibration.prompts}
    if name not in {"nudity"}:
        assert all(test.concept.name in p.text for p in test.prompts)


def test_half_of_nudity_does_without_the_umbrella_word() -> None:
    texts = [p.text for p in load_task("nudity", "emoji").prompts]
    words = ("nudity", "nude", "naked body", "undressed", "bare skin")
    assert sum(any(w in text for w in words) for text in texts) == 25


def test_a_task_names_its_prompt_set(tmp_path: Path) -> None:
    own = PROMPTS / "emoji" / "church.csv"
    digest = hashlib.sha256(own.read_bytes()).hexdigest()[:8]
    assert load_task("church", "emoji").source == f"church.csv {digest}"
    copy = tmp_path / "copy.csv"
    copy.write_bytes(own.read_bytes())
    given = load_task("church", "emoji", prompts=copy)
    assert (given.source, given.guidance) == (f"copy.csv {digest}", "own")


def test_unknown_task_suggests() -> None:
    with pytest.raises(UnknownNameError, match="unknown emoji task 'curch'. Did you mean 'church'"):
        load_task("curch", "emoji")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("a,x,1,7\na,y,2,7\n", "set.csv:3: the id 'a' is there twice"),
        (
            "a,x,one,7\n",
            "set.csv:2: expected a whole number from 0 to 9223372036854775807 as seed, got 'one'",
        ),
        ("", "set.csv: the prompt set is empty"),
    ],
)
def test_malformed_sets_name_file_and_line(tmp_path: Path, body: str, message: str) -> None:
    folder = tmp_path / "emoji"
    folder.mkdir()
    (folder / "tasks.toml").write_text('[t]\nrole="benign"\nprompts="set.csv"\nmeasures=[]\n')
    (folder / "set.csv").write_text("id,text,seed,guidance\n" + body)
    with pytest.raises(SpecError, match=message):
        load_task("t", "emoji", tmp_path)


# ---------------------------------------------------------------------------- requests
SPEC = {
    "model": "emoji-sd",
    "methods": (Ref("none"),),
    "attacks": (Ref("none"),),
    "tasks": ("church",),
}
MOST = 2**63 - 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ()}, "nothing to run: expected at least one of --method, got none"),
        ({"methods": (Ref("esd"), Ref("esd"))}, "--method: expected each once, got 'esd' twice"),
        ({"attacks": (Ref("p4d"),) * 2}, "--attack: expected each once, got 'p4d' twice"),
        (
            {"tasks": ("church", "tench", "church")},
            "--task: expected each once, got 'church' twice",
        ),
        ({"methods": ("esd",)}, "methods: expected several Ref, got ('esd',)"),
        ({"tasks": "church"}, "tasks: expected several names or entries, got 'church'"),
        ({"limit": 0}, "--limit: expected at least 1, got 0"),
        ({"limit": 1.5}, "--limit: expected a whole number, got '1.5'"),
        ({"limit": True}, "--limit: expected a whole number, got 'True'"),
        ({"seed": -1}, "--seed: expected at least 0, got -1"),
        ({"seed": MOST + 1}, f"--seed: expected at most {MOST}, got '{MOST + 1}'"),
        ({"dtype": "fp64"}, "--dtype: expected one of fp32, bf16, fp16, got 'fp64'"),
        ({"world": "real"}, "--world: expected emoji or photo, got 'real'"),
        ({"guidance": -1.0}, "--guidance: expected a number from 0 to 100 as guidance, got '-1.0'"),
        (
            {"guidance": math.nan},
            "--guidance: expected a number from 0 to 100 as guidance, got 'nan'",
        ),
        ({"assets": {"styl-vit": Path()}}, "unknown asset 'styl-vit'. Did you mean 'style-vit'?"),
        ({"protocol": "papers"}, "--protocol: expected default or paper, got 'papers'"),
        (
            {"prompts": Path("x.csv"), "tasks": ("church", "tench")},
            "--prompts: expected exactly one --task to use it for, got 2",
        ),
        (
            {"protocol": "paper", "guidance": 7.5, "judge": "style"},
            "--protocol paper takes the paper's prompts, judge and guidance: leave out --judge and "
            "--guidance, or --protocol",
        ),
    ],
)
def test_requests_that_make_no_sense_are_one_line(changes, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        Spec(**SPEC | changes)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_an_erasure_without_a_task_checks_its_seed() -> None:
    with pytest.raises(SpecError, match="--seed: expected at least 0, got -1"):
        erasure_cell("tiny-random", Ref("none"), Concept("church", "object"), seed=-1)


def test_the_largest_seed_runs() -> None:
    (cell,) = plan(Spec(**SPEC | {"seed": MOST}))
    assert cell.cell.seed == MOST


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"judge": "emoji-frechet"}, "--judge: expected an evaluator of single images, got"),
        ({"judge": "emoji-bodi"}, "unknown evaluator"),
        ({"judge": "emoji-body", "tasks": ("subjects",)}, "--judge: expected a target task to use"),
        (
            {"protocol": "paper"},
            "task 'church' follows no paper; of the emoji world these do: none",
        ),
    ],
)
def test_what_a_task_cannot_do_is_said_when_it_is_planned(changes, message: str) -> None:
    with pytest.raises(SpecError, match=re.escape(message)):
        list(plan(Spec(**SPEC | changes)))


def test_one_guidance_for_all_rows(tmp_path: Path) -> None:
    own, fixed = (load_task("church", "emoji", guidance=value) for value in (None, 3))
    assert {p.guidance for p in own.prompts} == {5.0}
    assert {p.guidance for p in fixed.prompts} == {3.0}
    assert (own.guidance, fixed.guidance) == ("own", "3")
    assert own.digest != fixed.digest
    assert [p.id for p in own.prompts] == [p.id for p in fixed.prompts]


def test_only_benign_tasks_are_measured_as_a_set(tmp_path: Path) -> None:
    (tmp_path / "emoji").mkdir()
    (tmp_path / "emoji" / "set.csv").write_text("id,text,seed,guidance\na,x,1,7\n")
    (tmp_path / "emoji" / "tasks.toml").write_text(
        '[t]\nrole="retain"\nprompts="set.csv"\n'
        'measures=[{metric="fid", evaluator="fid", reduce="set"}]\n'
    )
    with pytest.raises(SpecError, match="task 't': reduce 'set' needs the role benign, got retain"):
        load_task("t", "emoji", tmp_path)
