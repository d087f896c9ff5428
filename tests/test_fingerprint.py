"""A plug-in whose code was edited gets new cells: nothing that its old code found is taken for its own."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.engine.runner import Runner
from bench.engine.settings import Settings
from bench.plan.cell import Cell
from bench.plan.plan import Job, plan
from bench.plan.spec import Spec
from bench.plugins import fingerprint
from bench.plugins.registry import Ref, load
from bench.store.artifacts import Artifacts
from bench.tasks.tasks import load_task

PLUGIN = '''
from dataclasses import dataclass
from typing import ClassVar

from bench import Card, Concept, Context, Model


@dataclass(frozen=True)
class Mine:
    """Shrinks cross-attention, as in CONTRIBUTING.md."""

    card: ClassVar = Card("Mine", "")

    strength: float = 1.0

    def erase(self, model: Model, concept: Concept, ctx: Context) -> Model:
        """Edit the model, which is a private copy, and return it."""
        for weight in model.parameters("esd-x").values():
            weight.data.mul_(1 - 0.01 * self.strength)
        return model
'''


def cell_of(method: str = "none", attack: str = "none") -> Cell:
    return job_of(method, attack).cell


def job_of(method: str, attack: str = "none") -> Job:
    spec = Spec("tiny-random", (Ref(method),), (Ref(attack),), ("church",), limit=1)
    return next(iter(plan(spec)))


def forget(*modules: str) -> None:
    """Do what a new process does."""
    fingerprint.source_digest.cache_clear()
    fingerprint._place.cache_clear()
    fingerprint._spec.cache_clear()
    importlib.invalidate_caches()
    for module in modules:
        sys.modules.pop(module, None)


def test_an_edited_plugin_of_another_distribution(tmp_path: Path, monkeypatch) -> None:
    """CONTRIBUTING's own example, 0.01 made 0.20."""
    place = SimpleNamespace(name="mine", value="my_plugin:Mine", dist=SimpleNamespace(name="lab"))
    monkeypatch.setattr(
        "bench.core.announced.entry_points",
        lambda group: [place] if group == "bench.methods" else [],
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    settings = Settings(artifacts=Artifacts(tmp_path / "cache"))
    cells, digests = [], []
    for code in (PLUGIN, PLUGIN.replace("0.01", "0.20"), PLUGIN):
        (tmp_path / "my_plugin.py").write_text(code)
        forget("my_plugin")
        job = job_of("lab/mine")
        cells.append(job.cell)
        result = Runner(settings).run(job)
        assert result.status == "ok", result.reason
        digests.append(result.erasure["digest"])
    first, second, again = cells
    assert first == again
    assert digests[0] == digests[2] != digests[1]
    for key in ("id", "erase_key", "attack_key"):
        assert getattr(first, key) != getattr(second, key)
    forget("my_plugin")


MINE = PLUGIN.replace("0.01", "K")
HELPER = "K = 0.01\n"
LAYOUTS = {
    "a package's own __init__": {"lab/__init__.py": f"from .k import K\n{MINE}", "lab/k.py": HELPER},
    "through the package": {
        "lab/__init__.py": "from .k import K\nfrom .mine import Mine",
        "lab/mine.py": f"import lab\n{MINE.replace('K', 'lab.K')}",
        "lab/k.py": HELPER,
    },
    "of a folder beside": {
        "lab/__init__.py": "from lab.a.mine import Mine",
        "lab/a/__init__.py": "",
        "lab/a/mine.py": f"from ..b import K\n{MINE}",
        "lab/b/__init__.py": "from .k import K",
        "lab/b/k.py": HELPER,
    },
    "a module beside": {"lab.py": f"from lab_k import K\n{MINE}", "lab_k.py": HELPER},
    "not in UTF-8": {"lab.py": f"# coding: latin-1\n# \xfc\n{HELPER}{MINE}"},
    "a helper that is broken": {
        "lab/__init__.py": f"def later():\n    from . import bad\n\n\n{HELPER}{MINE}",
        "lab/bad.py": "def (",
    },
    "a helper that raises": {
        "lab/__init__.py": f"def later():\n    from .gpu import fast\n\n\n{HELPER}{MINE}",
        "lab/gpu/__init__.py": "raise RuntimeError('needs a GPU')",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_whatever_a_plugin_imports_of_its_own(tmp_path: Path, monkeypatch, name: str) -> None:
    place = SimpleNamespace(name="mine", value="lab:Mine", dist=SimpleNamespace(name="lab"))
    monkeypatch.setattr(
        "bench.core.announced.entry_points",
        lambda group: [place] if group == "bench.methods" else [],
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    ids = []
    for value in ("0.01", "0.20", "0.01"):
        for file, text in LAYOUTS[name].items():
            path = tmp_path / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text.replace("0.01", value), encoding="latin-1")
        forget(*[module for module in sys.modules if module.partition(".")[0] in ("lab", "lab_k")])
        ids.append(cell_of("lab/mine").id)
    assert ids[0] == ids[2] != ids[1]
    forget(*[module for module in sys.modules if module.partition(".")[0] in ("lab", "lab_k")])


JUDGE = load_task("church", "emoji").measures[0].evaluator.name


@pytest.mark.parametrize(
    ("module", "changed"),
    [
        ("methods.esd", ("id", "erase_key", "attack_key")),
        ("methods._esd", ("id", "erase_key", "attack_key")),
        ("attacks.unlearndiff", ("id", "attack_key")),
        ("attacks._token_search", ("id", "attack_key")),
        (load("evaluators", JUDGE).__module__, ("id", "attack_key")),
        ("methods.fmn", ()),
    ],
)
def test_an_edited_plugin_of_ours(monkeypatch, module: str, changed: tuple[str, ...]) -> None:
    forget()
    released = cell_of("esd", "unlearndiff")
    assert (released.method.source, released.attack.source, released.sources) == ("", "", {})
    honest = fingerprint._source

    def source(path: Path) -> bytes:
        edit = b"\n# edited\n" if path == fingerprint._file(module) else b""
        return honest(path) + edit

    monkeypatch.setattr(fingerprint, "_source", source)
    forget()
    now = cell_of("esd", "unlearndiff")
    keys = ("id", "erase_key", "attack_key")
    assert tuple(key for key in keys if getattr(now, key) != getattr(released, key)) == changed
    forget()
