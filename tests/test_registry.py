import importlib
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

import bench
from bench import Concept
from bench.core.announced import imported
from bench.errors import ParamError, PluginLoadError, ShadowedPackageError, UnknownNameError
from bench.plugins.registry import KINDS, Ref, create, load, names, resolved


def test_facade_loads_no_torch() -> None:
    code = "import bench, sys; print('torch' in sys.modules, 'pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


@pytest.mark.parametrize("kind", KINDS)
def test_table_matches_files(kind) -> None:
    folder = Path(bench.__file__).parent.parent / kind
    files = {p.stem for p in folder.glob("*.py") if not p.stem.startswith("_")}
    assert files == {v.split(":")[0].split(".")[1] for v in names(kind).values()}


@pytest.mark.parametrize("kind", KINDS)
def test_every_plugin_has_a_card_and_a_docstring(kind) -> None:
    for name in names(kind):
        cls = load(kind, name)
        assert cls.card.title
        assert cls.__doc__
        if name != "external":  # it has nothing to do without a file
            assert create(kind, Ref(name)) == cls()


def test_unknown_names_and_parameters() -> None:
    with pytest.raises(UnknownNameError, match="unknown method 'esdd'. Did you mean 'esd'"):
        create("methods", Ref("esdd"))
    with pytest.raises(
        ParamError, match=r"esd has no parameter stepz. Did you mean 'steps'\? It takes: batch"
    ):
        create("methods", Ref.parse("esd:stepz=3"))
    with pytest.raises(ParamError, match="esd: steps=many: Input should be a valid integer"):
        create("methods", Ref.parse("esd:steps=many"))
    with pytest.raises(ParamError, match="expected name:key=value,..., got 'esd:steps'"):
        Ref.parse("esd:steps")
    with pytest.raises(ParamError, match="esd: steps is given twice"):
        Ref.parse("esd:steps=1,lr=1,steps=2")


def test_defaults_are_resolved_by_world_and_kind() -> None:
    style = Concept("van gogh", "style")
    assert resolved("methods", Ref("esd"), style, "photo").params["params"] == "esd-x"
    photo = resolved("methods", Ref("esd"), Concept("church", "object"), "photo")
    assert (photo.params["steps"], photo.params["lr"], photo.params["params"]) == (
        1000,
        1e-5,
        "esd-u",
    )
    mine = resolved("methods", Ref.parse("esd:steps=7"), style, "photo")
    assert mine.params["steps"] == 7
    pesd = resolved("methods", Ref("p-esd"), Concept("nudity", "nsfw"), "photo").params
    assert [pesd[k] for k in ("steps", "lr", "gamma", "m0", "eps", "weight_decay")] == [
        250, 0.1, 10.0, 1.0, 1e-8, 0.01,
    ]  # fmt: skip
    for kind, tokens in (("nsfw", 5), ("style", 3), ("object", 3)):
        attack = resolved("attacks", Ref("unlearndiff"), Concept("x", kind), "photo")
        assert attack.params["tokens"] == tokens


def test_entry_points_are_named_by_distribution(monkeypatch) -> None:
    point = SimpleNamespace(name="mine", value="fakes:Raises", dist=SimpleNamespace(name="lab"))
    monkeypatch.setattr("bench.core.announced.entry_points", lambda group: [point])
    assert names("methods")["lab/mine"] == "fakes:Raises"
    assert create("methods", Ref("lab/mine")).card.title == "Raises"


def test_entry_points_are_read_once_for_each_search_path(monkeypatch) -> None:
    read: list[str] = []
    monkeypatch.setattr("bench.core.announced.entry_points", lambda group: read.append(group) or [])
    for _ in range(3):
        names("methods")
    assert read == ["bench.methods"]
    monkeypatch.syspath_prepend("elsewhere")
    names("methods")
    assert read == ["bench.methods"] * 2


def test_two_plugins_of_one_name(monkeypatch) -> None:
    dist = SimpleNamespace(name="lab")
    points = [SimpleNamespace(name="x", value=f"m{i}:X", dist=dist) for i in (1, 2)]
    monkeypatch.setattr("bench.core.announced.entry_points", lambda group: points)
    with pytest.raises(PluginLoadError, match=r"two methods are named 'lab/x': m1:X and m2:X"):
        names("methods")


def test_broken_plugin_says_why(monkeypatch) -> None:
    import methods

    monkeypatch.setitem(methods.PLUGINS, "broken", "methods.nowhere:X")
    with pytest.raises(PluginLoadError, match="cannot load method 'broken' .* No module named"):
        create("methods", Ref("broken"))
    monkeypatch.setitem(methods.PLUGINS, "function", "bench.store.metrics:rate")
    with pytest.raises(PluginLoadError, match="expected a frozen dataclass"):
        create("methods", Ref("function"))


@pytest.mark.parametrize("place", ["hidden_lab:Mine", "hidden_lab.mine:Mine"])
def test_a_folder_that_hides_a_package_is_named(monkeypatch, tmp_path: Path, place: str) -> None:
    (tmp_path / "hidden_lab").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["", *sys.path])
    with pytest.raises(
        PluginLoadError, match=f"the folder {tmp_path / 'hidden_lab'} for hidden_lab"
    ):
        imported("method 'lab/mine'", place)
    del sys.modules["hidden_lab"]
    (tmp_path / "hidden_lab" / "__init__.py").touch()
    importlib.invalidate_caches()
    with pytest.raises(PluginLoadError) as caught:
        imported("method 'lab/mine'", place)
    assert "Python took" not in str(caught.value)
    del sys.modules["hidden_lab"]


def test_shadowed_package(monkeypatch, tmp_path: Path) -> None:
    foreign = tmp_path / "methods"
    foreign.mkdir()
    (foreign / "__init__.py").write_text("PLUGINS = {}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "methods")
    with pytest.raises(ShadowedPackageError, match=f"'methods' resolves to {foreign}, expected"):
        names("methods")


def test_plug_ins_may_import_three_rooms_and_no_other() -> None:
    """The import contract names what is forbidden: all that is not on this list."""
    root = Path(bench.__file__).parents[1]
    contracts = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["importlinter"]
    (rule,) = [c for c in contracts["contracts"] if c["name"].startswith("Plug-ins see")]
    rooms = {p.stem for p in (root / "bench").iterdir() if p.suffix == ".py" or p.is_dir()}
    allowed = {"models", "emoji"}  # and the facade itself
    rooms -= {"__init__", "__main__", "__pycache__", *allowed}
    assert set(rule["forbidden_modules"]) == {*(f"bench.{r}" for r in rooms), "bench.emoji.recipe"}
