"""The library's entrances, which the command line uses as well."""

from __future__ import annotations

from pathlib import Path

import pytest

import bench
import methods
from bench import IncompatibleError, PluginError, Ref, Spec, SpecError
from bench.errors import UnknownNameError
from bench.models import load_model
from bench.store.store import Store

NONE = (Ref("none"),)
RANDOM = "random:draws=1,tokens=1"
MODEL = "tiny-random"


def test_a_matrix_is_what_the_command_line_computes(cli, tmp_path: Path) -> None:
    spec = Spec(MODEL, (Ref("none"), Ref("uce")), NONE, ("church", "retain"), limit=2)
    found = bench.run(spec, results=tmp_path / "mine", keep_images=False)
    assert (len(found), found.known, found.failed) == (4, 0, ())
    said = cli("run", "--model", MODEL, "--method", "none", "--method", "uce", "--attack", "none",
               "--task", "church", "--task", "retain", "--limit", "2", "--results", "theirs")  # fmt: skip
    assert said.code == 0, said.err
    theirs = {record.cell.id: record for record in Store(Path("theirs"))}
    assert [theirs[r.cell.id].measurements for r in found] == [r.measurements for r in found]
    again = bench.run(spec, results=tmp_path / "mine")
    assert (again.known, again.records) == (4, found.records)
    assert max(map(len, str(again).splitlines())) <= 80
    assert "uce" in str(again)


def test_a_broken_plug_in_is_among_the_records(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(methods.PLUGINS, "broken", "no_such_module:X")
    spec = Spec(MODEL, (Ref("broken"), Ref("none")), NONE, ("church",), limit=1)
    found = bench.run(spec, results=tmp_path)
    assert [r.status for r in found] == ["failed", "ok"]
    assert "No module named 'no_such_module'" in found.failed[0].reason
    with pytest.raises(PluginError, match="No module named 'no_such_module'"):
        bench.evaluate(MODEL, task="church", method="broken", limit=1)


def test_one_number_of_a_model_by_name() -> None:
    by_task = bench.evaluate(MODEL, task="church", attack=RANDOM, limit=2)
    by_concept = bench.evaluate(MODEL, concept="church", attack=RANDOM, limit=2)
    assert by_task == by_concept
    kept = bench.evaluate(MODEL, concept="church", attack=RANDOM, limit=2, results="cache/mine")
    assert kept.cell == by_task.cell and len(bench.load_results("cache/mine")) == 1
    assert by_task.measurements["asr"].n == 2
    assert (by_task.cell.method.name, by_task.cell.attack.name) == ("none", "random")
    assert [path.name for path in Path().iterdir()] == ["cache"]  # nothing else is written here
    with pytest.raises(UnknownNameError, match="unknown concept 'curch'. Did you mean 'church'"):
        bench.evaluate(MODEL, concept="curch")
    with pytest.raises(SpecError, match="task 'church' does not ask for 'tench'"):
        bench.evaluate(MODEL, concept="tench", task="church")
    with pytest.raises(IncompatibleError, match="in the sampler"):
        bench.evaluate(MODEL, task="church", method="negative-prompt", attack="cce", limit=1)


def test_one_number_of_a_pipeline_in_memory(tmp_path: Path) -> None:
    """An erased pipeline is judged as its folder is, and with a base as ``--unet`` is."""
    pipe = load_model(MODEL).pipe
    weight = pipe.unet.conv_out.weight
    weight.data.mul_(1.5)
    found = bench.evaluate(pipe, task="church", limit=2)
    assert (found.status, found.cell.method.name) == ("ok", "none")
    assert bench.evaluate(pipe, task="church", limit=2) == found

    on_base = bench.evaluate(pipe, base=MODEL, task="church", attack=RANDOM, limit=2)
    assert (on_base.cell.model, on_base.cell.method.name) == (MODEL, "external")
    external = Ref("external", on_base.cell.method.params)
    spec = Spec(MODEL, (external,), (Ref.parse(RANDOM),), ("church",), limit=2)
    (theirs,) = bench.run(spec, results=tmp_path / "records")
    assert theirs.status == "ok", theirs.reason
    assert theirs.erasure["tensors"] == 1  # what was changed above, and nothing else
    assert [r.adversarial for r in on_base.rows] == [r.adversarial for r in theirs.rows]
    assert on_base.measurements == theirs.measurements

    weight.data.mul_(1.1)
    other = bench.evaluate(pipe, task="church", limit=2)
    assert other.cell.revision != found.cell.revision  # other weights, another model
    with pytest.raises(SpecError, match="either base or method, got both"):
        bench.evaluate(pipe, base=MODEL, method="uce", task="church")
