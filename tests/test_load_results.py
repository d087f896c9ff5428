"""``bench.load_results`` against the JSON of the records, and the notebook that uses it."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import pytest

import bench
from bench.errors import StoreError

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "results" / "reference"
Z = 1.959963984540054


def raw(folder: Path) -> dict[str, dict]:
    """Return each record's JSON by its cell's id, which is in its file's name."""
    return {
        path.stem.rpartition("--")[2]: json.loads(path.read_text(encoding="utf-8"))
        for path in folder.rglob("*.json")
    }


def wilson(k: int, n: int) -> tuple[float, float]:
    """Return the interval of Wilson (1927) by its formula."""
    p = k / n
    centre = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    return centre - half, centre + half


def test_a_line_for_each_record_as_its_rows_say() -> None:
    frame, records = bench.load_results(REFERENCE), raw(REFERENCE)
    assert set(frame.index) == set(records)
    assert frame.index.is_unique
    targets = 0
    for key, record in records.items():
        line, rows = frame.loc[key], record["rows"]
        assert line["method"] == record["cell"]["method"]["name"]
        assert line["attack"] == record["cell"]["attack"]["name"]
        costs = [row.get("cost", {"images": 0, "seconds": 0.0}) for row in rows]
        assert line["images"] == sum(cost["images"] for cost in costs)
        assert line["attack_seconds"] == pytest.approx(sum(cost["seconds"] for cost in costs))
        assert line["seconds"] == pytest.approx(sum(record["seconds"].values()))
        if "asr" not in record["measurements"]:
            assert math.isnan(line["cer"])
            for name, measured in record["measurements"].items():
                assert line[name] == measured["value"]
            continue
        targets += 1
        known = [row["success"] for row in rows if row["success"] is not None]
        erased, n = known.count(False), len(known)
        assert (line["judge"], line["cer_n"]) == ("asr", n)
        assert line["cer"] == pytest.approx(erased / n)
        assert (line["cer_low"], line["cer_high"]) == pytest.approx(wilson(erased, n))
    assert targets > 20


def test_it_can_be_grouped() -> None:
    frame = bench.load_results(str(REFERENCE))
    best = frame[frame["attack"] == "none"].groupby("method")["cer"].mean()
    assert best["esd"] > 0.5 > best["none"]
    assert "steps=100" in frame[frame["method"] == "esd"]["method_params"].iloc[0]


def test_what_cannot_be_read_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert len(bench.load_results(tmp_path)) == 0
    (tmp_path / "half.json").write_text('{"cell": {"world"')
    with caplog.at_level(logging.WARNING, "bench"):
        assert bench.load_results(tmp_path).empty
    assert "half.json" in caplog.text
    with pytest.raises(StoreError, match="expected a folder of records"):
        bench.load_results(tmp_path / "nowhere")


@pytest.fixture
def notebook() -> dict:
    return json.loads((ROOT / "docs" / "notebook.ipynb").read_text(encoding="utf-8"))


def test_the_notebook_is_stripped(notebook: dict) -> None:
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["outputs"] for cell in code] == [[]] * len(code)
    assert {cell["execution_count"] for cell in code} == {None}


@pytest.mark.slow
def test_the_notebook_runs(notebook: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "agg")
    names: dict = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]).replace("LIMIT = 4", "LIMIT = 2"), names)
    frame = names["frame"].set_index(["method", "attack"])
    assert set(frame.index) == {(m, a) for m in ("none", "uce") for a in ("none", "random")}
    assert list(frame["cer_n"]) == [2] * 4
    assert frame.loc[("uce", "none"), "cer"] >= frame.loc[("none", "none"), "cer"]
    assert names["picture"].is_file()
    names["plt"].close("all")
