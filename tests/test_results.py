"""The committed records: each is what a request of today would name, so none is an orphan."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.plan.floors import FLOORS
from bench.plugins.registry import Ref, resolved
from bench.sources.catalog import revision
from bench.store.record import Record
from bench.store.store import read
from bench.tasks.tasks import load_task

ROOT = Path(__file__).resolve().parent.parent / "results"
RECORDS = [
    pytest.param(record, path, id=str(path.relative_to(ROOT)))
    for folder in sorted(ROOT.iterdir())
    if folder.is_dir() and folder.name != "local"
    for path in sorted(folder.rglob("*.json"))
    if (record := read(path))
]


@pytest.mark.parametrize(("record", "path"), RECORDS)
def test_a_request_of_today_has_the_cell_of_a_committed_record(record: Record, path: Path) -> None:
    cell = record.cell
    assert path.stem.endswith(f"--{cell.id}")
    assert revision(cell.model) == cell.revision
    assert load_task(cell.task, cell.world, limit=cell.prompts).digest == cell.task_digest
    for kind, ref in (("methods", cell.method), ("attacks", cell.attack)):
        asked = {"draws"} if ref.name in FLOORS else {"found_on", "found_by", "cell", "stream"}
        said = {name: value for name, value in ref.params.items() if name in asked}
        today = resolved(kind, Ref(ref.name, said), cell.concept, cell.world)  # type: ignore[arg-type]
        assert today.identity == ref.identity
