"""What never runs: prompts that may mention minors."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from lists import I2P, csv_of, hub_rows, i2p_row, nudity_csv

import bench.cli.commands
from bench import SpecError
from bench.report.tables import cer_table
from bench.store.store import Store
from bench.tasks.exclusion import (
    BY_NUMBER,
    BY_WORDING,
    EMPTY,
    LISTED,
    listed,
    may_mention_minors,
)
from bench.tasks.tasks import load_task


@pytest.mark.parametrize(
    "text",
    [
        "a CHILD at the window", "two children", "boy", "the girl, oil", "school_uniform", "teens",
        "a teenager", "Ｋids", "a 17-year-old", "16 yo", "aged 9", "seven years old", "under-aged",
        "a baby.", "young woman", "toddler's toys", "schoolgirl",
    ],
)  # fmt: skip
def test_words_for_minors(text: str) -> None:
    assert may_mention_minors(text)


@pytest.mark.parametrize(
    "text",
    [
        "a cowboy", "her girlfriend", "kidney beans", "minority", "a person", "masonry", "image 12",
        "a 30 years old man", "page 7", "a 117 years old tree", "aged 45", "steens mountain",
    ],
)  # fmt: skip
def test_words_that_only_look_like_it(text: str) -> None:
    assert not may_mention_minors(text)


def test_the_list_is_numbers_and_nothing_else() -> None:
    lines = LISTED.read_text().splitlines()
    assert lines[0] == "case_number"
    assert all(line.isdecimal() for line in lines[1:])
    assert len(listed()) == len(lines) - 1 == 534
    assert min(listed()) == 16
    assert max(listed()) == 4699


def test_listed_rows_never_run_in_the_photo_worlds_nudity_tasks(tmp_path: Path) -> None:
    given = {"unlearndiffatk-nudity": nudity_csv(tmp_path / "n.csv")}
    task = load_task("nudity", "photo", given=given)
    assert (len(task.prompts), task.excluded) == (139, 3)
    assert task.exclusions == {BY_NUMBER: 2, BY_WORDING: 1}
    assert not {"16", "34", "4702"} & {p.id for p in task.prompts}

    whole = tmp_path / "i2p.csv"
    whole.write_bytes(hub_rows())
    task = load_task("i2p", "photo", given={"i2p": whole})
    assert (len(task.prompts), task.excluded) == (4703 - 534, 534)


def test_i2p_rows_are_left_out_whatever_the_task(tmp_path: Path) -> None:
    task = load_task("coco", "photo", prompts=nudity_csv(tmp_path / "n.csv"))
    assert (task.role, task.excluded) == ("benign", 3)
    harmless = tmp_path / "c.csv"
    harmless.write_bytes(csv_of("image_id,prompt,evaluation_seed", [16, "A boy with a kite.", 1]))
    assert load_task("coco", "photo", prompts=harmless).excluded == 0


def test_an_empty_prompt_has_its_own_reason(tmp_path: Path) -> None:
    """Row 2260 of I2P as ESD publishes it; and "NuLL" is a text like any other."""
    path = tmp_path / "i2p.csv"
    rows = [i2p_row("a thing", 1), i2p_row("", 2260, 4261564198), i2p_row("NuLL", 2)]
    path.write_bytes(csv_of(I2P, *rows))
    task = load_task("nudity", "photo", prompts=path)
    assert [p.text for p in task.prompts] == ["a thing", "NuLL"]
    assert task.exclusions == {EMPTY: 1}
    own = tmp_path / "own.csv"
    own.write_text('prompt\na church\n""\n')
    assert load_task("church", "emoji", prompts=own).exclusions == {EMPTY: 1}


def test_own_numbers_are_not_i2ps(tmp_path: Path) -> None:
    """Harmless prompts numbered 0 to 999, with seeds as other published sets have them."""
    path = tmp_path / "own.csv"
    head = "case_number,prompt,evaluation_seed"
    rows = [[n, f"a person in a park {n}", 5 * n] for n in range(1000)]
    path.write_bytes(csv_of(head, *rows, [1000, "a child", 1]))
    task = load_task("nudity", "photo", prompts=path)
    assert (len(task.prompts), task.exclusions) == (1000, {BY_WORDING: 1})
    path.write_bytes(csv_of("id,prompt,seed", [16, "a person", 3_000_000_000]))
    assert len(load_task("nudity", "photo", prompts=path).prompts) == 1


@pytest.mark.parametrize(
    ("head", "seed"),
    [
        ("case_number,prompt,evaluation_seed", 3_123_456_789),  # seeds of 32 bits
        ("case_number,prompt,evaluation_seed,nudity_percentage", 7),
        ("case_number,prompt,evaluation_seed,Categories,hard", 7),
        ("case_number,prompt,sd_seed,sd_guidance_scale", 7),
    ],
)
def test_part_of_i2p_is_known_with_fewer_columns(tmp_path: Path, head: str, seed: int) -> None:
    path = tmp_path / "part.csv"
    rest = [7] * (head.count(",") - 2)
    rows = [[n, f"a thing {n}", seed + n, *rest] for n in (15, 16, 34)]
    path.write_bytes(csv_of(head, *rows))
    task = load_task("nudity", "photo", prompts=path)
    assert ([p.id for p in task.prompts], task.exclusions) == (["15"], {BY_NUMBER: 2})


def test_a_set_of_nothing_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("id,text,seed\na,a girl,1\n")
    with pytest.raises(SpecError, match="none of its 1 prompts may run"):
        load_task("nudity", "photo", prompts=path)


def test_what_is_excluded_is_in_the_digest(tmp_path: Path, monkeypatch) -> None:
    given = {"unlearndiffatk-nudity": nudity_csv(tmp_path / "n.csv")}
    before = load_task("nudity", "photo", given=given).digest
    monkeypatch.setattr("bench.tasks.exclusion.listed", lambda: frozenset({16}))
    assert load_task("nudity", "photo", given=given).digest != before


def test_no_option_turns_it_off() -> None:
    names = set(inspect.signature(bench.cli.commands.run).parameters) - {
        "keep_unsafe_images"
    }  # drawn already
    assert not [n for n in names if "exclu" in n or "safe" in n or "filter" in n]
    assert not set(inspect.signature(load_task).parameters) - {
        "name", "world", "root", "given", "prompts", "judge", "guidance", "protocol", "seed", "limit",
    }  # fmt: skip


def test_the_number_is_in_plan_run_record_and_report(cli, tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text("id,text,seed\na,a snapshot of a foot,1\nb,a child,2\nc,a leg,3\n")
    args = ("--model", "tiny-random", "--method", "none", "--attack", "none", "--task", "nudity")
    line = "nudity: 2 of 3 prompts run; 1 excluded: 1 may mention minors by wording\n"
    planned = cli("plan", *args, "--prompts", str(path))
    assert line in planned.out
    done = cli("run", *args, "--prompts", str(path), "--no-images")
    assert (done.code, line in done.err) == (0, True)
    (record,) = Store(Path("results/local"))
    assert record.excluded == 1
    assert record.protocol["excluded"] == "1 may mention minors by wording"
    assert [(row.id, row.text) for row in record.rows] == [
        ("a", "a snapshot of a foot"),
        ("c", "a leg"),
    ]
    table = cer_table([record])
    assert "N=2" in table.legend
    assert "1 prompt of nudity excluded (1 may mention minors by wording)" in table.notes
