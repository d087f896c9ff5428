import hashlib
from pathlib import Path

import pytest

from bench import SpecError
from bench.errors import UnknownNameError
from bench.registry import create
from bench.tasks import PROMPTS, load_task, task_names

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
