"""Records in the formats of others, held to their schemas and read by their own packages."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from bench import Concept
from bench.errors import SpecError
from bench.plan.cell import Cell
from bench.plugins.registry import Ref
from bench.report.interchange import Export, exported
from bench.store.metrics import Measurement, mcnemar, rate
from bench.store.record import Record, Row
from bench.store.store import Store

ROOT = Path(__file__).resolve().parent.parent
SCHEMAS = Path(__file__).parent / "schemas"
HOSTILE = '=cmd|" /C calc"!A0, <script>\n../../etc/passwd \x1b[2J'
NOW = 1_764_000_000.0


def result(
    method: str, successes: list[bool | None], attack="none", *, task="church", metric="asr", **cell
) -> Record:  # fmt: skip
    rows = tuple(
        Row(
            f"{task}-{n}",
            f"text {n}",
            n,
            5.0,
            success,
            own=None,
            adversarial="x y" if attack != "none" else None,
        )
        for n, success in enumerate(successes)
    )
    known = Cell(
        "emoji", "emoji-sd", "r", "fp32", Ref(method), Concept("church", "object"), task, "digest",
        len(rows), Ref(attack), 0,
    )  # fmt: skip
    return Record(replace(known, **cell), "ok", {metric: rate(successes)}, rows)


@pytest.fixture(scope="module")
def reference() -> list[Record]:
    return Store(ROOT / "results" / "reference").load()[0]


def hostile() -> Record:
    some = result("uce", [True, False, None], "random")
    cell = replace(
        some.cell, model="/somewhere/here/" + "x" * 200, task=HOSTILE, concept=Concept(HOSTILE, "object"),
        attack=Ref("lab/again", {"text": HOSTILE, "file": "/somewhere/here/f"}, files={"file": "0123"}),
        method=Ref("lab/" + HOSTILE),
    )  # fmt: skip
    rows = tuple(
        replace(row, id=HOSTILE + row.id, text=HOSTILE, adversarial=HOSTILE) for row in some.rows
    )
    return replace(some, cell=cell, rows=rows, protocol={"judge": HOSTILE})


def everything(reference) -> list[Record]:
    fid = {"fid": Measurement(13.6, 30_000), "kid": Measurement(-0.001, 30_000),
           "women": Measurement(0.5, 100, 0, 0.4, 0.6),
           "broken": Measurement(None, 0, failed="why")}  # fmt: skip
    coco = replace(result("esd", [False], task="coco"), measurements=fid, rows=())
    failed = replace(
        result("fmn", [], task="coco"), status="failed", measurements={}, reason="no luck"
    )
    return [*reference, coco, failed, hostile()]


# ---------------------------------------------------------------------------- Every Eval Ever
def schema(name: str):
    from jsonschema import Draft7Validator

    return Draft7Validator(json.loads((SCHEMAS / name).read_text()))


def test_every_eval_ever_files_fit_its_schemas(reference) -> None:
    made = exported("eee", everything(reference), now=NOW)
    whole, line = schema("eee-0.3.0.json"), schema("eee-0.3.0-instance.json")
    found = [path for path in made.files if path.endswith(".json")]
    models = {(r.cell.world, r.cell.erase_key, r.cell.dtype) for r in everything(reference)[:-2]}
    assert len(found) == len(models) + 1  # and the stranger; what failed has no file
    for path in found:
        data = json.loads(made.files[path])
        whole.validate(data)
        samples = data.get("detailed_evaluation_results")
        if not samples:
            continue
        raw = made.files[samples["file_path"]]
        assert hashlib.sha256(raw).hexdigest() == samples["checksum"]
        rows = [json.loads(row) for row in raw.splitlines()]
        assert len(rows) == samples["total_rows"]
        for row in rows[:3]:
            line.validate(row)
        assert {row["evaluation_id"] for row in rows} == {data["evaluation_id"]}


def test_every_eval_ever_scores_are_the_mean_of_its_samples() -> None:
    held = result("esd", [True, False, False, None])
    right = result("esd", [True, True, False], task="retain", metric="accuracy")
    made = exported("eee", [held, right], now=NOW)
    (path,) = (p for p in made.files if p.endswith(".json"))
    data = json.loads(made.files[path])
    rows = [
        json.loads(x)
        for x in made.files[data["detailed_evaluation_results"]["file_path"]].splitlines()
    ]
    asr, accuracy = data["evaluation_results"]
    for each in (asr, accuracy):
        scores = [
            r["evaluation"]["score"]
            for r in rows
            if r["evaluation_result_id"] == each["evaluation_result_id"]
        ]
        assert each["score_details"]["score"] == pytest.approx(sum(scores) / len(scores))
        assert each["score_details"]["uncertainty"]["num_samples"] == len(scores)
    assert asr["metric_config"]["lower_is_better"]
    assert not accuracy["metric_config"]["lower_is_better"]
    assert asr["score_details"]["details"]["unscored"] == "1"
    assert [r["evaluation"]["is_correct"] for r in rows] == [False, True, True, True, True, False]


def test_every_eval_ever_says_what_it_cannot_hold(reference) -> None:
    said = "\n".join(exported("eee", everything(reference), now=NOW).left_out)
    assert re.search(r"coco, esd, attack none \(\w+\), women: nobody says", said)
    assert re.search(r"coco, esd, attack none \(\w+\), broken: failed", said)
    assert re.search(r"coco, fmn, attack none \(\w+\): failed", said)


# ---------------------------------------------------------------------------- Hugging Face
def test_the_hubs_own_package_reads_the_results(reference) -> None:
    hub = pytest.importorskip("huggingface_hub")
    if not hasattr(hub, "parse_eval_result_entries"):
        pytest.skip("needs a huggingface_hub that knows .eval_results")
    made = exported("hf", everything(reference), dataset="lab/erasure", now=NOW)
    about = yaml.safe_load(made.files.pop("eval.yaml"))
    assert {"name", "description", "evaluation_framework", "tasks"} <= about.keys()
    tasks = {task["id"] for task in about["tasks"]}
    for path, raw in made.files.items():
        assert re.fullmatch(r"[\w-]+/\.eval_results/erasure-bench\.yaml", path)
        entries = hub.parse_eval_result_entries(yaml.safe_load(raw))
        assert entries
        assert {e.dataset_id for e in entries} == {"lab/erasure"}
        assert {e.task_id for e in entries} <= tasks
        assert {e.date for e in entries} == {"2025-11-24"}


def test_the_hubs_value_is_the_erasing_rate() -> None:
    made = exported("hf", [result("esd", [True, False, False, False])], dataset="a/b", now=NOW)
    (raw,) = (data for path, data in made.files.items() if path != "eval.yaml")
    (entry,) = yaml.safe_load(raw)
    assert entry["value"] == 0.75
    assert entry["dataset"]["task_id"] == "emoji-church-none-cer"
    for wrong in ("", "name", "a/b/c", "a b/c"):
        with pytest.raises(SpecError, match="OWNER/NAME"):
            exported("hf", [], dataset=wrong)


# ---------------------------------------------------------------------------- Croissant
def test_croissant_describes_its_files(reference, tmp_path) -> None:
    mlcroissant = pytest.importorskip("mlcroissant")
    records = [*reference[:6], *everything([])]
    made = exported("croissant", records, now=NOW)
    for name, data in made.files.items():
        (tmp_path / name).write_bytes(data)
    dataset = mlcroissant.Dataset(jsonld=tmp_path / "croissant.json")
    assert not dataset.metadata.ctx.issues.errors
    rows = list(dataset.records("results"))
    assert len(rows) == sum(max(1, len(r.measurements)) for r in records)
    known = {r.cell.id: r for r in records}
    for row in rows:
        record = known[row["results/cell"].decode()]
        m = record.measurements.get((row["results/measure"] or b"").decode())
        assert row["results/n"] == (m.n if m else 0)
        if m and m.value is not None:
            assert row["results/value"] == pytest.approx(m.value)
    prompts = list(dataset.records("prompts"))
    assert len(prompts) == sum(len(r.rows) for r in records)
    data = json.loads(made.files["croissant.json"])
    assert {key for key in data if key.startswith("rai:")} >= {
        "rai:dataCollection", "rai:dataLimitations", "rai:dataBiases", "rai:dataUseCases",
        "rai:personalSensitiveInformation",
    }  # fmt: skip


# ---------------------------------------------------------------------------- errorbars
def test_errorbars_reads_the_files_and_finds_our_rates(reference, tmp_path) -> None:
    from errorbars.compare import paired_compare
    from errorbars.io import load_csv

    made = exported("errorbars", everything(reference))
    for name, data in made.files.items():
        (tmp_path / name).write_bytes(data)
        load_csv(tmp_path / name)
    data = load_csv(tmp_path / "emoji-church-unlearndiff.csv")
    church = [
        r for r in reference if (r.cell.task, r.cell.attack.name) == ("church", "unlearndiff")
    ]
    assert sorted(data.models()) == sorted(r.cell.method.name for r in church)
    for r in church:
        scores = data.filter_model(r.cell.method.name).scores_by_question().values()
        assert sum(scores) / len(scores) == pytest.approx(1 - r.measurements["asr"].value)
    by_model = [data.filter_model(name).scores_by_question() for name in ("esd", "p-esd")]
    assert by_model[0].keys() == by_model[1].keys()
    compared = paired_compare(*(list(scores.values()) for scores in by_model))
    records = {r.cell.method.name: r.rows for r in church}
    pairs = [[row.success for row in records[name]] for name in ("esd", "p-esd")]
    assert compared.mcnemar.p_value == pytest.approx(mcnemar(*pairs))


def test_errorbars_models_have_names_of_their_own(tmp_path) -> None:
    from errorbars.io import load_csv

    same = [result("esd", [True, None, False]), result("esd", [False] * 3, seed=1),
            result("esd", [True] * 3, dtype="bf16"), result("esd", [True] * 2, revision="s")]  # fmt: skip
    made = exported("errorbars", same)
    ((name, raw),) = made.files.items()
    (tmp_path / name).write_bytes(raw)
    data = load_csv(tmp_path / name)
    assert len(data) == 10
    assert len(data.models()) == 4
    assert any("1 prompts" in line for line in made.left_out)
    other = result("esd", [True] * 3, task_digest="other")
    assert len(exported("errorbars", [same[0], other]).files) == 2  # other prompts, another file


# ---------------------------------------------------------------------------- hostile, and the command
@pytest.mark.parametrize("form", ["eee", "hf", "croissant", "errorbars"])
def test_hostile_text_stays_text_and_paths_stay_here(form, tmp_path: Path) -> None:
    made: Export = exported(form, [hostile()], dataset="a/b", now=NOW)
    assert made.files
    for path, raw in made.files.items():
        assert (tmp_path / path).resolve().is_relative_to(tmp_path.resolve())
        assert max(map(len, Path(path).parts)) < 200
        text = raw.decode()
        assert "\x1b" not in text
        assert "/somewhere/here" not in text
        if path.endswith(".csv"):
            cells = [cell for row in csv.reader(io.StringIO(text)) for cell in row]
            assert not any(cell.startswith("=") for cell in cells)
    assert not any("\x00" in line for line in made.left_out)


def test_the_command_writes_a_folder(cli, tmp_path: Path) -> None:
    results = tmp_path / "results"
    Store(results).put(result("esd", [True, False]))
    out = tmp_path / "out"
    said = cli("report", "--results", str(results), "--export", "errorbars", "--out", str(out))
    assert (said.code, said.err) == (0, "")
    assert [p.name for p in out.iterdir()] == ["emoji-church-none.csv"]
    for args in (("--export", "eee"), ("--out", str(out)), ("--export", "hf", "--out", str(out))):
        said = cli("report", "--results", str(results), *args)
        assert (said.code, said.err.count("\n")) == (2, 1), said.err
