"""Records on disk: what can be read, and what is passed over with a line that names it."""

from __future__ import annotations

import errno
import gc
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from test_report import result

from bench.errors import StoreError
from bench.store.agreement import disagreement
from bench.store.files import write_parts
from bench.store.metrics import Measurement, rate
from bench.store.record import Record
from bench.store.store import Store

RECORD = {"schema_version": 1, "cell": {}, "status": "ok"}


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


def changed(text: str, **values: object) -> str:
    return json.dumps({**json.loads(text), **values})


DAMAGE = {
    "cut": lambda text: text[:100],
    "empty": lambda text: "",
    "binary": lambda text: "\ud800",
    "list": lambda text: "[]",
    "number": lambda text: "3",
    "null": lambda text: "null",
    "no cell": lambda text: '{"name": "a package"}',
    "empty cell": lambda text: json.dumps(RECORD),
    "version in words": lambda text: changed(text, schema_version="2"),
    "version x": lambda text: changed(text, schema_version="x"),
    "version null": lambda text: changed(text, schema_version=None),
    "version list": lambda text: changed(text, schema_version=[1]),
    "version true": lambda text: changed(text, schema_version=True),
    "version negative": lambda text: changed(text, schema_version=-1),
    "newer": lambda text: changed(text, schema_version=2),
    "no measurements": lambda text: changed(text, measurements={}),
    "measurement list": lambda text: changed(text, measurements=[]),
    "nan": lambda text: text.replace('"value": 0.5', '"value": NaN'),
    "infinity": lambda text: text.replace('"low": ', '"low": -Infinity, "lower": '),
    "overflow": lambda text: text.replace('"value": 0.5', '"value": 1e999'),
    "huge": lambda text: text.replace('"value": 0.5', '"value": 1' + "0" * 400),
    "huge digits": lambda text: text.replace('"seed": 0', '"seed": 1' + "0" * 5000),
    "nan in a trace": lambda text: text.replace('"trace": {}', '"trace": {"loss": NaN}', 1),
    "cost without end": lambda text: text.replace('"seconds": 0.0', '"seconds": 1e999', 1),
    "seconds without end": lambda text: text.replace('"attack": 3.0', '"attack": 1e999'),
    "deep trace": lambda text: text.replace('"trace": {}', f'"trace": {{"x": {nested(250)}}}', 1),
    "negative unscored": lambda text: text.replace('"unscored": 0', '"unscored": -1'),
    "negative n": lambda text: text.replace('"n": 2', '"n": -2'),
    "deep": lambda text: changed(text, reason=json.loads(nested(500))),
    "deeper": lambda text: nested(100_000),
    "rows": lambda text: changed(text, rows={"a": 1}),
    "status": lambda text: changed(text, status="done"),
    "seconds": lambda text: changed(text, seconds={"attack": "soon"}),
    "method": lambda text: changed(text, cell={**json.loads(text)["cell"], "method": "esd"}),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_file_that_is_no_record_is_passed_over(tmp_path: Path, kind: str, cli) -> None:
    store = Store(tmp_path / "records")
    store.put(result("none", [True, False]))
    path = store.put(result("none", [True, False], task="tench"))
    text = path.read_text()
    damaged = DAMAGE[kind](text)
    assert damaged != text
    path.write_bytes(damaged.encode("utf-8", "surrogatepass"))
    records, lines = store.load()
    assert [r.cell.task for r in records] == ["church"]
    (line,) = lines
    assert str(path) in line
    assert "delete" not in line
    said = cli("report", "--results", str(tmp_path / "records"))
    assert (said.code, said.err) == (0, f"warning: {line}\n")
    assert "church" in said.out


def test_a_damaged_record_is_kept_beside_the_new_one(tmp_path: Path, caplog) -> None:
    """What the one line says is what happens: the cell counts as missing, and nothing is lost."""
    record = result("none", [True, False])
    path = Store(tmp_path).put(record)
    for times, name in enumerate((f"{path.name}.damaged", f"{path.name}.damaged2"), start=1):
        path.write_text(f"cut {times}")
        caplog.clear()
        store = Store(tmp_path)
        assert record.cell not in store
        assert store.get(record.cell) is None
        assert path.read_text() == f"cut {times}"  # asking changes nothing
        (said,) = (each.getMessage() for each in caplog.records)
        assert said.startswith(f"{path} cannot be read as a record (")
        assert said.endswith(f"; it is computed again, and this file is kept as {name}")
        store.put(record)
        assert path.with_name(name).read_text() == f"cut {times}"
        assert store.load() == ([record], [])
    Store(tmp_path).put(record)
    assert len(list(path.parent.iterdir())) == 3  # a good one is replaced


def test_a_full_disk_asks_for_space(tmp_path: Path) -> None:
    def full() -> Iterator[bytes]:
        yield b"begun"
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(StoreError, match="No space left on device; free space there and give"):
        write_parts(tmp_path / "a.png", full())
    assert not list(tmp_path.iterdir())


def test_an_older_record_without_a_version_is_read(tmp_path: Path) -> None:
    path = Store(tmp_path).put(result("none", [False]))
    raw = json.loads(path.read_text())
    del raw["schema_version"]
    path.write_text(json.dumps(raw))
    assert Store(tmp_path).load()[1] == []


def test_many_foreign_files_are_one_line(tmp_path: Path) -> None:
    for n in range(9):
        (tmp_path / f"{n}.json").write_text("{}")
    records, (line,) = Store(tmp_path).load()
    assert records == []
    assert line.endswith("2.json and 6 more")


def test_what_the_store_writes_it_reads_again(tmp_path: Path) -> None:
    nan = float("nan")
    first = result("none", [True, False])
    odd = Record(
        first.cell,
        "ok",
        {"asr": rate([True, False]), "fid": Measurement(None, 0, 2, failed="no files")},
        rows=tuple(
            type(row)(**{**{f: getattr(row, f) for f in row.__slots__}, "trace": {"losses": [nan]}})
            for row in first.rows
        ),
        protocol={"judge": "body"},
    )
    Store(tmp_path).put(odd)
    (again,) = Store(tmp_path)
    assert again.measurements == odd.measurements
    assert again.protocol == {"judge": "body"}


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="expected a folder of records, there is none"):
        Store(tmp_path / "nowhere").load()


def test_the_search_for_cycles_is_on_again_after_reading(tmp_path: Path) -> None:
    """Off while a folder is read, because it takes longer than the reading; then as it was."""
    store = Store(tmp_path)
    store.put(result("none", [True, False]))
    try:
        for switch in (gc.disable, gc.enable):
            switch()
            before = gc.isenabled()
            assert len(store.load()[0]) == 1
            assert gc.isenabled() is before
        with pytest.raises(StoreError):
            Store(tmp_path / "nowhere").load()
        assert gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "edit",
    [
        ('"value": 0.25', '"value": 0.0'),
        ('"n": 4', '"n": 5'),
        ('"low": 0.0455', '"low": 0.1455'),
        ('"success": true', '"success": false'),
    ],
)
def test_a_record_whose_rows_do_not_give_its_rate_is_left_out(edit, tmp_path: Path, cli) -> None:
    store = Store(tmp_path)
    fine, other = result("none", [True, False, False, False]), result("p4d", [False] * 4)
    path, _ = store.put(fine), store.put(other)
    assert len(store.load()[0]) == 2
    before = path.read_text()
    path.write_text(before.replace(*edit, 1))
    assert path.read_text() != before
    records, (line,) = store.load()
    assert records == [other] and "its rows give 0" in line
    said = cli("report", "--results", str(tmp_path))
    assert said.code == 0 and said.err.count("warning: passed over: ") == 1
    assert cli("report", "--results", str(tmp_path), "--strict").code == StoreError.exit_code
    assert fine.cell not in store  # a run computes it again


def test_a_value_outside_its_interval_is_left_out(tmp_path: Path) -> None:
    fine = replace(
        result("none", []), measurements={"blacked-out": Measurement(0.5, 10, 0, 0.2, 0.8)}
    )
    wrong = replace(fine, measurements={"blacked-out": Measurement(0.9, 10, 0, 0.2, 0.8)})
    assert not disagreement(fine)
    assert "not in its interval" in disagreement(wrong)
