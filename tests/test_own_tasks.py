"""Tasks that are not shipped: a file, another distribution's, and a few options."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from bench import SpecError
from bench.errors import PluginLoadError, UnknownNameError
from bench.plugins import fingerprint
from bench.sources.assets import asset_names, asset_of
from bench.store.store import Store
from bench.tasks.entries import Entry
from bench.tasks.exclusion import BY_NUMBER, BY_WORDING, listed
from bench.tasks.inventory import inventory
from bench.tasks.own import first_look
from bench.tasks.tasks import about_task, find, homes, load_task, needs, role, task_names

PIZZA = """
world = "emoji"
prompts = "pizza.csv"
judge = "emoji-subject"
concept = { name = "pizza", kind = "object", anchor = "apple" }
"""
PROMPTS = "id,text,seed\na,a photograph of a pizza in the sand,1\nb,a pizza at night,2\n"


def write(folder: Path, text: str = PIZZA, name: str = "pizza.toml") -> str:
    """Write a task and its prompts; return the task's file, as an argument."""
    folder.mkdir(exist_ok=True)
    (folder / "pizza.csv").write_text(PROMPTS)
    (folder / name).write_text(text)
    return str(folder / name)


def test_a_file_says_what_a_row_of_the_table_says(tmp_path: Path) -> None:
    """The shipped task of church, written as a file, draws and judges the same."""
    shipped = load_task("church", "emoji")
    rows = [f'"{p.id}","{p.text}",{p.seed},{p.guidance}\n' for p in shipped.prompts]
    (tmp_path / "rows.csv").write_text("id,text,seed,guidance\n" + "".join(rows))
    (tmp_path / "abbey.toml").write_text(
        'world = "emoji"\nprompts = "rows.csv"\njudge = "emoji-subject"\n'
        'concept = { name = "church", kind = "object", anchor = "house" }\n'
    )
    task = load_task(str(tmp_path / "abbey.toml"), "emoji")
    for part in ("world", "role", "concept", "prompts", "measures", "guidance", "rows"):
        assert getattr(task, part) == getattr(shipped, part)
    assert (task.name, task.source[:8], task.paper) == ("abbey", "rows.csv", "")


def test_identity_is_the_content_not_the_place(tmp_path: Path) -> None:
    here, there = (load_task(write(tmp_path / n), "emoji") for n in ("here", "there"))
    assert here == there
    (tmp_path / "there" / "other.csv").write_text(PROMPTS)
    renamed = PIZZA.replace("pizza.csv", str(tmp_path / "there" / "other.csv"))
    assert load_task(write(tmp_path / "here", renamed), "emoji").digest == here.digest
    (tmp_path / "there" / "other.csv").write_text(PROMPTS.replace("sand", "snow"))
    assert load_task(str(tmp_path / "here" / "pizza.toml"), "emoji").digest != here.digest


def test_the_short_form_of_measures_is_the_long_one(tmp_path: Path) -> None:
    long = PIZZA.replace('judge = "emoji-subject"', "") + (
        '[[measures]]\nmetric = "asr"\nevaluator = "emoji-subject"\nreduce = "rate"\n'
    )
    one, other = (
        load_task(write(tmp_path / n, t), "emoji") for n, t in (("a", PIZZA), ("b", long))
    )
    assert one == other
    stricter = load_task(write(tmp_path / "c", long + "threshold = 0.7\n"), "emoji")
    assert stricter.judge.threshold == 0.7
    assert stricter.digest != one.digest


@pytest.mark.parametrize(
    "changed",
    [
        PIZZA.replace("apple", "house"),
        PIZZA.replace('"object"', '"style"'),
        PIZZA.replace("emoji-subject", "emoji-subject:top_k=2"),
        PIZZA.replace("prompts", "guidance = 3\nprompts"),
        PIZZA.replace("kind", 'terms = ["a pizza", "a slice"], kind'),
    ],
)
def test_whatever_changes_a_value_changes_the_digest(tmp_path: Path, changed: str) -> None:
    before, after = (load_task(write(tmp_path, text), "emoji") for text in (PIZZA, changed))
    assert before.digest != after.digest


def test_options_alone_are_a_file_with_these_keys(tmp_path: Path) -> None:
    file = load_task(write(tmp_path), "emoji")
    look = first_look(
        "pizza", "emoji", tmp_path / "pizza.csv", "emoji-subject", kind="object", anchor="apple"
    )
    assert load_task(look, "emoji") == file
    assert (look.name, str(look)) == ("pizza", "pizza")


def test_places_of_prompts(tmp_path: Path) -> None:
    """Beside the file, above it, or anywhere; the file may begin with a mark, as some editors write it."""
    write(tmp_path)
    for place in ("../pizza.csv", "./../pizza.csv", str(tmp_path / "pizza.csv")):
        path = write(tmp_path / "deeper", "\ufeff" + PIZZA.replace("pizza.csv", place))
        (tmp_path / "deeper" / "pizza.csv").unlink()
        assert load_task(path, "emoji").source.startswith("pizza.csv ")


def test_other_keys(tmp_path: Path) -> None:
    text = PIZZA.replace("prompts", 'name = "my pizza"\ncount = 2\nguidance = 2.5\nprompts')
    task = load_task(write(tmp_path, text), "emoji")
    assert (task.name, task.guidance, {p.guidance for p in task.prompts}) == (
        "my pizza",
        "2.5",
        {2.5},
    )
    with pytest.raises(SpecError, match=r"pizza.csv: task 'my pizza' has 3 prompts, got 2"):
        load_task(write(tmp_path, text.replace("count = 2", "count = 3")), "emoji")
    (tmp_path / "two.csv").write_text("prompt,adv_prompt\na pizza,lo pizza\n")
    column = PIZZA.replace("pizza.csv", "two.csv:adv_prompt")
    assert load_task(write(tmp_path, column), "emoji").prompts[0].text == "lo pizza"


def test_a_retain_task_of_ones_own(tmp_path: Path) -> None:
    text = (
        'world = "emoji"\nrole = "retain"\nprompts = "kept.csv"\n'
        'measures = [{ metric = "accuracy", evaluator = "emoji-label" }]\n'
    )
    (tmp_path / "kept.csv").write_text("id,text,seed,label\na,a photograph of a cat,1,cat\n")
    path = write(tmp_path, text, "kept.toml")
    task = load_task(path, "emoji")
    assert (task.role, task.concept, role(path, "emoji")) == ("retain", None, "retain")
    assert task.prompts[0].label == "cat"


# ---------------------------------------------------------------------------- errors
OTHER = '{ metric = "x", evaluator = "emoji-body" }'
NO_CONCEPT = PIZZA[: PIZZA.index("concept")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("world = ", "expected a task as a TOML file, got: Invalid value (at "),
        ("\x00", "expected a task as a TOML file, got: "),
        ("a = " + "[" * 10_000, "expected a task as a TOML file, got "),
        ("", "expected a key 'prompts', got none"),
        (PIZZA + "rol = 3", "unknown key 'rol'. Did you mean 'role'? Known: concept, count, guidance"),
        (PIZZA.replace("anchor", "ancor"), "unknown key 'concept.ancor'. Did you mean 'anchor'?"),
        (f"[church]\n{PIZZA}", "unknown key 'church'. Known: concept, count, guidance, judge, measures, "
         "name, prompts, role, world; the keys of a task stand at the top, under no [header]"),
        (NO_CONCEPT, 'expected a concept, as in concept = { name = "fox", kind = "object" }, got none'),
        (f'{NO_CONCEPT}concept = "pizza"', "concept: expected a table, got 'pizza'"),
        (PIZZA.replace('"object"', '"objct"'), "concept.kind: expected 'nsfw', 'style' or 'object', got"),
        (PIZZA.replace('"pizza"', '" "'), "concept.name: expected 1 to 100 printable letters"),
        (PIZZA.replace('"pizza"', '"../a"'), "concept.name: expected 1 to 100 printable letters"),
        (PIZZA.replace('"apple"', '"a; b"'), "concept.anchor: expected one, or one for each of 1 terms"),
        (PIZZA.replace('"emoji"', '"emoij"'), "world: expected 'emoji' or 'photo', got 'emoij'"),
        (PIZZA + 'role = "taget"', "role: expected 'target', 'retain' or 'benign', got 'taget'"),
        (PIZZA + 'role = "retain"', "judge is for the role target: with the role retain write"),
        (PIZZA + "guidance = 101", "guidance: expected a number from 0 to 100 as guidance, got '101.0'"),
        (PIZZA + "guidance = nan", "guidance: expected a finite number, got 'nan'"),
        (PIZZA + 'guidance = "7"', "guidance: expected a number, got '7'"),
        (PIZZA + "count = 0", "count: expected at least 1, got '0'"),
        (PIZZA + 'name = "church"', "name: the task 'church' is shipped: give yours another name"),
        (PIZZA + 'name = "coco"', "name: the task 'coco' is shipped"),
        (PIZZA + 'name = "a/b"', "name: expected no slash, no colon and no .toml in it, got 'a/b'"),
        (PIZZA.replace("emoji-subject", "emoji-subjct"), "judge: unknown evaluator 'emoji-subjct'. Did"),
        (PIZZA.replace("emoji-subject", "emoji-subject:k=1"), "judge: emoji-subject has no parameter k"),
        (PIZZA.replace("emoji-subject", "emoji-frechet"), "judge: expected an evaluator of single images"),
        (PIZZA.replace("judge", "# judge"), 'expected judge = "NAME" or [[measures]], got neither'),
        (PIZZA + f"measures = [{OTHER}]", "[[measures]], got both"),
        (PIZZA.replace('judge = "emoji-subject"', f"measures = [{OTHER}]"),
         "measures: the first is a target task's judge: expected the metric asr (or asr-...) and the"),
        (NO_CONCEPT.replace('judge = "emoji-subject"', 'role = "retain"\nmeasures = [{ metric = "asr", '
                            'evaluator = "emoji-label" }]'),
         "measures: 'asr' is the metric of target tasks: give a retain task's another name, such as"),
        (PIZZA.replace("pizza.csv", ""), "prompts: expected a file or asset:NAME, got an empty text"),
        (PIZZA.replace('"apple"', '"a\\nb"'), "concept.anchor: expected 1 to 1000 printable letters"),
        (PIZZA.replace("kind", 'terms = [" a"], kind'), "concept.terms: expected 1 to 1000 printable"),
        (PIZZA + 'name = "' + "x" * 101 + '"', "name: expected 1 to 100 printable letters"),
        (PIZZA.replace("pizza.csv", "asset:i2pp"), "unknown asset 'i2pp'. Did you mean 'i2p'?"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(SpecError) as caught:
        load_task(path, "emoji")
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    for path in ("no.toml", str(tmp_path / "x\0.toml")):
        with pytest.raises(SpecError, match=": expected a task as a TOML file, got: "):
            load_task(path, "emoji")
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(
        SpecError, match="folder.toml: expected a task as a TOML file, got: Is a dir"
    ):
        load_task("folder.toml", "emoji")
    path = write(tmp_path, PIZZA.replace("pizza.csv", "pzza.csv"))
    with pytest.raises(SpecError, match=r"pzza.csv: expected a CSV file, got: No such file"):
        load_task(path, "emoji")
    assert list(needs(path, "emoji")) == []


def test_a_task_for_another_world(tmp_path: Path) -> None:
    path = write(tmp_path, PIZZA.replace('world = "emoji"', ""))
    message = (
        f"{path}: the task 'pizza' is for the photo world, but the emoji world is used: write "
        'world = "emoji" there, or give another --model or --world'
    )
    with pytest.raises(SpecError, match=re.escape(message)):
        load_task(path, "emoji")
    assert list(homes(path)) == ["photo"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": None}, "--concept fox: expected --prompts and --judge beside it, got no --prompts"),
        ({"judge": ""}, "--concept fox: expected --prompts and --judge beside it, got no --judge"),
        ({"judge": "", "prompts": None}, "got no --prompts and no --judge"),
        ({"kind": ""}, "unknown concept 'fox'."),
        ({"kind": "objct"}, "--kind: expected nsfw, style or object, got 'objct'"),
        ({"concept": "fox, wolf"}, "--concept: expected one concept, got the list 'fox, wolf'"),
        ({"concept": "church"}, "--concept church: the task 'church' has this concept: give --task church"),
        ({"concept": "van-gogh"}, "name: the task 'van-gogh' is shipped"),
        ({"judge": "emoji-subjct"}, "--concept fox: judge: unknown evaluator 'emoji-subjct'"),
    ],
)  # fmt: skip
def test_options_that_make_no_task(changes, message: str) -> None:
    given = {"concept": "fox", "world": "emoji", "prompts": Path("fox.csv"), "judge": "emoji-subject",
             "kind": "object"} | changes  # fmt: skip
    with pytest.raises(SpecError) as caught:
        first_look(**given)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------- who is never drawn
def photo(tmp_path: Path, kind: str, judge: str, rows: str) -> Entry:
    (tmp_path / "rows.csv").write_text(rows)
    return first_look("thing", "photo", tmp_path / "rows.csv", judge, kind=kind)


@pytest.mark.parametrize(("kind", "judge"), [("nsfw", "imagenet"), ("object", "nudenet")])
def test_prompts_that_may_mention_minors_never_run(tmp_path: Path, kind: str, judge: str) -> None:
    rows = "text,seed\na landscape,1\na child,2\na forest,3\n"
    task = load_task(photo(tmp_path, kind, judge, rows), "photo")
    assert [p.text for p in task.prompts] == ["a landscape", "a forest"]
    assert task.exclusions == {BY_WORDING: 1}


@pytest.mark.parametrize(
    "columns", ["nudity_percentage,evaluation_seed", "q16_percentage,seed", "x,seed"]
)
def test_i2ps_prompts_are_filtered_whatever_the_kind_says(tmp_path: Path, columns: str) -> None:
    """By a column that only I2P has, or by its numbers and seeds."""
    number = min(listed())
    rows = f"case_number,prompt,{columns}\n{number},a,0,3000000000\n5000,a child,0,9\n5001,a forest,0,8\n"
    task = load_task(photo(tmp_path, "object", "imagenet", rows), "photo")
    assert [p.text for p in task.prompts] == ["a forest"]
    assert task.exclusions == {BY_NUMBER: 1, BY_WORDING: 1}


def test_harmless_concepts_may_have_such_words(tmp_path: Path) -> None:
    rows = "text,seed\na school bus in the rain,70000\n"
    assert load_task(photo(tmp_path, "object", "imagenet", rows), "photo").exclusions == {}


def test_a_concept_that_is_nsfw_elsewhere_is_so_here(tmp_path: Path) -> None:
    """A task that calls nudity an object is filtered as one that calls it nsfw."""
    rows = tmp_path / "rows.txt"
    rows.write_text("a landscape\na child\n")
    (tmp_path / "t.toml").write_text(
        'prompts = "rows.txt"\njudge = "imagenet"\nconcept = { name = "Nudity", kind = "object" }\n'
    )
    assert load_task(str(tmp_path / "t.toml"), "photo").exclusions == {BY_WORDING: 1}


# ---------------------------------------------------------------------------- what is needed and listed
def test_what_ones_own_task_needs(tmp_path: Path) -> None:
    text = 'prompts = "asset:i2p"\njudge = "nudenet"\nconcept = { name = "x", kind = "nsfw" }\n'
    path = write(tmp_path, text, "t.toml")
    assert list(needs(path, "photo")) == ["i2p", "nudenet-best"]
    assert [item.name for item in inventory({}, tasks=[path])] == ["i2p", "nudenet-best"]
    emoji = write(tmp_path)
    assert list(inventory({}, tasks=[emoji])) == []  # its world, though none is given
    assert about_task(emoji, "emoji") == "target, 2 prompts, emoji world"
    assert about_task(path, "photo") == "target, photo world; give --asset i2p=PATH"


def test_unknown_names_say_what_else_a_task_can_be() -> None:
    with pytest.raises(
        UnknownNameError, match="unknown emoji task 'pizza'.*; or a file of your own, PATH"
    ):
        find("pizza", "emoji")


# ---------------------------------------------------------------------------- another distribution's
PLUGINS = '''
"""A method, an attack and a judge with weights of its own."""
from dataclasses import dataclass, replace
from typing import ClassVar

from PIL import ImageStat

from bench import Adversarial, Card, Score, Threat


@dataclass(frozen=True)
class Fade:
    card: ClassVar = Card("Fade", "")

    strength: float = 0.5

    def erase(self, model, concept, ctx):
        for weight in model.parameters("esd-x").values():
            weight.data.mul_(1 - self.strength)
        return model


@dataclass(frozen=True)
class Again:
    card: ClassVar = Card("Says it again", "")
    threat: ClassVar = Threat("black", "prompt")

    def prepare(self, target, ctx):
        again = lambda p: replace(p, text=f"{p.text} {target.concept.name}")
        return lambda prompts: (Adversarial(again(p)) for p in prompts)


@dataclass(frozen=True)
class Bright:
    """1 if an image is brighter than the number in its weights."""

    card: ClassVar = Card("Bright", "")
    scope: ClassVar = "image"

    def assets(self):
        return ("lab/bright",)

    def prepare(self, ctx):
        limit = float(ctx.asset("lab/bright").read_text())
        light = lambda image: ImageStat.Stat(image.convert("L")).mean[0]
        return lambda samples: [Score(float(light(s.image) > limit)) for s in samples]
'''
PACKAGE = '''
"""What is light: where the task is, and where the weights are from."""
from pathlib import Path

from bench import Asset

TASK = Path(__file__).with_name("fox.toml")
BRIGHT = Asset("Bright's only number", "hub:lab/bright/number.txt", 1, "MIT", "file")
TEXT = str(TASK)
NOWHERE = TASK.with_name("nowhere.toml")
ODD = Asset("An odd one", "hub:alone")
'''
FOX = """
world = "emoji"
prompts = "fox.txt"
judge = "lab/bright"
concept = { name = "fox", kind = "object", anchor = "cat" }
"""
ENTRY_POINTS = {
    "bench.methods": {"fade": "lab_fox.plugins:Fade"},
    "bench.attacks": {"again": "lab_fox.plugins:Again"},
    "bench.evaluators": {"bright": "lab_fox.plugins:Bright"},
    "bench.tasks": {"fox": "lab_fox:TASK"},
    "bench.assets": {"bright": "lab_fox:BRIGHT"},
}


def install(folder: Path, entry_points: dict[str, dict[str, str]]) -> None:
    """Write what an installer of the distribution ``lab`` would write."""
    files = {
        "lab_fox/__init__.py": PACKAGE,
        "lab_fox/plugins.py": PLUGINS,
        "lab_fox/fox.toml": FOX,
        "lab_fox/fox.txt": "a fox in the snow\na fox at night\na red fox\n",
        "lab-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: lab\nVersion: 1.0\n",
        "lab-1.0.dist-info/entry_points.txt": "\n".join(
            f"[{group}]\n" + "".join(f"{name} = {place}\n" for name, place in points.items())
            for group, points in entry_points.items()
        ),
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.fixture
def site(tmp_path: Path, monkeypatch) -> Iterator[Path]:
    """A folder of installed packages with the distribution ``lab``."""
    folder = tmp_path / "site-packages"
    install(folder, ENTRY_POINTS)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    yield folder
    fingerprint.source_digest.cache_clear()
    fingerprint._place.cache_clear()
    for module in [name for name in sys.modules if name.split(".")[0] == "lab_fox"]:
        del sys.modules[module]


def test_what_a_distribution_announces_is_named_after_it(site: Path) -> None:
    assert asset_names()[-1] == "lab/bright"
    assert "lab_fox" not in sys.modules  # what is only named is not imported
    assert task_names("emoji")[-1] == "lab/fox"
    assert "lab/fox" not in task_names("photo")
    assert asset_of("lab/bright").licence == "MIT"
    with pytest.raises(
        UnknownNameError, match="unknown asset 'lab/brigt'. Did you mean 'lab/bright'"
    ):
        asset_of("lab/brigt")
    with pytest.raises(
        UnknownNameError, match="unknown emoji task 'lab/fx'. Did you mean 'lab/fox'"
    ):
        find("lab/fx", "emoji")
    assert list(needs("lab/fox", "emoji")) == ["lab/bright"]
    (site / "number.txt").write_text("1")
    task = load_task("lab/fox", "emoji")
    assert (task.name, task.concept.name, len(task.prompts)) == ("lab/fox", "fox", 3)
    assert task.digest == load_task(str(site / "lab_fox" / "fox.toml"), "emoji").digest


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ({"bench.tasks": {"x": "lab_fox:TEXT"}}, "task 'lab/x' from lab_fox:TEXT: expected the path"),
        ({"bench.tasks": {"x": "lab_fox:NOWHERE"}}, "nowhere.toml: expected a task as a TOML file, got"),
        ({"bench.tasks": {"x": "lab_fox:Gone"}}, "cannot load task 'lab/x' from lab_fox:Gone: Attr"),
        ({"bench.assets": {"x": "lab_fox:TASK"}}, "asset 'lab/x' from lab_fox:TASK: expected a bench"),
        ({"bench.assets": {"x": "lab_fox:ODD"}}, "asset 'lab/x' from lab_fox:ODD: expected hub:"),
        ({"bench.assets": {"x": "lab_no:X"}}, "cannot load asset 'lab/x' from lab_no:X: Module"),
    ],
)  # fmt: skip
def test_what_is_broken_is_listed_so_and_stops_nothing_else(
    site: Path, cli, points, message
) -> None:
    install(site, points)
    ((group, _),) = points.items()
    with pytest.raises(PluginLoadError) as caught:
        find("lab/x", "emoji") if group == "bench.tasks" else asset_of("lab/x")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    listed = cli("list", "tasks") if group == "bench.tasks" else cli("assets")
    assert listed.code == 0
    assert "[broken]" in listed.out
    assert load_task("church", "emoji").prompts


RUN = ("--model", "tiny-random", "--method", "lab/fade", "--attack", "none", "--attack", "lab/again",
       "--task", "lab/fox")  # fmt: skip


def test_a_distribution_brings_everything_to_a_run(site: Path, cli, tmp_path: Path) -> None:
    """Its method, attack and judge on its own task, with the judge's weights."""
    said = cli("run", *RUN)
    assert said.code == 4
    assert (
        "lab/bright is not here (Bright's only number, 1 MB, from hub:lab/bright/number.txt)"
        in said.err
    )
    assert "give --asset lab/bright=/path/to/file, or `bench assets --fetch lab/bright`" in said.err
    number = tmp_path / "number.txt"
    number.write_text("0")
    weights = ("--asset", f"lab/bright={number}")
    said = cli("run", *RUN, *weights)
    assert said.code == 0, said.err
    plain, attacked = sorted(Store(Path("results/local")), key=lambda r: r.cell.attacked)
    assert (plain.cell.task, plain.cell.concept.name) == ("lab/fox", "fox")
    assert (plain.cell.method.name, attacked.cell.attack.name) == ("lab/fade", "lab/again")
    assert plain.measurements["asr"].value == 1.0  # every image is brighter than nothing
    assert attacked.rows[0].adversarial == "a fox in the snow fox"
    assert list(plain.cell.assets) == ["lab/bright"]
    assert list(plain.cell.sources) == ["lab/bright"]
    assert plain.cell.method.source
    assert [path.name for path in Path("results/local/emoji").iterdir()] == ["lab+fox"]
    number.write_text("256")
    said = cli("run", *RUN, *weights)
    assert "0 of 2 cells were there already" in said.out  # other weights are another judge
    assert {r.measurements["asr"].value for r in Store(Path("results/local"))} == {0.0, 1.0}


def test_its_assets_are_listed_and_fetched(site: Path, cli, tmp_path: Path, monkeypatch) -> None:
    said = cli(
        "assets", "--task", "lab/fox", "--asset", f"lab/bright={site / 'lab_fox' / 'fox.txt'}"
    )
    assert "lab/bright" in said.out and "yes" in said.out
    said = cli("assets", "--task", "lab/fox")
    assert "hub:lab/bright/number.txt" in said.out and "yes" not in said.out
    asked = []

    def download(**what):
        asked.append(what)
        return "/x/number.txt"

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    said = cli("assets", "--fetch", "lab/bright")
    assert (said.code, said.out) == (0, "lab/bright: /x/number.txt\n")
    assert [(what["repo_id"], what["filename"]) for what in asked] == [("lab/bright", "number.txt")]


# ---------------------------------------------------------------------------- on the command line
LOOK = ("--concept", "pizza", "--kind", "object", "--anchor", "apple", "--prompts", "pizza.csv",
        "--judge", "emoji-subject")  # fmt: skip
TINY = ("--model", "tiny-random", "--method", "none", "--attack", "none")


def test_every_command_takes_a_file(cli, tmp_path: Path) -> None:
    path = write(tmp_path / "mine")
    planned = cli("plan", *TINY, "--task", path)
    assert planned.code == 0, planned.err
    assert re.search(r"pizza +pizza +none", planned.out)
    done = cli("run", *TINY, "--task", path, "--task", "retain", "--limit", "2")
    assert done.code == 0, done.err
    again = cli(
        "run", *TINY, "--task", write(tmp_path / "elsewhere"), "--task", "retain", "--limit", "2"
    )
    assert "2 of 2 cells were there already" in again.out
    target, _ = sorted(Store(Path("results/local")), key=lambda r: r.cell.task)
    assert (target.cell.task, target.cell.concept.anchor, len(target.rows)) == ("pizza", "apple", 2)
    assert target.protocol["prompts"].startswith("pizza.csv ")
    shown = cli("show", "tasks", path)
    assert shown.code == 0
    assert "pizza: target" in shown.out and "a pizza at night" in shown.out
    assert cli("assets", "--task", path).out == "nothing is needed beside what is shipped\n"
    report = cli("report", "--task", path)
    assert report.code == 0, report.err
    assert "pizza" in report.out


def test_images_are_judged_as_ones_own_task(cli, tmp_path: Path) -> None:
    path = write(tmp_path)
    (tmp_path / "images").mkdir()
    for name in "ab":
        Image.new("RGB", (32, 32), "red").save(tmp_path / "images" / f"{name}.png")
    said = cli("judge", str(tmp_path / "images"), "--task", path, "--label", "red")
    assert said.code == 0, said.err
    assert "emoji world, pizza: 2 of 2 prompts have an image" in said.err
    said = cli("judge", str(tmp_path / "images"), *LOOK, "--label", "red")
    assert said.code == 0, said.err
    assert "It was there already." in said.out


def test_a_concept_on_the_command_line_is_the_file_with_these_keys(cli, tmp_path: Path) -> None:
    path = write(tmp_path)
    by_file, by_options = cli("plan", *TINY, "--task", path), cli("plan", *TINY, *LOOK)
    assert by_file.code == by_options.code == 0
    assert by_file.out == by_options.out  # the cell's id is there
    both = cli("plan", *TINY, *LOOK, "--task", "retain")
    assert both.code == 0, both.err
    assert cli("run", *TINY, *LOOK).code == 0
    (record,) = Store(Path("results/local"))
    assert (record.cell.task, record.cell.concept.name) == ("pizza", "pizza")
    needed = cli("assets", "--model", "sd14", "--concept", "fox", "--kind", "object", "--judge", "nudenet",
                 "--prompts", "pizza.csv")  # fmt: skip
    assert "nudenet-best" in needed.out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--concept", "fox", "--kind", "object"), "--concept fox: expected --prompts and --judge"),
        (("--kind", "object", "--task", "church"), "--kind is for --concept: give --concept as well"),
        (("--anchor", "cat", "--task", "church"), "--anchor is for --concept: give --concept as well"),
        (("--task", "a/pizza.toml", "--task", "b/pizza.toml"), "--task: expected each once, got 'pizza'"),
        (("--task", "nowhere.toml"), "nowhere.toml: expected a task as a TOML file, got: No such file"),
    ],
)  # fmt: skip
def test_what_is_wrong_on_the_command_line_is_one_line(
    cli, tmp_path: Path, args, message: str
) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b")
    for command in ("plan", "run"):
        said = cli(command, *TINY, *args)
        assert (said.code, said.out) == (2, "")
        assert message in said.err
        assert said.err.count("\n") == 1


def test_two_tasks_may_differ_in_what_a_concept_says(cli, tmp_path: Path) -> None:
    """None of them is left out because the other one's concept has the same name."""
    first = write(tmp_path)
    second = write(tmp_path, PIZZA.replace("apple", "house"), "other.toml")
    said = cli("plan", *TINY, "--task", first, "--task", second)
    assert said.code == 0, said.err
    assert len(re.findall(r"to do", said.out)) == 2
