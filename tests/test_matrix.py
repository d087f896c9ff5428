"""A matrix in a file, suites, and seeds of erasures and attacks."""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from bench.emoji import NEVER_LEARNED
from bench.errors import SpecError
from bench.plan.asked import options as arguments
from bench.plan.matrix import read_matrix, suite, suites
from bench.plan.plan import pieces, plan
from bench.plan.spec import Spec
from bench.plugins.registry import Ref, names
from bench.tasks.lookup import homes

FILE = """
model = "tiny-random"
methods = ["none", "esd:steps=2"]
attacks = ["none", "random:draws=1"]
tasks = ["church", "retain"]
limit = 2
"""


def spec(**changes: object) -> Spec:
    base = Spec("tiny-random", (Ref("esd"),), (Ref("none"), Ref("random")), ("church",), limit=2)
    return replace(base, **changes)  # type: ignore[arg-type]


def ids(*specs: Spec) -> list[str]:
    return [job.cell.id for job in plan(*specs)]


def test_a_file_is_the_same_as_repeated_options(cli, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(FILE)
    said = cli("plan", "--matrix", str(path))
    options = cli(
        "plan", "--model", "tiny-random", "--method", "none", "--method", "esd:steps=2",
        "--attack", "none", "--attack", "random:draws=1", "--task", "church", "--task", "retain",
        "--limit", "2",
    )  # fmt: skip
    assert (said.code, said.err) == (0, "")
    assert said.out == options.out
    # An option that is given replaces the file's value, also where it is the option's default.
    fewer = cli("plan", "--matrix", str(path), "--limit", "1", "--method", "none")
    assert fewer.out == cli(
        "plan", "--model", "tiny-random", "--method", "none", "--attack", "none",
        "--attack", "random:draws=1", "--task", "church", "--task", "retain", "--limit", "1",
    ).out  # fmt: skip
    assert "emoji-sd" not in said.out
    emoji = cli("plan", "--matrix", str(path), "--model", "emoji-sd", "--method", "none")
    assert emoji.out != cli("plan", "--matrix", str(path), "--method", "none").out


def test_parts_share_what_stands_above_them_and_cells_are_there_once(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    part = '\n[[part]]\nmethods = ["{}"]\ntasks = ["church"]\n'
    path.write_text(
        'model = "tiny-random"\nattacks = ["none"]\nlimit = 1\nseeds = [0, 1]\n'
        + part.format("none") + part.format("esd") + part.format("none")
    )  # fmt: skip
    matrix = read_matrix(path)
    assert [s.seed for s in matrix.specs()] == [0, 1] * 3
    cells = [job.cell for job in plan(*matrix.specs())]
    assert [(c.method.name, c.seed) for c in cells] == [
        ("none", 0), ("none", 1), ("esd", 0), ("esd", 1),
    ]  # fmt: skip


PARTS = """
model = "tiny-random"
limit = 2
[[part]]
methods = ["none", "uce", "esd:steps=2"]
attacks = ["none", "unlearndiff:iterations=1", "random:draws=3"]
floors = true
tasks = ["church", "nudity"]
[[part]]
methods = ["none", "uce"]
attacks = ["none"]
tasks = ["retain"]
erase = ["church", "nudity"]
"""


def picked(path: Path, **asked: list[str]) -> list[tuple[str, ...]]:
    """Return method, attack, task and concept of the cells of a matrix that are asked for."""
    cells = [job.cell for job in plan(*read_matrix(path).only(asked).specs())]
    return [(c.method.name, c.attack.name, c.task, c.concept.name) for c in cells]


def test_options_pick_from_a_matrix(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(PARTS)
    every = picked(path)
    assert len(every) == 2 * (3 * (3 + 2) + 2)  # with floors of as many images as unlearndiff makes
    assert picked(path, tasks=["church"]) == [c for c in every if c[2] == "church"]
    kept = picked(path, tasks=["church", "retain"])
    assert kept == [c for c in every if c[2] in ("church", "retain") and c[3] == "church"]
    assert picked(path, tasks=["retain"]) == [c for c in every if c[2] == "retain"]
    assert picked(path, methods=["uce"]) == [c for c in every if c[0] == "uce"]
    assert {c[:2] for c in picked(path, methods=["esd:steps=2"], attacks=["none"])} == {
        ("esd", "none")
    }
    # Floors are those of the attacks that are left: none and random have none.
    assert sorted({c[1] for c in picked(path, attacks=["none", "random:draws=3"])}) == [
        "none",
        "random",
    ]
    attacked = {c[1] for c in picked(path, attacks=["unlearndiff:iterations=1"])}
    assert attacked == {"unlearndiff", "random", "seed-search"}


def test_names_that_a_matrix_has_not_replace_its_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(PARTS)
    every = picked(path)
    mine = picked(path, methods=["fmn"])
    assert mine == [("fmn", *c[1:]) for c in every if c[0] == "uce"]
    assert {c[0] for c in picked(path, methods=["fmn", "uce"])} == {"fmn", "uce"}
    other = picked(path, tasks=["tench"], methods=["uce"])
    assert {c[2:] for c in other} == {("tench", "tench")}
    with pytest.raises(SpecError, match="no part of the matrix has all of esd:steps=2, retain"):
        picked(path, methods=["esd:steps=2"], tasks=["retain"])


def test_the_command_line_picks_in_the_same_way(cli, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(PARTS)
    said = cli("plan", "--matrix", str(path), "--method", "uce", "--task", "church", "--task", "retain",
               "--cells", "--json")  # fmt: skip
    cells = json.loads(said.out)["cells"]
    found = [
        (c["method"]["name"], c["attack"]["name"], c["task"], c["concept"]["name"]) for c in cells
    ]
    assert found == picked(path, methods=["uce"], tasks=["church", "retain"])
    said = cli("plan", "--matrix", str(path), "--method", "esd:steps=2", "--task", "retain")
    assert (said.code, len(said.err.splitlines())) == (2, 1)


def test_files_of_a_matrix_lie_beside_it(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    path = tmp_path / "deep" / "mine.toml"
    path.write_text('methods = ["none"]\nattacks = ["none"]\ntasks = ["own.toml", "church"]\n'
                    'erase = ["own.toml"]\n')  # fmt: skip
    part, own = read_matrix(path).parts[0], str(tmp_path / "deep" / "own.toml")
    assert (part.tasks, part.erase) == ((own, "church"), (own,))


def test_an_erased_concept_need_not_be_measured(cli, tmp_path: Path) -> None:
    other = {"attacks": (Ref("none"),), "methods": (Ref("none"), Ref("esd"))}
    both = spec(tasks=("church", "nudity", "retain", "benign"), **other)
    kept = spec(tasks=("retain", "benign"), erase=("church", "nudity"), **other)
    wanted = [job.cell.id for job in plan(both) if job.task.role != "target"]
    assert ids(kept) == wanted
    assert len(wanted) == 8
    # A task may be measured and another's concept erased; the same of both is the same once.
    mixed = replace(kept, tasks=("church", "retain", "benign"), erase=("church", "nudity"))
    assert ids(mixed) == [
        job.cell.id for job in plan(both) if job.task.name in ("church", "retain", "benign")
    ]
    # By options, from a file, and as the commands of a job array.
    path = tmp_path / "mine.toml"
    path.write_text(
        'model = "tiny-random"\nmethods = ["none", "esd"]\nattacks = ["none"]\nlimit = 2\n'
        'tasks = ["retain", "benign"]\nerase = ["church", "nudity"]\n'
    )
    assert ids(*read_matrix(path).specs()) == wanted
    options = ("--erase", "church", "--erase", "nudity", "--task", "retain", "--task", "benign")
    args = (
        "--model",
        "tiny-random",
        "--method",
        "none",
        "--method",
        "esd",
        *options,
        "--limit",
        "2",
    )
    said = cli("plan", *args, "--cells")
    assert (said.code, said.out) == (0, cli("plan", "--matrix", str(path), "--cells").out)
    assert [found for piece, found in pieces([kept])] == [wanted[n : n + 2] for n in range(0, 8, 2)]
    for piece, found in pieces([kept]):
        assert ids(piece) == found and len(piece.erase) == 1
        assert ["--erase", piece.erase[0]] == arguments(piece)[arguments(piece).index("--erase") :][
            :2
        ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("methods = [", "is no TOML file"),
        ('method = ["none"]', "unknown key 'method'. Did you mean 'methods'?"),
        ('methods = "none"', "methods: expected a list, got 'none'"),
        ("methods = [1]", "methods: expected a valid string, got 1"),
        ("seeds = [true]", "seeds: expected a valid integer, got True"),
        ('limit = "3"', "limit: expected a valid integer, got '3'"),
        ('world = "moon"', "world: expected 'emoji' or 'photo', got 'moon'"),
        ("part = 3", "expected tables [[part]], got 3"),
        ("part = []", "expected tables [[part]], got []"),
        ("[part]\nlimit = 3", "expected tables [[part]]"),
        ("", "nothing to run: give --method; add `--method none` to take the model as it is"),
        ('methods = ["nonsuch"]\nattacks = ["none"]\ntasks = ["church"]', "unknown method 'nonsuch'"),
        (FILE + "seeds = [-1]", "--seed: expected at least 0, got -1"),
        (FILE + "erase-seeds = [-1]", "--erase-seed: expected at least 0, got -1"),
    ],
)  # fmt: skip
def test_a_bad_file_is_one_line(cli, tmp_path: Path, text: str, line: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    said = cli("plan", "--matrix", str(path))
    assert (said.code, said.out, len(said.err.splitlines())) == (2, "", 1), said.err
    assert line in said.err


def test_a_file_or_suite_that_is_not_there_is_one_line(cli, tmp_path: Path) -> None:
    Path("a.toml").write_text(FILE)
    for args, line in (
        (("--matrix", "no.toml"), "no.toml cannot be read: No such file"),
        (("--matrix", str(tmp_path)), "cannot be read: Is a directory"),
        (("--suite", "emojis"), "unknown suite 'emojis'. Did you mean 'emoji'?"),
        (("--suite", "emoji", "--matrix", "a.toml"), "expected one --matrix or --suite, got both"),
        (("--suite", "emoji", "--suite", "emoji-quick"), "expected one --matrix or --suite, got 2"),
    ):
        said = cli("plan", *args)
        assert (said.code, len(said.err.splitlines())) == (2, 1), said.err
        assert line in said.err


@pytest.mark.parametrize("name", suites())
def test_a_suite_names_what_there_is(name: str) -> None:
    matrix = suite(name)
    assert matrix.about
    for part in matrix.parts:
        assert {m.partition(":")[0] for m in part.methods} <= names("methods").keys()
        assert {a.partition(":")[0] for a in part.attacks} <= names("attacks").keys()
        world = "photo" if name.startswith("paper-") else "emoji"
        assert part.model == {"photo": "sd14", "emoji": "emoji-sd"}[world]
        assert part.protocol == ("paper" if world == "photo" else "default")
        assert all(world in homes(task) for task in part.tasks)
    assert all(len(s.methods) and len(s.attacks) and len(s.tasks) for s in matrix.specs())


def test_a_table_of_a_paper_takes_at_most_ten_lines() -> None:
    """Tables 1 and 5 of the paper as files of their own."""
    for name, n in (("paper-nudity", 0), ("paper-objects", 0)):
        part = tomllib.loads(suites()[name].read_text())
        merged = {k: v for k, v in part.items() if k not in ("part", "about")} | part["part"][n]
        assert len(merged) <= 10


def test_suites_are_listed_and_shown(cli) -> None:
    assert "paper-ablation" in cli("list", "suites").out
    said = cli("show", "suites", "emoji-seeds")
    assert "seeds: 0, 1, 2" in said.out and "erase-seeds: 0, 1, 2" in said.out
    assert "unknown suite 'x'" in cli("show", "suites", "x").err


def test_the_whole_emoji_suite_is_planned() -> None:
    jobs = plan(*suite("emoji").specs()).jobs
    assert len({job.cell.id for job in jobs}) == len(jobs)
    assert not any(job.problem for job in jobs)
    # What is not attacked is run on all prompts, the attacked concepts on 50.
    sizes = {job.cell.task: job.cell.prompts for job in jobs}
    assert [sizes.pop(task) for task in ("retain", "benign", "subjects")] == [130, 300, 760]
    assert {*sizes.values()} == {50} and len(sizes) == 6
    # Texts of ESD for all others, of P-ESD for ESD: their cells are there, and come before.
    place = {job.cell.id: n for n, job in enumerate(jobs)}
    taken = [job for job in jobs if job.cell.attack.name == "transfer"]
    counts = dict.fromkeys((job.cell.method.name for job in jobs), 6)
    counts["never-learned"] = len(list(NEVER_LEARNED.iterdir()))
    assert Counter(job.cell.method.name for job in taken) == counts
    for job in taken:
        source = "p-esd" if job.cell.method.name == "esd" else "esd"
        assert job.after and (job.after.method.name, job.after.task) == (source, job.cell.task)
        assert place[job.after.id] < place[job.cell.id]
        assert job.cell.attack.params["cell"] == job.after.id


def test_the_suite_of_seeds_has_two_of_the_attack_for_each_of_three_erasures() -> None:
    attacked = [
        (c.erased_with, c.seed, c.attack.params.get("stream"))
        for job in plan(*suite("emoji-seeds").specs())
        if (c := job.cell).method.name == "p-esd" and c.attacked and c.task == "church"
    ]
    own = [(seed, seed, None) for seed in (0, 1, 2)]
    assert Counter(attacked) == Counter([*own, *product((0, 1, 2), (0, 1), ["run"])])


def test_files_that_are_not_here_are_a_short_line_each(cli, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(Path("hub").absolute()))
    said = cli("plan", "--suite", "paper-nudity")
    assert (said.code, said.out) == (4, "")
    title, *lines = said.err.splitlines()
    assert (
        title
        == f"error: {len(lines)} files or folders are not here; `bench assets` says of each what it is"
    )
    assert "  --asset i2p=FILE, or `bench assets --fetch i2p`" in lines
    assert "  --asset coco-val2014=FOLDER or coco-reference=FILE" in lines
    assert lines[-1] == "  --model FOLDER for sd14, or it is fetched"
    assert all(len(line) <= 80 for line in (title, *lines))


def test_what_does_not_fit_a_model_is_a_line_and_no_cell(cli) -> None:
    for model, left in (
        ("tiny-random", "is for --model emoji-sd"),
        ("emoji-sd", "'castle' is"),
    ):
        args = ("plan", "--model", model, "--limit", "2", "--concept", "castle", "--kind", "object",
                "--prompts", "p.txt", "--judge", "emoji-subject", "--method", "never-learned")  # fmt: skip
        Path("p.txt").write_text("a castle\n")
        said = cli(*args)
        assert (said.code, len(said.err.splitlines())) == (2, 1)
        assert "nothing to run; left out: never-learned" in said.err
        said = cli(*args, "--method", "none")
        assert (said.code, said.err) == (0, "")
        assert "left out: never-learned" in said.out and left in said.out
        assert "0 of 1 cells done" in said.out


# ---------------------------------------------------------------------------- seeds
def test_an_erase_seed_that_is_the_seed_is_no_other_cell() -> None:
    assert ids(spec(erase_seed=0)) == ids(spec())
    assert ids(spec(seed=3, erase_seed=3)) == ids(spec(seed=3))


def test_erasures_have_their_own_seed() -> None:
    """Cells (erase seed, seed): the erasure depends on the first alone, the attack on both."""
    cells = {
        (e, s): next(j.cell for j in plan(spec(seed=s, erase_seed=e)) if j.cell.attacked)
        for e in (0, 1)
        for s in (0, 1)
    }
    assert len({c.id for c in cells.values()}) == 4
    assert len({c.attack_key for c in cells.values()}) == 4
    assert cells[1, 0].erase_key == cells[1, 1].erase_key != cells[0, 0].erase_key
    assert cells[0, 1].erase_key == cells[0, 0].erase_key
    assert [c.erased_with for c in cells.values()] == [0, 0, 1, 1]
    assert cells[1, 0].erase_seed == 1
    assert cells[0, 1].erase_seed == 0  # falsy, but part of the identity
    assert cells[0, 1].id != replace(cells[0, 1], erase_seed=None).id


def test_without_an_attack_there_is_one_cell_for_each_erasure() -> None:
    pairs = [spec(seed=s, erase_seed=e) for s in (0, 1) for e in (0, 1, 2)]
    cells = [job.cell for job in plan(*pairs)]
    plain = [c for c in cells if not c.attacked]
    assert [(c.seed, c.erase_seed) for c in plain] == [(0, None), (1, None), (2, None)]
    assert [c.id for c in plain] == ids(*(spec(seed=e, attacks=(Ref("none"),)) for e in (0, 1, 2)))
    assert len([c for c in cells if c.attacked]) == 6
    # nothing is erased: there is no such seed
    base = [spec(methods=(Ref("none"),), seed=s, erase_seed=e) for s in (0, 1) for e in (0, 1, 2)]
    assert ids(*base) == ids(*(replace(s, erase_seed=None) for s in base[::3]))


def test_prompts_without_seeds_keep_the_seed_that_theirs_follow_from(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("a church in the sand\na church at night\n")
    one = [spec(prompts=path, seed=s, erase_seed=1, attacks=(Ref("none"),)) for s in (0, 1)]
    cells = [job.cell for job in plan(*one)]
    assert [(c.seed, c.erase_seed) for c in cells] == [(0, 1), (1, None)]


def test_seeds_are_told_apart_in_a_plan(cli) -> None:
    args = ("plan", "--model", "tiny-random", "--method", "esd", "--attack", "random",
            "--task", "church", "--limit", "2")  # fmt: skip
    said = cli(*args, "--seed", "0", "--seed", "1", "--erase-seed", "1", "--erase-seed", "2")
    lines = [line.split() for line in said.out.splitlines() if " esd " in line]
    assert len(lines) == 4
    header = next(line for line in said.out.splitlines() if "concept" in line)
    assert "seed" in header


def test_an_erasure_of_another_seed_is_another_model() -> None:
    import bench

    found = bench.run(
        *(spec(methods=(Ref("esd", {"steps": 1}),), attacks=(Ref("random", {"draws": 1}),),
               limit=1, seed=s, erase_seed=e) for e, s in ((0, 0), (1, 0), (1, 1))),
        keep_images=False,
    )  # fmt: skip
    first, other, same = (r.erasure for r in found)
    assert [r.status for r in found] == ["ok"] * 3
    assert first["digest"] != other["digest"]
    assert other == same
    assert [r.erasure["seed"] for r in found] == [0, 1, 1]
    texts = [r.rows[0].adversarial for r in found]
    assert len(set(texts)) == 3
