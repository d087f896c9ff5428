"""Records of others: checked, drawn again, and attacked by texts that are handed in."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bench.plan.asked import options, request_of
from bench.plan.plan import plan
from bench.report.audit import audit
from bench.report.statistics import best_known
from bench.store.store import Store, read

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "results" / "reference" / "emoji"
TINY = ("--model", "tiny-random", "--limit", "3", "--no-images")
pytestmark = pytest.mark.usefixtures("few_steps")


def one(folder: Path, pattern: str) -> Path:
    (path,) = folder.rglob(pattern)
    return path


@pytest.fixture
def attacked(cli) -> Path:
    """A record of random tokens on a model that was erased in two steps."""
    said = cli("run", *TINY, "--method", "esd:steps=2", "--attack", "random:draws=2,tokens=1",
               "--attack", "none", "--task", "church", "--task", "retain")  # fmt: skip
    assert said.code == 0, said.err
    return one(Path("results"), "esd--random--*.json")


# ---------------------------------------------------------------------------- without a model
@pytest.mark.parametrize(
    "name", ["church/church/esd--p4d", "van-gogh/van-gogh/none--none", "retain/nudity/p-esd--none"]
)
def test_a_committed_record_holds(name: str) -> None:
    found = audit(next(REFERENCE.glob(f"{name}--*.json")))
    assert [f.state for f in found.findings] == ["ok"] * len(found.findings)
    assert len(found.findings) == 3
    assert found.job and found.job.cell.id == found.record.cell.id


def changed(path: Path, tmp_path: Path, change) -> list[str]:
    raw = json.loads(path.read_text())
    change(raw)
    other = tmp_path / path.name
    other.write_text(json.dumps(raw))
    return [f"{f.state}: {f.text}" for f in audit(other).findings if f.state != "ok"]


def put(*keys, to):
    def change(raw):
        for key in keys[:-1]:
            raw = raw[key]
        raw[keys[-1]] = to

    return change


def flip_verdict(raw: dict) -> None:
    raw["rows"][0]["success"] = not raw["rows"][0]["success"]


def drop_row(raw) -> None:
    raw["rows"].pop()


CHANGES = {
    "value": (put("measurements", "asr", "value", to=0.5), r"asr 0\.5 .* its rows give 0\.[0-4]"),
    "interval": (put("measurements", "asr", "high", to=0.3), r"-0\.300\] .* its rows give 0\.[0-4]"),
    "n": (put("measurements", "asr", "n", to=49), "its rows give"),
    "verdict": (flip_verdict, "1 verdicts do not follow from their scores"),
    "row": (drop_row, "expected 50 rows, got 49"),
    "prompt": (put("rows", 3, "text", to="a pizza"), "1 rows are not the task's prompts: church-004"),
    "another seed": (
        put("rows", 0, "adversarial_seed", to=99), "changed the latent of 1 prompts, its threat says",
    ),
    "another space": (put("space", to="latent"), "it says that the attack changes the latent, its threat"),
    "seed": (put("cell", "seed", to=1), "its content is that of cell"),
    "method": (put("cell", "method", "params", "lr", to=1.0), "its content is that of cell"),
    "newer": (put("schema_version", to=99), "expected a record of schema"),
    "version": (put("cell", "method", "version", to=0), "asks for another cell: it differs in method"),
    "judge": (put("cell", "assets", to={"x": "y"}), "it differs in assets"),
    "status": (put("status", to="done"), "cannot be read as a record"),
    "revision": (put("cell", "revision", to="0"), "it differs in revision"),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_a_changed_record_does_not_hold(what: str, tmp_path: Path) -> None:
    change, line = CHANGES[what]
    lines = changed(next(REFERENCE.glob("church/church/esd--p4d--*.json")), tmp_path, change)
    assert any(re.search(line, said) and said.startswith("wrong") for said in lines), lines


def test_a_record_of_what_is_not_here_is_not_checked(tmp_path: Path) -> None:
    path = next(REFERENCE.glob("church/church/esd--p4d--*.json"))
    for change in (put("cell", "task", to="moon"), put("cell", "method", "name", to="lab/fade")):
        lines = changed(path, tmp_path, change)
        assert any(line.startswith("unknown: no request of today asks for it") for line in lines)


def test_the_distribution_that_is_lacking_is_named(tmp_path: Path) -> None:
    path = next(REFERENCE.glob("church/church/esd--p4d--*.json"))
    lines = changed(path, tmp_path, put("cell", "task", to="mylab/rose"))
    assert "unknown: no request of today asks for it: install the distribution mylab" in lines

    def noted(raw) -> None:
        raw["cell"]["task"] = "rose"  # a judge alone may be another's
        raw["environment"]["from mylab"] = "0.1, git 1a2b3c4-dirty"

    lines = changed(path, tmp_path, noted)
    assert lines[1].endswith("install the distribution mylab (0.1, git 1a2b3c4-dirty)")


def test_every_committed_cell_has_a_request_and_options(cli) -> None:
    import typer

    from bench.cli.options import request

    for path in sorted(REFERENCE.rglob("*.json"))[::9]:
        cell = read(path).cell
        spec, asked = request_of(cell), []
        assert cell.id in [job.cell.id for job in plan(spec)]
        app = typer.Typer()
        app.command()(request(asked.extend))
        app(options(spec), standalone_mode=False)
        assert cell.id in [job.cell.id for job in plan(*asked)]


# ---------------------------------------------------------------------------- drawn again
def test_a_sample_is_drawn_and_judged_again(cli, attacked: Path) -> None:
    said = cli("verify", str(attacked), "--sample", "2")
    assert said.code == 0, said.out
    assert len(re.findall(r"ok +church-\d+: (not )?found again", said.out)) == 2
    assert "taken from the cache, not made again: it is the record's; --fresh" in said.out
    card = one(Path("cache"), "card.json")
    before = card.stat().st_mtime_ns
    fresh = cli("verify", str(attacked), "--sample", "2", "--fresh")
    assert "erased again, and the weights are equal to the bit" in fresh.out
    assert card.stat().st_mtime_ns == before
    assert said.out.rstrip().endswith("1 record: 0 faults, 0 other verdicts, 0 not checked")
    ids = re.findall(r"church-\d+", said.out)
    assert re.findall(r"church-\d+", cli("verify", str(attacked), "--sample", "2").out) == ids
    others = [
        cli("verify", str(attacked), "--sample", "2", "--seed", str(n)).out for n in (1, 2, 3)
    ]
    assert any(re.findall(r"church-\d+", out) != ids for out in others)


def test_an_erasure_by_the_clock_is_found(cli, monkeypatch) -> None:
    """The cache alone would say that it is the record's; machines are blamed where they differ only."""
    import time

    import fakes

    import methods

    def edit(model) -> None:
        model.pipe.unet.conv_in.weight.data *= 1 + time.time_ns() % 1000 / 1e4

    monkeypatch.setitem(methods.PLUGINS, "fake", "fakes:Does")
    monkeypatch.setattr(fakes.Does, "what", staticmethod(edit), raising=False)
    assert cli("run", *TINY, "--method", "fake", "--task", "church").code == 0
    path = one(Path("results"), "fake--none--*.json")
    assert "taken from the cache" in cli("verify", str(path), "--sample", "1").out
    said = cli("verify", str(path), "--sample", "1", "--fresh").out
    assert "so the method may not do the same twice" in said
    raw = json.loads(path.read_text())
    raw["environment"]["threads"] = "64"
    path.write_text(json.dumps(raw))
    said = cli("verify", str(path), "--sample", "1", "--fresh").out
    assert "rounded otherwise (threads 64 then, 1 now)" in said


def test_a_verdict_that_was_made_up_is_found(cli, attacked: Path) -> None:
    """All verdicts, scores and rates say the opposite, in agreement with each other."""
    raw = json.loads(attacked.read_text())
    for row in raw["rows"]:
        opposite = 0.0 if row["success"] else 1.0
        row |= {"success": not row["success"], "own": opposite, "attacked": opposite}
    from bench.store.metrics import rate

    m = rate([row["success"] for row in raw["rows"]])
    raw["measurements"]["asr"] |= {"value": m.value, "low": m.low, "high": m.high}
    attacked.write_text(json.dumps(raw))
    assert cli("verify", str(attacked), "--sample", "0").code == 0
    said = cli("verify", str(attacked), "--sample", "3")
    assert said.code == 3
    assert said.out.count("DIFFERS") == 3
    raw["measurements"]["asr"]["value"] = 0.123
    attacked.write_text(json.dumps(raw))
    assert cli("verify", str(attacked), "--sample", "3").code == 5


def test_images_that_are_kept_are_not_believed(cli, attacked: Path, monkeypatch) -> None:
    drawn = []
    from bench.models.diffusers import DiffusersModel

    real = DiffusersModel.generate
    monkeypatch.setattr(
        DiffusersModel, "generate", lambda self, p, **more: drawn.extend(p) or real(self, p, **more)
    )
    assert cli("verify", str(attacked), "--sample", "1").code == 0
    assert len(drawn) >= 1


def test_a_folder_of_records_is_verified(cli, attacked: Path) -> None:
    said = cli("verify", "results/local", "--sample", "1")
    assert said.code == 0, said.out
    assert "3 records: 0 faults" in said.out
    assert "retain-" in said.out
    empty = Path("empty")
    empty.mkdir()
    assert cli("verify", str(empty)).code == 2
    nowhere = cli("verify", "nowhere.json")
    assert (nowhere.code, "WRONG" in nowhere.out) == (5, True)


def test_a_record_under_another_name_is_verified_and_other_files_are_not(cli, tmp_path) -> None:
    """`bench report` reads whatever a folder holds, so what it counts must not pass unseen."""
    first = sorted(REFERENCE.glob("church/church/*.json"))[0]
    (tmp_path / "renamed.json").write_bytes(first.read_bytes())
    (tmp_path / "torn.json").write_bytes(first.read_bytes()[:3000])
    (tmp_path / "package.json").write_text("{}")
    said = cli("verify", str(tmp_path), "--sample", "0")
    assert said.code == 5
    assert "torn.json cannot be read as a record" in " ".join(said.out.split())
    assert "renamed.json" in said.out and "package.json" not in said.out
    assert "2 records: " in said.out


def test_what_is_more_than_a_prompt_is_said_not_to_be_drawn(cli) -> None:
    said = cli("run", *TINY, "--method", "none", "--attack", "cce:steps=1", "--task", "church")
    assert said.code == 0, said.err
    path = one(Path("results"), "none--cce--*.json")
    assert "found again" in cli("verify", str(path), "--sample", "1").out  # it is in the cache
    import shutil

    shutil.rmtree("cache")
    again = cli("verify", str(path), "--sample", "1")
    assert again.code == 0
    assert "the attack changed the embedding, which a record does not hold" in again.out


# ---------------------------------------------------------------------------- handed in
def handed_in(cli, name: str, text: str, record: Path):
    Path(name).write_text(text)
    return cli("submit", str(record), name, "--label", "mine")


def test_texts_that_are_handed_in_become_a_record(cli, attacked: Path) -> None:
    first = read(attacked)
    ids = [row.id for row in first.rows]
    text = f'id,adversarial,seed\n{ids[0]},"a church, lo",7\n{ids[2]},a steeple,8\n'
    said = handed_in(cli, "mine.csv", text, attacked)
    assert said.code == 0, said.err
    assert "submitted" in said.out
    path = one(Path("results"), "*--submitted--*.json")
    record = read(path)
    assert [r.adversarial for r in record.rows] == ["a church, lo", first.rows[1].text, "a steeple"]
    assert [r.adversarial_seed for r in record.rows] == [7, first.rows[1].seed, 8]
    assert [r.trace["given"] for r in record.rows] == [True, False, True]
    assert {r.trace["budget"] for r in record.rows} == {"unknown"}
    assert record.cell.attack.params["label"] == "mine"
    assert record.cell.erase_key == first.cell.erase_key
    assert "It was there already" in handed_in(cli, "mine.csv", text, attacked).out
    assert cli("verify", str(path), "--sample", "3").code == 0
    costs = cli("report", "--costs").out
    assert re.search(r"submitted .*unknown +unknown", costs), costs
    # It counts for the best known prompt attack: a prompt is erased only if no attack brings it back.
    best = best_known([first, record])
    for row, a, b in zip(best, first.rows, record.rows, strict=True):
        assert row.success is (a.success or b.success)
    # The same in JSONL.
    lines = "".join(
        json.dumps({"id": r.id, "text": r.adversarial, "seed": r.adversarial_seed}) + "\n"
        for r in (record.rows[0], record.rows[2])
    )
    assert handed_in(cli, "mine.jsonl", lines, attacked).code == 0
    both = [r for r in Store(Path("results/local")) if r.cell.attack.name == "submitted"]
    assert len(both) == 2
    assert [r.own for r in both[0].rows] == [r.own for r in both[1].rows]
    assert [r.attacked for r in both[0].rows] == [r.attacked for r in both[1].rows]


BAD = (
    (
        "a.csv",
        "id,adversarial\nchurch-999,lo\n",
        "expected ids of the cell's prompts, got 1 other: church-999",
    ),
    ("a.csv", "id,adversarial\nchurch-001,lo\nchurch-001,la\n", "'church-001' is there twice"),
    ("a.csv", "words\nlo\n", "a.csv"),
    ("a.csv", "", "a.csv"),
    ("a.jsonl", "", "a.jsonl"),
    ("a.jsonl", "[1]\n", "a.jsonl:1: expected a JSON object with id and text"),
    ("a.jsonl", '{"id": "church-001"}\n', "a.jsonl: object 1 has no 'text'"),
    ("a.jsonl", '{"id": "church-001", "text": 3}\n', "a.jsonl:1: expected a JSON object"),
    ("a.jsonl", '{"id": "church-001", "text": "x", "seed": -4}\n', "seed"),
    ("a.jsonl", "nonsense\n", "a.jsonl:1: expected a JSON object on each line"),
)


def test_a_bad_file_is_one_line(cli) -> None:
    record = next(REFERENCE.glob("church/church/esd--none--*.json"))
    for name, text, line in BAD:
        said = handed_in(cli, name, text, record)
        assert (said.code, len(said.err.strip().splitlines())) == (2, 1), said.err
        assert line in said.err


def test_only_target_tasks_are_attacked(cli) -> None:
    retain = next(REFERENCE.glob("retain/church/*.json"))
    said = handed_in(cli, "a.csv", "id,adversarial\nx,y\n", retain)
    assert (said.code, said.err) == (
        2, "error: retain is a retain task: only target tasks are attacked\n"
    )  # fmt: skip


@pytest.mark.parametrize("more", [("--guidance", "3"), ("--judge", "emoji-subject:top_k=2")])
def test_what_was_asked_for_besides_the_task_is_asked_for_again(cli, tmp_path, more) -> None:
    said = cli("run", "--model", "tiny-random", "--limit", "1", "--method", "none", "--attack", "none",
               "--task", "church", "--results", str(tmp_path / "r"), *more)  # fmt: skip
    assert said.code == 0, said.err
    (path,) = (tmp_path / "r").rglob("*.json")
    found = {finding.text: finding.state for finding in audit(path).findings}
    assert found["a request of today asks for the same cell"] == "ok"
