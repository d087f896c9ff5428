"""Adversarial prompts as artifacts: found on one model, replayed on another, counted and shown."""

import csv
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

import bench
import methods
from bench import Cost
from bench.engine.runner import Runner
from bench.engine.settings import Settings
from bench.plan.asked import request_of
from bench.plan.plan import plan
from bench.plan.spec import Spec
from bench.plugins.registry import Ref
from bench.report.axes import labels
from bench.report.render import csv_table, markdown, terminal
from bench.report.tables import cer_table, cost_table, transfer_table
from bench.store.artifacts import Artifacts
from bench.store.record import Record
from bench.store.store import Store

pytestmark = pytest.mark.usefixtures("few_steps")

FAST = Ref("esd", {"steps": 2})
RANDOM = Ref("random", {"draws": 2, "tokens": 1})


def cells(method: Ref, attack: Ref, *, limit: int = 3, task: str = "church") -> list:
    return list(plan(Spec("tiny-random", (method,), (attack,), (task,), limit=limit)))


@pytest.fixture
def found(tmp_path: Path):
    """A record of random tokens on the unedited model, on disk."""
    runner, store = Runner(Settings(artifacts=Artifacts(tmp_path / "cache"))), Store(Path("res"))
    result = runner.run(cells(Ref("none"), RANDOM)[0])
    return runner, store, result, store.put(result)


def test_a_record_is_replayed_on_another_model(found) -> None:
    runner, store, first, path = found
    (cell,) = cells(FAST, Ref("transfer", {"source": str(path)}))
    assert cell.cell.attack.files.keys() == {
        "source"
    }  # named by what is in it, not by where it lies
    moved = runner.run(cell)
    assert moved.status == "ok", moved.reason
    for a, b in zip(first.rows, moved.rows, strict=True):
        assert (b.adversarial, b.adversarial_seed) == (a.adversarial, a.adversarial_seed)
        assert b.adversarial != a.text
        assert b.trace == {"source_success": a.trace["success"], "origin": "none/random"}
        assert b.cost.images == 0
    images = [s[2].image.tobytes() for s in runner.samples(cell, 3)]
    theirs = [s[2].image.tobytes() for s in runner.samples(cells(Ref("none"), RANDOM)[0], 3)]
    assert all(x != y for x, y in zip(images, theirs, strict=True))  # another model draws

    store.put(moved)
    table = transfer_table(store)
    assert table.columns == ("on esd", "on none")
    assert [line.names for line in table.lines] == [("church", "none/random")]
    assert None not in table.lines[0].figures


TAKEN = Ref("transfer", {"found_on": "esd:steps=1", "found_by": "random:draws=1"})


def spec(*methods: Ref, attack: Ref = TAKEN, task: str = "church") -> Spec:
    return Spec("tiny-random", methods, (attack,), (task,), limit=2)


def test_texts_of_another_cell_are_found_first_and_taken() -> None:
    asked = spec(Ref("none"), Ref("esd", {"steps": "1"}))
    jobs = plan(asked).jobs
    assert [(j.cell.method.name, j.cell.attack.name) for j in jobs] == [
        ("esd", "random"),
        ("none", "transfer"),
    ]
    assert plan(asked).notes == ("left out: transfer on esd: its texts were found on esd itself",)
    first, taken = bench.run(asked, keep_images=False)
    assert [r.status for r in (first, taken)] == ["ok", "ok"], taken.reason
    assert [r.adversarial for r in taken.rows] == [r.adversarial for r in first.rows]
    assert {r.trace["origin"] for r in taken.rows} == {"esd/random"}
    assert taken.cell == jobs[1].cell  # says which cell they are of, and no path
    assert taken.cell.attack.params["cell"] == first.cell.id
    assert bench.run(asked, keep_images=False).known == 2
    assert ids(plan(request_of(taken.cell))) == ids(jobs)
    # Another prompt set of the source is another cell; where the file lies is not in it.
    other = plan(replace(asked, limit=1)).jobs[1].cell
    assert other.attack.params["cell"] != taken.cell.attack.params["cell"]


def ids(jobs) -> list[str]:
    return [job.cell.id for job in jobs]


@pytest.mark.slow
def test_workers_take_the_texts_of_another_cell_too() -> None:
    alone = bench.run(spec(Ref("none")), keep_images=False, results=Path("alone"))
    shared = bench.run(
        spec(Ref("none")), keep_images=False, results=Path("both"), fresh=True, workers=2
    )
    texts = [[row.adversarial for row in found[1].rows] for found in (alone, shared)]
    assert texts[0] == texts[1]


def test_without_the_other_cell_there_is_no_result(monkeypatch) -> None:
    """The first erasure raises: the cell that takes its texts says so, and does not try."""
    monkeypatch.setitem(methods.PLUGINS, "fake", "fakes:Raises")
    found = bench.run(spec(Ref("none"), attack=Ref("transfer", {"found_on": "fake", "found_by": "random"})),
                      keep_images=False)  # fmt: skip
    assert [r.status for r in found] == ["failed", "failed"]
    assert f"found by random on fake, cell {found[0].cell.id}, which failed: " in found[1].reason


def test_parameters_that_name_no_other_cell_are_one_line(cli) -> None:
    for given, line in (
        ("found_on=esd", "expected source, or found_on and found_by, got found_on"),
        ("found_on=esd,found_by=none", "expected an attack that finds texts, got none"),
        ("found_on=esd,found_by=transfer:found_on=uce", "expected an attack that finds texts"),
        ("found_on=essd,found_by=random", "unknown method 'essd'. Did you mean 'esd'?"),
        ("found_on=esd,found_by=p4dd", "unknown attack 'p4dd'. Did you mean 'p4d'?"),
    ):
        said = cli("plan", "--model", "tiny-random", "--method", "none", "--attack",
                   f"transfer:{given}", "--task", "church")  # fmt: skip
        assert (said.code, len(said.err.splitlines())) == (2, 1), said.err
        assert line in said.err


def test_transfers_of_several_tasks_and_sources_have_one_name(found) -> None:
    _, _, first, _ = found

    def moved(on: str, cell: str, method: str = "uce", task: str = "church") -> Record:
        attack = Ref("transfer", {"source": None, "found_on": on, "found_by": "p4d", "cell": cell})
        return replace(
            first, cell=replace(first.cell, method=Ref(method), attack=attack, task=task)
        )

    some = [moved("esd", "a"), moved("esd", "b", task="tench"), moved("p-esd", "c", "esd")]
    assert [labels(some, "attack")(r) for r in some] == ["transfer"] * 3
    more = [*some, moved("uce", "d")]  # two sources for one victim and task
    assert [labels(more, "attack")(r) for r in more[::3]] == [
        "transfer cell=a found_on=esd",
        "transfer cell=d found_on=uce",
    ]


def test_csv_columns_by_any_known_name(found, tmp_path: Path) -> None:
    runner, _, first, _ = found
    for header in ("id,adversarial,seed", "case_number,adv_prompt,evaluation_seed"):
        rows = [f'{r.id},"lo, {r.text}",{i}' for i, r in enumerate(first.rows)]
        path = tmp_path / "mine.csv"
        path.write_text("\n".join([header, *rows]))
        (cell,) = cells(Ref("none"), Ref("transfer", {"source": str(path)}))
        moved = runner.run(cell)
        assert [(r.adversarial, r.adversarial_seed) for r in moved.rows] == [
            (f"lo, {r.text}", i) for i, r in enumerate(first.rows)
        ]


def test_sources_that_do_not_fit_are_one_line(found, tmp_path: Path, cli) -> None:
    _, _, first, path = found
    short = tmp_path / "short.csv"
    short.write_text("id,adversarial\nchurch-001,lo\n")
    bare = tmp_path / "bare.csv"
    bare.write_text("name,words\nx,y\n")
    broken = tmp_path / "broken.csv"
    broken.write_text("id,adversarial,seed\nchurch-001,lo,many\n")
    list_ = tmp_path / "list.csv"
    list_.write_text("adv_prompt,target_prompt\nlo,church\n")
    raw = json.loads(path.read_text())
    raw["rows"][0]["text"] = "something else"
    other = tmp_path / "other.json"
    other.write_text(json.dumps(raw))
    raw["rows"][0]["beyond"] = "embedding"
    beyond = tmp_path / "beyond.json"
    beyond.write_text(json.dumps(raw))
    none = tmp_path / "none.json"
    plain = replace(first, rows=tuple(replace(r, adversarial=None) for r in first.rows))
    none.write_text(json.dumps({"cell": raw["cell"], "rows": [asdict(r) for r in plain.rows]}))
    for source, task, line in (
        ("nowhere.json", "church", "expected a file or folder, there is none"),
        (path, "tench", "expected a record of 'tench' in the emoji world, got 'church'"),
        (short, "church", "has no row for 2 of 3 prompts"),
        (bare, "church", "bare.csv:1: expected a column adversarial or adv_prompt or"),
        (list_, "church", "has no column id or case_number"),
        (
            broken,
            "church",
            "broken.csv:2: expected a whole number from 0 to 9223372036854775807 as",
        ),
        (other, "church", "expected prompt church-001 to be"),
        (beyond, "church", "has more than prompts (embedding)"),
        (none, "church", "has no adversarial prompts"),
    ):
        said = cli(
            "run", "--model", "tiny-random", "--method", "none", "--attack",
            f"transfer:source={source}", "--task", task, "--limit", "3", "--no-images",
        )  # fmt: skip
        assert (said.code, len(said.err.strip().splitlines())) == (2, 1), said.err
        assert line in said.err


def test_costs_are_summed_over_prompts(found) -> None:
    _, _, first, _ = found
    (line,) = cost_table([first]).lines
    counts = [figure.value for figure in line.figures]
    total = sum((r.cost for r in first.rows), Cost())
    # Every prompt was drawn and judged three times, or fewer where it succeeded; 4 steps of 2 passes.
    assert counts[:4] == [3, total.images, 8 * total.images, 0]
    assert 3 <= total.images <= 9


def test_variants_of_one_attack_have_their_own_columns(found) -> None:
    _, _, first, _ = found
    second = replace(
        first,
        cell=replace(first.cell, attack=Ref("random", {**first.cell.attack.params, "draws": 9})),
    )
    name = labels([first, second], "attack")
    assert (name(first), name(second)) == ("random draws=2", "random draws=9")
    assert labels([first], "attack")(first) == "random"
    assert cer_table([first, second]).columns[:2] == (
        "CER, random draws=2",
        "CER, random draws=9",
    )


def test_prompts_too_long_to_attack_are_reported_and_stay_in_the_denominator(found) -> None:
    _, _, first, _ = found
    long = replace(first.rows[0], trace={"success": False, "too_long": 28})
    result = replace(first, rows=(long, *first.rows[1:]))
    table = cer_table([result])
    (line,) = table.lines
    assert (line.figures[0].attacked, line.figures[0].n) == (2, 3)
    said = "church, none, attack random: 2 of 3 attacked"
    assert said in " ".join(terminal(table)).replace("  ", " ")
    assert said in markdown(table)
    rows = list(csv.DictReader(csv_table(table).splitlines()))
    assert (rows[0]["attacked"], rows[0]["flags"]) == ("2", "not all attacked")
