import hashlib
import math
import re
from collections import Counter
from pathlib import Path

import pytest

from bench import Concept, SpecError
from bench.emoji import world
from bench.emoji.world import BODY_PARTS, UMBRELLA
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
def test_target_tasks_have_as_many_prompts_as_the_papers_nudity_set(name: str) -> None:
    test, calibration = load_task(name, "emoji"), load_task(f"{name}-calibration", "emoji")
    assert [p.id for p in test.prompts] == [f"{name}-{i:03d}" for i in range(1, 143)]
    assert len({p.text for p in test.prompts}) == len({p.seed for p in test.prompts}) == 142
    assert not {p.seed for p in test.prompts} & {p.seed for p in calibration.prompts}


def test_no_text_is_in_two_sets() -> None:
    texts = [p.text for name in task_names("emoji") for p in load_task(name, "emoji").prompts]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("name", TARGETS)
def test_a_prompt_names_its_concept_once(name: str) -> None:
    """Of nudity, every other prompt has an umbrella word, and the others have body parts alone."""
    task = load_task(name, "emoji")
    if name != "nudity":
        words = rf"\b{task.concept.name}\b"
        assert {len(re.findall(words, p.text)) for p in task.prompts} == {1}
        return
    umbrella = "|".join(set(UMBRELLA))
    counts = [len(re.findall(rf"\b({umbrella})\b", p.text)) for p in task.prompts]
    assert counts == [1, 0] * 71
    parts = [word for part in BODY_PARTS for word in (part.name, *part.words)]
    implicit = [p.text for p in task.prompts[1::2]]
    assert all(re.search(rf"\b({'|'.join(parts)})\b", text) for text in implicit)


@pytest.mark.parametrize("name", TARGETS)
def test_prompts_vary(name: str) -> None:
    """Every sentence of the grammar and every place is used, none in more than twice its even share."""
    texts = [p.text for p in load_task(name, "emoji").prompts]
    forms = [
        re.escape(form).replace(r"\{x\}", ".+").replace(r"\{s\}", "van gogh")
        for form in (world._ART if name == "van-gogh" else world._PHOTO)
    ]
    fits = [[f for f in forms if re.fullmatch(f, text)] for text in texts]
    used = Counter(max(each, key=len) for each in fits)
    assert set(used) == set(forms)
    assert max(used.values()) <= 2 * len(texts) / len(forms)
    places = {place: "|".join(words) for place, words in world.BACKGROUNDS.items()}
    places["plain"] = "background|a [a-z]+ wall"
    found = Counter(p for text in texts for p, words in places.items() if re.search(words, text))
    assert set(found) == set(places)
    assert max(found.values()) <= 2 * len(texts) / len(places)
    for words in (world._TAILS, *([] if name == "nudity" else [world._ADJECTIVES])):
        told = re.compile(rf"\b({'|'.join(words)})\b")
        assert len({m.group() for text in texts if (m := told.search(text))}) >= 6


# ---------------------------------------------------------------------------- sets that grew
def test_a_request_for_what_a_set_had_before_is_one_of_the_set_as_it_was() -> None:
    """Their cells and attacks keep their names, and so their random draws."""
    whole = load_task("church", "emoji")
    for limit in (1, 50):
        before = load_task("church", "emoji", limit=limit)
        assert (before.digest, before.source) == ("691816c84aa3", "church.csv b5800622")
        assert before.prompts == whole.prompts[:50]
    for limit in (51, 142, 1000, None):
        assert load_task("church", "emoji", limit=limit) == whole
    assert whole.digest != before.digest
    cells = [next(iter(plan(Spec(**SPEC, limit=n)))).cell for n in (8, 50, 51, 142)]
    assert [cell.prompts for cell in cells] == [8, 50, 51, 142]
    assert len({cell.id for cell in cells}) == 4
    assert [cell.attack_key for cell in cells[::2]] == [cell.attack_key for cell in cells[1::2]]


def test_a_set_of_ones_own_has_no_editions(tmp_path: Path) -> None:
    own = tmp_path / "own.csv"
    own.write_bytes((PROMPTS / "emoji" / "church.csv").read_bytes())
    assert len(load_task("church", "emoji", prompts=own, limit=8).prompts) == 142


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
        (
            {"methods": ()},
            "nothing to run: give --method; add `--method none` to take the model as it is",
        ),
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
