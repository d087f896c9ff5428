"""Tables of what judges saw: success by threshold, hits by label."""

import pytest

from bench.core.types import Concept
from bench.plan.cell import Cell
from bench.plugins.registry import Ref
from bench.report.frame import Figure, Line, Table
from bench.report.judging import label_table, threshold_curve
from bench.report.render import figure
from bench.store.metrics import rate
from bench.store.record import Record, Row
from bench.store.store import Store
from evaluators import nudenet


def said(**scores: float) -> dict:
    """Return the detail of a picture with one detection of each of these labels."""
    found = [nudenet.Detection(f"EXPOSED_{k.upper()}", v, (0, 0, 1, 1)) for k, v in scores.items()]
    return dict(nudenet.verdict(found, nudenet.PROFILES["unlearndiffatk"]).detail)


def record(method: str, attack: str, pairs: list[tuple[dict, dict]]) -> Record:
    """Return a record whose rows have these details of own and last image."""
    cell = Cell("photo", "sd14", "r", "fp32", Ref(method), Concept("nudity", "nsfw"), "nudity", "d",
                len(pairs), Ref(attack), 0)  # fmt: skip
    rows = tuple(
        Row(str(i), "text", i, 7.5, None, own=0.0, detail=last, own_detail=own)
        for i, (own, last) in enumerate(pairs)
    )
    return Record(cell, "ok", {"asr": rate([row.success for row in rows])}, rows)


BAD: dict = {"error": "OSError: truncated"}


def shown(line: Line, table: Table) -> tuple[str, ...]:
    """Return a line's figures as a person reads them."""
    return tuple(figure(f, compact=table.compact) for f in line.figures)


def test_the_curve_counts_own_and_adversarial_images() -> None:
    plain = record(
        "esd", "none", [({}, said(feet=0.62)), ({}, said(belly=0.3)), ({}, said()), ({}, BAD)]
    )
    attacked = record(
        "esd", "unlearndiff", [(said(feet=0.62), said(feet=0.62)), (said(belly=0.3), said(belly=0.7)),
                               (said(), said(feet=0.8)), (BAD, said(feet=0.4))],
    )  # fmt: skip
    table = threshold_curve([attacked, plain])
    rows = {
        line.names[2]: dict(zip(table.columns, shown(line, table), strict=True))
        for line in table.lines
    }
    assert list(rows) == ["none", "unlearndiff"]
    assert table.columns[1:3] == (">.25", ">.30") and table.columns[-1] == ">.80"
    none, attack = rows["none"], rows["unlearndiff"]
    # Of three readable images .62 and .3 lie above .25, only .62 above .30.
    # Of the fourth nothing is known, which is more than 5 %: a mark says so.
    assert (none[">.25"], none[">.30"], none[">.60"], none[">.65"]) == (
        ".67?", ".33?", ".33?", ".00?",
    )  # fmt: skip
    # The fourth has an image that cannot be read: known at .4 and below, unknown above.
    assert (attack[">.35"], attack[">.45"], attack[">.65"], attack[">.80"]) == (
        "1.00", "1.00?", ".67?", ".00?",
    )  # fmt: skip


def test_the_curve_leaves_out_what_does_not_know() -> None:
    old = record("esd", "unlearndiff", [({}, said(feet=0.6))])
    other = record("esd", "none", [({}, {"found": "church", "probability": 0.9})])
    assert threshold_curve([old, other]).lines == ()


def test_labels_count_images_and_detections() -> None:
    two = nudenet.verdict(
        [nudenet.Detection("EXPOSED_FEET", s, (0, 0, 1, 1)) for s in (0.9, 0.7, 0.3)],
        nudenet.PROFILES["unlearndiffatk"],
    ).detail
    base = record("none", "none", [({}, dict(two)), ({}, said(feet=0.8, belly=0.6)), ({}, BAD)])
    erased = record("esd", "none", [({}, said(belly=0.55)), ({}, said(feet=0.4)), ({}, said())])
    table = label_table([erased, base])
    assert (table.names, table.columns) == (("task", "label"), ("none", "esd"))
    assert [(*line.names, *shown(line, table)) for line in table.lines] == [
        ("nudity", "EXPOSED_BELLY", "1 (1)", "1 (1)"),
        ("nudity", "EXPOSED_FEET", "2 (3)", "0 (0)"),
        ("nudity", "any", "2 (4)", "1 (1)"),
    ]
    assert table.legend == "N=3; 1 image could not be scored"
    emoji = record("uce", "none", [({}, {"found": {"foot": 0.9, "eye": 0.6}, "highest": 0.9})])
    assert label_table([emoji]).lines[-1].names == ("nudity", "any")
    assert label_table([emoji]).lines[-1].figures == (Figure(1, 1),)


def test_report_prints_them(cli, tmp_path) -> None:
    Store(tmp_path).put(record("esd", "none", [({}, said(feet=0.62)), ({}, said())]))
    curve = cli("report", "--results", str(tmp_path), "--curve", "--format", "csv")
    assert curve.out.splitlines()[1] == "nudity,esd,none,N,2,,,,,,,,ok,"
    assert curve.out.splitlines()[2].startswith("nudity,esd,none,>.25,0.5,0.0945312")
    labels = cli("report", "--results", str(tmp_path), "--labels", "--format", "csv")
    assert labels.out.split("\n")[1:3] == [
        "nudity,EXPOSED_FEET,esd,1,,,2,0,,1,,ok,", "nudity,any,esd,1,,,2,0,,1,,ok,",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("option", "needs"),
    [
        (
            "--curve",
            "expected records of a judge that gives scores, as of `bench run --task nudity`",
        ),
        ("--labels", "expected records of a judge that finds labels"),
        ("--costs", "expected records of attacks, as of `bench run --attack unlearndiff`"),
        ("--transfer", "expected records of `bench run --attack transfer:source=RECORD.json`"),
        ("--floors", "expected records of `bench run --attack unlearndiff --floors`"),
        ("--seeds", "expected records of several seeds, as of `bench run --seed 0 --seed 1`"),
    ],
)
def test_a_table_without_records_says_what_to_run(cli, tmp_path, option: str, needs: str) -> None:
    Store(tmp_path).put(record("esd", "none", [({}, {"found": "church"})]))
    said = cli("report", "--results", str(tmp_path), option)
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith(f"error: {option}: {needs}") and said.err.count("\n") == 1
