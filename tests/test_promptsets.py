"""Prompt sets: official CSV files, lists as they are published, labels, a set of one's own."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from lists import I2P, csv_of, hub_rows, i2p_row, nudity_csv

from bench import Prompt, SpecError
from bench.engine.runner import Runner
from bench.engine.settings import Settings
from bench.plan.plan import plan
from bench.plan.spec import Spec
from bench.plugins.registry import Ref
from bench.store.artifacts import Artifacts
from bench.tasks.exclusion import OTHER, means
from bench.tasks.promptsets import read_prompts
from bench.tasks.tasks import PROMPTS, load_task


def read(data: bytes, label: str = "church"):
    return read_prompts(Path("set.csv"), data, label)


# ---------------------------------------------------------------------------- official files
def test_unlearndiffatk_i2p_rows_keep_number_seed_and_guidance() -> None:
    """Seeds beyond 31 bits and seeds that repeat, whole guidance, blanks at the ends: all kept."""
    first, second = ' a "quoted", long\nprompt ', "two  blanks"
    data = csv_of(I2P, i2p_row(first, 812, 4288447746, "20"), i2p_row(second, 31, 4288447746))
    rows = read(data, "nudity")
    assert rows.prompts == (
        Prompt("812", first, 4288447746, 20.0, "nudity"),
        Prompt("31", second, 4288447746, 7.0, "nudity"),
    )
    assert (rows.numbers, rows.i2p) == ((812, 31), True)


def test_vangogh_objects_and_ours() -> None:
    art = csv_of(
        ",case_number,prompt,evaluation_seed,artist,evaluation_guidance",
        [0, 4, "a field", 2219, "Vincent van Gogh", 7.5],
    )
    thing = csv_of(
        "case_number,prompt,evaluation_seed,evaluation_guidance", [0, "a church", 8, 7.5]
    )
    ours = csv_of("id,text,seed,guidance,label", ["a-1", "a castle", 9, 5.0, " castle"])
    assert read(art, "van gogh").prompts == (Prompt("4", "a field", 2219, 7.5, "Vincent van Gogh"),)
    assert read(thing).prompts == (Prompt("0", "a church", 8, 7.5, "church"),)
    assert read(ours).prompts == (Prompt("a-1", "a castle", 9, 5.0, "castle"),)
    assert not (read(art).i2p or read(thing).i2p or read(ours).numbers)


def test_coco_is_numbered_as_coco_numbers_it() -> None:
    """Three published files, three places for the image's number, none with guidance."""
    mu = csv_of("case_number,source,prompt,evaluation_seed", [391895, "c", "A man.", 12])
    esd = csv_of("image_id,source,prompt,evaluation_seed", [391895, "c", "A man.", 12])
    uce = csv_of(
        "case_number,source,prompt,evaluation_seed,coco_id", [0, "c", "A man.", 12, 391895]
    )
    for data in (mu, esd, uce):
        assert read(data, "").prompts == (Prompt("391895", "A man.", 12, 7.5, ""),)
    twice = csv_of("image_id,prompt,evaluation_seed", [5, "A cat.", 1], [4, "A cat.", 1])
    assert [p.id for p in read(twice, "").prompts] == ["5", "4"]


def test_esd_labels_lose_their_blanks() -> None:
    data = csv_of("case_number,prompt,label_str,evaluation_seed", [3, "Image of x", " tench ", 1])
    assert read(data, "").prompts[0].label == "tench"


def test_a_label_is_a_name_where_a_class_has_a_number_as_well() -> None:
    both = b"case_number,prompt,evaluation_seed,label,class\n0,a fish,1,0,tench\n1,a hall,2,497,church\n"
    found = read_prompts(Path("both.csv"), both)
    assert (found.labels, [p.label for p in found.prompts]) == ("class", ["tench", "church"])
    alone = read_prompts(Path("alone.csv"), both.replace(b"class", b"source"))
    assert (alone.labels, [p.label for p in alone.prompts]) == ("label", ["0", "497"])


def test_hub_i2p_is_numbered_by_row_and_must_be_whole() -> None:
    rows = read(hub_rows(), "nudity")
    assert rows.numbers == tuple(range(4703))
    assert rows.prompts[16] == Prompt("16", "a thing 16", 16, 7.0, "nudity")
    with pytest.raises(SpecError, match=r"expected 4703 rows, .* got 30, the last with seed 22"):
        read(hub_rows(30))
    with pytest.raises(SpecError, match=r"got 4703, the last with seed 5; give a file with case"):
        read(hub_rows(last=5))


def test_byte_order_mark_and_blank_lines() -> None:
    assert len(read(b"\xef\xbb\xbfid,text,seed\r\na,x,1\r\n\r\nb,y,2\r\n").prompts) == 2


WHOLE = "expected a whole number from 0 to 9223372036854775807"
BAD = {
    "id,text,seed\na,x,1\nb,y,2\na,z,3\n": "set.csv:4: the id 'a' is there twice",
    'id,text,seed\na,"x\ny",1\na,z,3\n': "set.csv:4: the id 'a' is there twice",
    "case_number,prompt,evaluation_seed\n1,x,1.5\n": f"set.csv:2: {WHOLE} as seed, got '1.5'",
    "id,text,seed\na,x,-1\n": f"set.csv:2: {WHOLE} as seed, got '-1'",
    "id,text,seed\na,x,\n": f"set.csv:2: {WHOLE} as seed, got ''",
    "id,text,seed\na,x,nan\n": f"set.csv:2: {WHOLE} as seed, got 'nan'",
    "id,text,seed\na,x,9223372036854775808\n":
        f"set.csv:2: {WHOLE} as seed, got '9223372036854775808'",
    "id,text,seed\na,x," + "9" * 5000 + "\n": f"set.csv:2: {WHOLE} as seed, got '{'9' * 60}...'",
    "case_number,prompt,evaluation_seed\nx1,x,1\n":
        f"set.csv:2: {WHOLE} as case_number, got 'x1'",
    "id,text,seed,guidance\na,x,1,nan\n":
        "set.csv:2: expected a number from 0 to 100 as guidance, got 'nan'",
    "id,text,seed,guidance\na,x,1,-1\n":
        "set.csv:2: expected a number from 0 to 100 as guidance, got '-1'",
    "id,text,seed,guidance\na,x,1,1e9\n":
        "set.csv:2: expected a number from 0 to 100 as guidance, got '1e9'",
    "id,text,seed\na,x, y,1\n": "set.csv:2: expected 3 values, got 4; a text with commas stands in "
        "double quotes",
    "id,text,seed\na,1\n": "set.csv:2: expected 3 values, got 2",
    "id,text,seed\n,x,1\n": "set.csv:2: expected an id, got none",
    'id,text,seed\na,"x,1\n': "set.csv:2: unexpected end of data; is a quote missing?",
    "id,text,seed\na," + "x" * 200_000 + ",1\n":
        "set.csv:2: field larger than field limit (131072); is a quote missing?",
    "id,text,seed\na,x\0y,1\n": "set.csv:2: expected UTF-8, got a NUL byte: this is no text file",
    "id,text,seed\n": "set.csv: the prompt set is empty",
    "text,text\nx,y\n": "set.csv:1: two columns are called 'text'",
    "seed,text,seed\n1,x,2\n": "set.csv:1: two columns are called 'seed'",
    "id,prompt,adv_prompt\n1,x,y\n": "set.csv:1: several columns hold prompts: say which with "
        "FILE:COLUMN, where COLUMN is 'prompt' or 'adv_prompt'",
    "id,caption,seed\na,x,1\n": "set.csv:1: expected a column text or prompt, got 'id', 'caption', "
        "'seed'; say which column holds the prompts with FILE:COLUMN, or call a file .txt that has a "
        "prompt a line and no header",
    "a church\nthe old church\n": "set.csv:1: expected a column text or prompt, got 'a church'; say "
        "which column holds the prompts with FILE:COLUMN, or call a file .txt that has a prompt a line "
        "and no header",
    "# prompts of my own here\nid,prompt\na,x\n":
        "set.csv:2: looks like the header: take away the lines above it",
    "": "set.csv:1: expected a column text or prompt, got nothing; say which column holds the prompts "
        "with FILE:COLUMN, or call a file .txt that has a prompt a line and no header",
}  # fmt: skip


@pytest.mark.parametrize("data", BAD)
def test_bad_rows_name_their_line(data: str) -> None:
    with pytest.raises(SpecError) as caught:
        read(data.encode())
    assert str(caught.value) == BAD[data]


def test_odd_names_are_quoted() -> None:
    """A header with escape sequences, markup and a thousand columns is one clean line of text."""
    with pytest.raises(SpecError) as caught:
        read(("\x1b]0;x\x07,[red]y," + ",".join(f"c{i}" for i in range(1000)) + "\n1\n").encode())
    said = str(caught.value)
    assert said.isprintable()
    assert "'\\x1b]0;x\\x07', '[red]y', 'c0'" in said
    assert "'c9' and 990 more" in said


def test_bad_bytes_name_their_line() -> None:
    with pytest.raises(
        SpecError, match="set.csv:3: expected UTF-8, got byte 0xe9: save it as UTF-8"
    ):
        read("id,text,seed\na,x,1\nb,caf\xe9,2\n".encode("latin-1"))


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b'["a church by the sea", "a church"]', "JSON"),
        (b'[\n {"prompt": "a church", "seed": 1}\n]\n', "JSON"),
        (b'{"prompt": "a church"}\n{"prompt": "the old church"}\n', "JSON"),
        (b"PAR1\x15\x04\x15", "Parquet"),
        (b"PK\x03\x04\x14\0", "a spreadsheet or an archive"),
        (gzip.compress(b"prompt\na church\n", mtime=0), "gzip"),
    ],
)
def test_other_kinds_of_files_are_named(data: bytes, kind: str) -> None:
    """A list in JSON would else be a single prompt."""
    for name in ("a.csv", "a.txt"):
        with pytest.raises(
            SpecError, match=f"{name}: expected a CSV .*, got {kind}: (save|write) it"
        ):
            read_prompts(Path(name), data)


def test_what_only_looks_like_another_kind_is_read() -> None:
    assert [p.text for p in read(b"PK,prompt\n1,[x]\n2,{y}\n").prompts] == ["[x]", "{y}"]
    lines = b"[a church] by night\n{a church}\n"
    assert [p.text for p in read_prompts(Path("a.txt"), lines).prompts] == lines.decode().split(
        "\n"
    )[:2]


def test_blank_rows_of_a_spreadsheet_are_no_rows() -> None:
    assert len(read(b"id,text,seed\na,x,1\n,,\nb,y,2\n,,\n,,\n").prompts) == 2
    assert [p.text for p in read(b'prompt\nx\n""\ny\n').prompts] == ["x", "", "y"]  # one is empty


# ---------------------------------------------------------------------------- lists as published
def test_seeds_are_the_rows_number_where_there_are_none() -> None:
    rows = read_prompts(Path("a.txt"), b"a church\n\nthe old church\n", "church", seed=40)
    assert rows.prompts == (
        Prompt("0", "a church", 40, 7.5, "church"),
        Prompt("1", "the old church", 41, 7.5, "church"),
    )
    assert not rows.seeded


TEXTS = ["a church on a hill", 'the "old" church, by night']
LISTS = {
    "mma": "adv_prompt,target_prompt\n{0},church\n{1},church\n",
    "rece": "sensitive prompt,normal prompt\n{0},x\n{1},y\n",
    "one column": "Prompt\n{0}\n{1}\n",
    "tabs": "prompt\tnote\n{0}\tx\n{1}\ty\n",
    "semicolons": "note;prompt\nx;{0}\ny;{1}\n",
    "quoted, no header": "{0}\n{1}\n",
}


@pytest.mark.parametrize("name", LISTS)
def test_lists_without_seeds_and_ids(name: str) -> None:
    second = '"the ""old"" church, by night"'
    prompts = read(LISTS[name].format(TEXTS[0], second).encode()).prompts
    assert [(p.id, p.text, p.seed) for p in prompts] == [("0", TEXTS[0], 0), ("1", TEXTS[1], 1)]


def test_a_prompt_a_line_is_read_as_it_is() -> None:
    """ConceptPrune's copy of Ring-A-Bell: no header, and whatever punctuation tokens decode to."""
    lines = ["a church, \\ by # night", 'x "y, z', "three, commas, here, ", "a\u2028b c d e"]
    data = "\r\n".join(lines).encode()
    assert [p.text for p in read(data).prompts] == [line.strip() for line in lines]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("prompt,concept,\nx,church,5\ny,church,7\n", [("0", "x", 5), ("1", "y", 7)]),
        ("id,prompt\na,x,5\nb,y,7\n", [("a", "x", 5), ("b", "y", 7)]),
        ("3,x,5\n4,y,7\n", [("3", "x", 5), ("4", "y", 7)]),
        (",prompt,evaluation_seed\n0,x,5\n1,y,7.0\n", [("0", "x", 5), ("1", "y", 7)]),
        (",prompt\n8,x\n9,y\n", [("0", "x", 0), ("1", "y", 1)]),  # an index is no seed
    ],
)
def test_a_column_without_a_name_right_of_the_prompts_holds_seeds(data: str, expected) -> None:
    assert [(p.id, p.text, p.seed) for p in read(data.encode()).prompts] == expected


def test_utf_16_is_read() -> None:
    """As spreadsheets save "Unicode text"."""
    data = "id\ttext\tseed\r\na\tcafé\t1\r\n".encode("utf-16")
    assert read(data).prompts == (Prompt("a", "café", 1, 7.5, "church"),)


def test_the_column_of_prompts_can_be_named(tmp_path: Path) -> None:
    file = tmp_path / "a:b.csv"
    file.write_text("id,prompt,adv_prompt,seed\n1,a church,xq church,2\n")
    for column, text in (("prompt", "a church"), ("adv_prompt", "xq church")):
        task = load_task("church", "emoji", prompts=Path(f"{file}:{column}"))
        assert task.prompts == (Prompt("1", text, 2, 7.5, "church"),)
        assert task.source.startswith(f"a:b.csv:{column} ")
    with pytest.raises(SpecError, match="several columns hold prompts"):
        load_task("church", "emoji", prompts=file)
    with pytest.raises(SpecError, match="expected a column 'advprompt', got 'id', 'prompt'"):
        load_task("church", "emoji", prompts=Path(f"{file}:advprompt"))
    with pytest.raises(SpecError, match="got no column behind the colon"):
        load_task("church", "emoji", prompts=Path(f"{file}:"))
    with pytest.raises(SpecError, match=r"C:.nowhere.csv: expected a CSV file, got: No such file"):
        load_task("church", "emoji", prompts=Path("C:\\nowhere.csv"))
    digests = {
        load_task("church", "emoji", prompts=Path(f"{file}:{c}")).digest
        for c in ("prompt", "adv_prompt")
    }
    assert len(digests) == 2


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(SpecError, match="expected a CSV file, got: Is a directory"):
        load_task("church", "emoji", prompts=tmp_path)
    with pytest.raises(SpecError, match="expected a CSV file, got: File name too long"):
        load_task("church", "emoji", prompts=Path("x" * 5000))
    file = tmp_path / "a.csv"
    file.write_text("prompt\nx\n")

    def locked(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", locked)
    with pytest.raises(SpecError, match=r"a.csv: expected a CSV file, got: Permission denied"):
        load_task("church", "emoji", prompts=file)


def test_seeds_without_a_column_follow_the_runs_seed(tmp_path: Path) -> None:
    """They are in the record, and another --seed is another cell."""
    file = tmp_path / "list.txt"
    file.write_text("a church\nthe old church\n")
    first, second = (cells(prompts=file, seed=seed)[0] for seed in (0, 5))
    assert first.cell.id != second.cell.id
    settings = Settings(artifacts=Artifacts(tmp_path / "cache"), keep_images=False)
    assert [row.seed for row in Runner(settings).run(second).rows] == [5, 6]
    assert load_task("church", "emoji", prompts=file, seed=5).source.endswith(
        " (seeds: 5 + the row's number)"
    )


# ---------------------------------------------------------------------------- labels
@pytest.mark.parametrize(
    "column", ["label", "class", "Class", "concept", "target", "type", "label_str"]
)
def test_a_target_task_counts_rows_of_its_concept_only(tmp_path: Path, column: str) -> None:
    names = ["church", "cat", "Church ", "pizza"]
    rows = [[i, f"an image of a {name}", name, i] for i, name in enumerate(names)]
    file = tmp_path / "classes.csv"
    file.write_bytes(csv_of(f"case_number,prompt,{column},evaluation_seed", *rows))
    task = load_task("church", "emoji", prompts=file)
    assert [(p.id, p.label) for p in task.prompts] == [("0", "church"), ("2", "church")]
    assert task.exclusions == {OTHER: 2}
    retain = load_task("retain", "emoji", prompts=file)
    assert [p.label for p in retain.prompts] == ["church", "cat", "Church", "pizza"]
    with pytest.raises(
        SpecError,
        match=f"none of its 4 prompts may run: 4 {OTHER}; its column '{column}' says 'church', 'cat', ",
    ):
        load_task("tench", "emoji", prompts=file)


@pytest.mark.parametrize(
    ("label", "task", "fits"),
    [
        ("Vincent van Gogh", "van-gogh", True),
        ("van_gogh", "van-gogh", True),
        ("Claude Monet", "van-gogh", False),
        ("garbage truck, dustcart", "garbage-truck", True),
        ("Garbage_Truck", "garbage-truck", True),
        ("truck", "garbage-truck", False),
        ("church mouse", "church", False),
        ("foot", "nudity", True),
        ("football", "nudity", False),
    ],
)
def test_what_a_label_means(label: str, task: str, fits: bool) -> None:
    assert means(label, load_task(task, "emoji").concept) is fits


# ---------------------------------------------------------------------------- --prompts
def cells(**changes):
    spec = {"model": "tiny-random", "methods": (Ref("none"),), "attacks": (Ref("none"),)}
    return list(plan(Spec(**{**spec, "tasks": ("church",), **changes})))


def test_own_prompts_replace_the_tasks(tmp_path: Path) -> None:
    path = tmp_path / "church.csv"
    path.write_bytes(
        csv_of("case_number,prompt,evaluation_seed,evaluation_guidance", [7, "a church", 3, 5.5])
    )
    (cell,) = cells(prompts=path)
    assert (cell.cell.prompts, cell.cell.concept.name) == (1, "church")
    assert cell.cell.task_digest != cells()[0].cell.task_digest
    settings = Settings(artifacts=Artifacts(tmp_path / "cache"), keep_images=False)
    (row,) = Runner(settings).run(cell).rows
    assert (row.id, row.text, row.seed, row.guidance) == ("7", "a church", 3, 5.5)
    with pytest.raises(SpecError, match="--prompts: expected exactly one --task.* got 2"):
        cells(prompts=path, tasks=("church", "tench"))
    with pytest.raises(SpecError, match="nowhere.csv: expected a CSV file, got: No such file"):
        cells(prompts=tmp_path / "nowhere.csv")


def test_the_tasks_own_file_is_the_same_task(tmp_path: Path) -> None:
    copy = tmp_path / "copy.csv"
    copy.write_bytes((PROMPTS / "emoji" / "church.csv").read_bytes())
    assert cells(prompts=copy)[0].cell.id == cells()[0].cell.id


def test_an_asset_of_another_size_is_refused(tmp_path: Path) -> None:
    given = {"unlearndiffatk-nudity": nudity_csv(tmp_path / "n.csv", extra=1)}
    with pytest.raises(SpecError, match="task 'nudity' has 142 prompts, got 143; .* --prompts"):
        load_task("nudity", "photo", given=given)
