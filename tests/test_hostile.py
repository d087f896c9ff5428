"""Inputs that a person or a machine may give by mistake: each ends in one line, none in a traceback.

Every entry is a kind of fault that trying the commands for real has shown. An entry says what is typed, in
a folder that ``files`` has filled, the exit code, and a word that the line must have.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bench.sources.catalog import EMOJI_WEIGHTS
from bench.store.store import Store

pytestmark = pytest.mark.usefixtures("few_steps")

RUN = "run --method none --attack none --task church --limit 1 --model tiny-random"
HEAD = "case_number,prompt,evaluation_seed\n"
DEEP = "[" * 100_000


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with everything that is wrong in one way each."""
    here = tmp_path
    texts = {
        "empty.csv": "",
        "head.csv": HEAD,
        "nothing.csv": "\n\n\n",
        "no-prompt.csv": "a,b\n1,2\n",
        "twice.csv": HEAD + "1,a church,1\n1,a church,2\n",
        "short-row.csv": HEAD + "1,a church\n",
        "long-row.csv": HEAD + "1,a church,3,4\n",
        "quote.csv": HEAD + '1,"a church,3\n',
        "seed-word.csv": HEAD + "1,a church,one\n",
        "seed-minus.csv": HEAD + "1,a church,-1\n",
        "seed-part.csv": HEAD + "1,a church,1.5\n",
        "seed-huge.csv": HEAD + f"1,a church,{2**64}\n",
        "seed-nan.csv": HEAD + "1,a church,nan\n",
        "guidance.csv": "id,prompt,seed,guidance\n1,a church,1,much\n",
        "guidance-nan.csv": "id,prompt,seed,guidance\n1,a church,1,nan\n",
        "guidance-inf.csv": "id,prompt,seed,guidance\n1,a church,1,inf\n",
        "two-texts.csv": "prompt,adv_prompt,seed\na church,x church,1\n",
        "escape.csv": "\x1b]0;title\x07,b\n1,2\n",
        "markup.csv": "[bold]x[/bold],:x:\n1,2\n",
        "notes.json": '{"a": 1}',
        "list.json": "[1, 2]",
        "deep.json": DEEP,
        "text.ckpt": "not a checkpoint",
        "text.safetensors": "not a checkpoint",
        "empty.safetensors": "",
        "a-file": "",
        "bad.toml": "x = = 1",
    }
    for name, text in texts.items():
        (here / name).write_text(text)
    (here / "latin.csv").write_bytes(HEAD.encode() + b"1,a ch\xfcrch,1\n")
    (here / "nul.csv").write_bytes(HEAD.encode() + b"1,a\0church,1\n")
    (here / "folder").mkdir()
    (here / "folder.safetensors").mkdir()
    (here / "loop").symlink_to(here / "loop")
    torch.save({"a": Path("x")}, here / "pickled.ckpt")
    torch.save({}, here / "nothing.pt")
    save_file({"a": torch.zeros(1)}, here / "stranger.safetensors")
    for kind in ("StableDiffusionXLPipeline", "FluxPipeline"):
        (here / kind / "unet").mkdir(parents=True)
        (here / kind / "model_index.json").write_text(json.dumps({"_class_name": kind}))
        (here / kind / "unet/config.json").write_text('{"sample_size": 8}')
    (here / "half").mkdir()
    (here / "half/model_index.json").write_bytes(
        (EMOJI_WEIGHTS / "model/model_index.json").read_bytes()
    )
    (here / "records").mkdir()
    return here


REQUESTS = {
    # names
    "method: unknown": (RUN.replace("none", "esdd", 1), 2, "esd"),
    "method: none given": ("run --attack none --task church", 2, "--method"),
    "method: empty": (RUN.replace("--method none", "--method ="), 2, "unknown"),
    "method: a path": (RUN.replace("none", "../../etc", 1), 2, "unknown"),
    "method: control characters": (RUN.replace("none", "\x1b[31mx", 1), 2, "unknown"),
    "method: markup": (RUN.replace("none", "[bold]x[/bold]", 1), 2, "[bold]x[/bold]"),
    "method: an emoji's name": (RUN.replace("none", "a:x:b", 1), 2, ":"),
    "method: very long": (RUN.replace("none", "x" * 5000, 1), 2, "unknown"),
    "attack: unknown": (RUN.replace("--attack none", "--attack unlearndif"), 2, "unlearndiff"),
    "task: unknown": (RUN.replace("church", "curch"), 2, "church"),
    "task: of the other world": (RUN.replace("church", "i2p"), 2, "unknown"),
    "task: retain alone": (RUN.replace("none", "esd", 1).replace("church", "retain"), 2, "--task"),
    "judge: unknown": (RUN + " --judge nudnet", 2, "nudenet"),
    "judge: a method": (RUN + " --judge esd", 2, "unknown"),
    "model: unknown": (RUN.replace("tiny-random", "sd15x"), 2, "unknown"),
    "world: unknown": (RUN + " --world moon", 2, "emoji"),
    # parameters
    "parameter: unknown": (RUN.replace("none", "esd:step=3", 1), 2, "steps"),
    "parameter: without a value": (RUN.replace("none", "esd:steps", 1), 2, "key=value"),
    "parameter: empty": (RUN.replace("none", "esd:steps=", 1), 2, "steps"),
    "parameter: a word": (RUN.replace("none", "esd:steps=many", 1), 2, "steps"),
    "parameter: a part": (RUN.replace("none", "esd:steps=1.5", 1), 2, "steps"),
    "parameter: negative": (RUN.replace("none", "esd:steps=-5", 1), 2, "steps"),
    "parameter: nan": (RUN.replace("none", "esd:lr=nan", 1), 2, "lr"),
    "parameter: infinite": (RUN.replace("none", "esd:lr=inf", 1), 2, "lr"),
    "parameter: out of range": (RUN.replace("none", "p-esd:threshold=5", 1), 2, "threshold"),
    "parameter: negative weight": (RUN.replace("none", "uce:lamb=-1", 1), 2, "lamb"),
    "parameter: no such choice": (RUN.replace("none", "esd:params=all", 1), 2, "params"),
    "parameter: twice": (RUN.replace("none", "esd:steps=1,steps=2", 1), 2, "steps"),
    "attack: no tokens": (RUN.replace("k none", "k unlearndiff:tokens=0"), 2, "tokens"),
    "attack: negative": (RUN.replace("k none", "k unlearndiff:iterations=-1"), 2, "iterations"),
    "attack: no source": (RUN.replace("k none", "k transfer"), 2, "source"),
    "attack: source missing": (RUN.replace("k none", "k transfer:source=no.csv"), 2, "no.csv"),
    "attack: source nested": (RUN.replace("k none", "k transfer:source=deep.json"), 2, "deep"),
    "external: nothing": (RUN.replace("none", "external", 1), 2, "unet"),
    # numbers
    "seed: negative": (RUN + " --seed -1", 2, "seed"),
    "seed: huge": (RUN + f" --seed {2**70}", 2, "seed"),
    "seed: a word": (RUN + " --seed one", 2, "seed"),
    "limit: none": (RUN.replace("--limit 1", "--limit 0"), 2, "limit"),
    "batch size: none": (RUN + " --batch-size 0", 2, "batch-size"),
    "workers: none": (RUN + " --workers 0", 2, "workers"),
    "dtype: unknown": (RUN + " --dtype fp8", 2, "fp32"),
    "device: unknown": (RUN + " --device gpu", 2, "device"),
    "device: not here": (RUN + " --device cuda:99", 2, "device"),
    "device: without data": (RUN + " --device meta", 2, "device"),
    # prompt files
    **{
        f"prompts: {name}": (f"{RUN} --prompts {name}", 2, name)
        for name in (
            "missing.csv", "empty.csv", "head.csv", "nothing.csv", "no-prompt.csv", "twice.csv",
            "short-row.csv", "long-row.csv", "quote.csv", "seed-word.csv", "seed-minus.csv",
            "seed-part.csv", "seed-huge.csv", "seed-nan.csv", "guidance.csv", "guidance-nan.csv",
            "guidance-inf.csv", "two-texts.csv", "escape.csv", "markup.csv", "latin.csv",
            "folder", "loop", "a-file",
        )
    },
    "prompts: for two tasks": (RUN + " --task tench --prompts head.csv", 2, "--prompts"),
    # models
    "model: no folder": (RUN.replace("tiny-random", "./no/where"), 2, "no/where"),
    "model: an empty folder": (RUN.replace("tiny-random", "folder"), 2, "folder"),
    "model: half a folder": (RUN.replace("tiny-random", "half"), 2, "half"),
    "model: XL": (RUN.replace("tiny-random", "StableDiffusionXLPipeline"), 2, "XL"),
    "model: flux": (RUN.replace("tiny-random", "FluxPipeline"), 2, "Flux"),
    "model: text": (RUN.replace("tiny-random", "a-file"), 2, "a-file"),
    # denoisers from elsewhere
    **{
        f"unet: {name}": (f"{RUN.replace('--method none', f'--unet {name}')}", code, name)
        for name, code in {
            "missing.pt": 2, "text.safetensors": 3, "text.ckpt": 3, "empty.safetensors": 3,
            "stranger.safetensors": 3, "nothing.pt": 3, "pickled.ckpt": 3, "folder": 3, "loop": 2,
        }.items()
    },
    # assets
    "asset: no path": (RUN + " --asset inception", 2, "NAME=PATH"),
    "asset: unknown": (RUN + " --asset incepton=a-file", 2, "inception"),
    "asset: missing": (
        "run --model tiny-random --world photo --method none --attack none --task church "
        "--asset resnet50-ms=no", 2, "resnet50-ms",
    ),
    "assets: unknown model": ("assets --model sd99", 2, "unknown"),
    "assets: unknown task": ("assets --task nothing", 2, "unknown"),
    "assets: fetch of what is on no hub": ("assets --fetch nudenet-best", 4, "nudenet-best"),
    # where results go
    "results: a file": (RUN + " --results a-file", 5, "a-file"),
    "results: below a file": (RUN + " --results a-file/x", 5, "a-file"),
    "results: a loop": (RUN + " --results loop", 5, "loop"),
    "results: too long a name": (RUN + " --results " + "x" * 300, 5, "xxx"),
    "results: a kernel's folder": (RUN + " --results /proc/nothing", 5, "/proc"),
    # reports
    "report: no folder": ("report --results no", 2, "no"),
    "report: a file": ("report --results a-file", 2, "a-file"),
    "report: an empty folder": ("report --results folder", 2, "folder"),
    "report: format": ("report --format pdf", 2, "format"),
    "report: no such task": ("report --results folder --task nothing", 2, "nothing"),
    # other commands
    "list: unknown": ("list method", 2, "methods"),
    "show: unknown": ("show methods esdd", 2, "esd"),
    "show: an unknown task": ("show tasks curch", 2, "church"),
    "plan: a bad parameter": ("plan --method esd:lr=-1 --attack none --task church", 2, "lr"),
    "erase: an unknown concept": ("erase --method uce --concept curch --out d", 2, "church"),
    "erase: an unknown kind": ("erase --method uce --concept x --kind y --out d", 2, "kind"),
    "erase: several as one phrase": (
        "erase --method uce --concept a,b --kind object --out d", 2, "concept",
    ),
    "erase: onto a file": (
        "erase --method none --concept church --model tiny-random --out a-file/x", 5, "a-file",
    ),
    "apply: no delta": ("apply no --export m", 5, "no"),
    "apply: a folder without one": ("apply folder --export m", 5, "folder"),
    "apply: text": ("apply text.safetensors --export m", 5, "text.safetensors"),
    "apply: a stranger's": ("apply stranger.safetensors --export m --force", 5, "fit"),
    "judge: no folder": ("judge no --task church", 2, "no"),
    "judge: an empty folder": ("judge folder --task church", 2, "folder"),
    "judge: an unknown task": ("judge half --task curch", 2, "half"),
    "speed: an unknown attack": ("speed attack --attack x", 2, "unknown"),
    "bytes that are no text": (RUN + " --prompts \udcff.csv", 2, "UTF-8"),
    "a concept that is no text": (
        "erase --method uce --kind object --out d --concept a\udcff", 2, "UTF-8",
    ),
    "no such command": ("rnu", 2, "rnu"),
    "no such option": (RUN + " --metod x", 2, "--metod"),
}  # fmt: skip


@pytest.mark.parametrize("what", REQUESTS)
def test_a_bad_request_is_one_line(cli, files: Path, what: str) -> None:
    typed, code, word = REQUESTS[what]
    said = cli(*typed.split(" "))
    lines = [line for line in said.err.splitlines() if line.strip()]
    assert said.code == code, said.err
    assert "Traceback" not in said.err
    assert "\x1b" not in said.err
    if code == 3:  # the cell fails, the table is printed
        assert any(word in line for line in lines), said.err
    else:
        assert len(lines) == 1, said.err
        assert word in lines[0]
    assert not list((files / "results").rglob("*.json")) or code == 3


CACHES = {"a file": "a-file", "below a file": "a-file/x", "a loop": "loop", "kernel": "/proc/no"}


@pytest.mark.parametrize("what", CACHES)
def test_a_cache_that_cannot_be_written_is_said_before_any_work(
    cli, files: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setenv("BENCH_CACHE", CACHES[what])
    said = cli(*RUN.split())
    assert said.code == 5
    assert len(said.err.strip().splitlines()) == 1
    assert CACHES[what].split("/")[0] in said.err


FOREIGN = {
    "notes": '{"a": 1}',
    "a list": "[1]",
    "a word": '"x"',
    "nothing": "",
    "half": '{"cell": {',
    "deep": DEEP,
    "newer": '{"schema_version": 99}',
    "a version in words": '{"schema_version": "2"}',
    "no version": '{"schema_version": null}',
    "a list of versions": '{"schema_version": [1]}',
    "not a number": '{"schema_version": NaN}',
    "huge": '{"schema_version": 1e999}',
    "no text": b"\xff\xfe\x00",
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_foreign_file_among_the_records_stops_no_report(cli, files: Path, what: str) -> None:
    assert cli(*RUN.split(), "--results", "records").code == 0
    data = FOREIGN[what]
    place = files / "records" / "foreign.json"
    place.write_bytes(data if isinstance(data, bytes) else data.encode())
    said = cli("report", "--results", "records")
    assert said.code == 0, said.err
    assert "church" in said.out
    assert "foreign.json" in said.err
    assert "delete" not in said.err
    assert place.exists()


@dataclass(frozen=True)
class Distribution:
    name: str


def plugin(monkeypatch: pytest.MonkeyPatch, family: str, name: str, value: str) -> str:
    """Announce a plug-in of another distribution; return what it is called."""
    point = EntryPoint(name, value, f"bench.{family}")
    object.__setattr__(point, "dist", Distribution("foreign"))
    monkeypatch.setattr(
        "bench.core.announced.entry_points",
        lambda group: [point] if group == f"bench.{family}" else [],
    )
    return f"foreign/{name}"


UNMAKEABLE = """
from dataclasses import dataclass
from typing import ClassVar
from bench import Card, Threat

@dataclass(frozen=True)
class X:
    card: ClassVar = Card("X", "")
    def __post_init__(self): raise RuntimeError("by design")

@dataclass(frozen=True)
class Exits:
    card: ClassVar = Card("X", "")
    threat: ClassVar = Threat("white", "prompt")
    def __post_init__(self): raise SystemExit(0)

@dataclass(frozen=True)
class Odd:
    card: ClassVar = Card("X", "")
    size: "Nowhere" = 3

@dataclass(frozen=True)
class Open:
    card: ClassVar = Card("X", "")
    size: int
"""
BROKEN = {
    "no module": ("methods", "no_such_module:X"),
    "no attribute": ("methods", "json:Nothing"),
    "no class": ("methods", "json:dumps"),
    "a syntax error": ("methods", "bad_syntax:X"),
    "an exit": ("methods", "exits_at_import:X"),
    "an interrupt": ("methods", "interrupts_at_import:X"),
    "no card": ("methods", "no_card:X"),
    "an exception that is none": ("methods", "bare:X"),
    "an exception without text": ("methods", "mute:X"),
    "no way to be made": ("methods", "unmakeable:X"),
    "an exit when it is made": ("attacks", "unmakeable:Exits"),
    "a type that is none": ("methods", "unmakeable:Odd"),
    "a value to be given": ("methods", "unmakeable:Open"),
    "an attack": ("attacks", "no_such_module:X"),
    "a judge": ("evaluators", "no_such_module:X"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_plug_in_is_named_and_stops_nobody_else(
    cli, files: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    (files / "bad_syntax.py").write_text("class X(:\n")
    (files / "exits_at_import.py").write_text("import sys\nsys.exit(7)\n")
    (files / "interrupts_at_import.py").write_text("raise KeyboardInterrupt\n")
    (files / "no_card.py").write_text(
        "from dataclasses import dataclass\n\n\n@dataclass(frozen=True)\nclass X:\n"
        "    def erase(self, model, concept, ctx):\n        return model\n"
    )
    (files / "bare.py").write_text("class B(BaseException): pass\nraise B\n")
    (files / "mute.py").write_text(
        "class E(Exception):\n    def __str__(self): raise RuntimeError\nraise E\n"
    )
    (files / "unmakeable.py").write_text(UNMAKEABLE)
    monkeypatch.syspath_prepend(str(files))
    family, value = BROKEN[what]
    name = plugin(monkeypatch, family, "broken", value)
    listed = cli("list", family)
    assert listed.code == 0, listed.err
    assert name in listed.out
    option = {"methods": "--method", "attacks": "--attack", "evaluators": "--judge"}[family]
    said = cli(*RUN.split(), option, name)
    assert "Traceback" not in said.err
    sys.modules.pop("no_card", None)
    if what == "a value to be given":  # by the user
        assert said.code == 2, said.err
        assert len(said.err.strip().splitlines()) == 1
        assert name in said.err
        return
    assert said.code == 3, said.err
    failed = [r for r in Store(files / "results/local") if r.status == "failed"]
    assert failed
    assert all(name in r.reason for r in failed)
    others = [r for r in Store(files / "results/local") if r.status == "ok"]
    assert len(others) == (0 if family == "evaluators" else 1)  # the matrix went on
    assert name in cli("plan", *RUN.split()[1:], option, name).out


FIELDS = {
    "several files": ("tuple[Path, ...] = (Path('d'),)", 3, "one Path"),
    "not finite": ("tuple[float, ...] = (float('nan'),)", 3, "finite"),
    "a class": ("object = object", 3, "data="),
    "a set": ("frozenset = frozenset({1})", 3, "data="),
    "a type that nobody can check": ("'Random' = None", 3, "broken"),
    "a text or a file": ("str | Path = Path('d')", 0, ""),
}


@pytest.mark.parametrize("what", FIELDS)
def test_a_plug_ins_field_of_a_kind_that_no_record_holds(
    cli, files: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    kind, code, word = FIELDS[what]
    (files / "d").mkdir()
    (files / "odd_field.py").write_text(
        "from dataclasses import dataclass\nfrom pathlib import Path\nfrom random import Random\n"
        "from typing import ClassVar\nfrom bench import Card\n\n\n@dataclass(frozen=True)\nclass X:\n"
        f"    card: ClassVar = Card('X', '')\n    data: {kind}\n\n"
        "    def erase(self, model, concept, ctx):\n        return model\n"
    )
    monkeypatch.syspath_prepend(str(files))
    name = plugin(monkeypatch, "methods", "broken", "odd_field:X")
    said = cli(*RUN.replace("none", name, 1).split())
    assert said.code == code, said.err
    assert word in said.err
    assert "Traceback" not in said.err
    sys.modules.pop("odd_field", None)


def test_what_a_plug_in_sets_when_it_is_imported_is_put_back(
    cli, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else records go to another folder, and every cell is computed in another type."""
    (files / "settles.py").write_text(
        "import os, torch\nos.chdir('/')\ntorch.set_default_dtype(torch.float64)\n"
        "torch.set_grad_enabled(False)\n" + UNMAKEABLE.partition("@dataclass")[0]
        + "@dataclass(frozen=True)\nclass X:\n    card: ClassVar = Card('X', '')\n"
    )  # fmt: skip
    monkeypatch.syspath_prepend(str(files))
    name = plugin(monkeypatch, "methods", "x", "settles:X")
    before = Path.cwd(), torch.get_default_dtype(), torch.is_grad_enabled()
    assert cli("plan", *RUN.split()[1:], "--method", name).code == 0
    assert (Path.cwd(), torch.get_default_dtype(), torch.is_grad_enabled()) == before
    sys.modules.pop("settles", None)


MISBEHAVING = {
    "raises": "raise ZeroDivisionError('by design')",
    "exits": "raise SystemExit(0)",
    "says that the user stopped": "raise KeyboardInterrupt",
    "ends a loop that is not its own": "raise GeneratorExit",
    "says that the request is wrong": "from bench import SpecError; raise SpecError('by design')",
    "closes what is printed to": "import sys; sys.stdout.close(); sys.stderr.close(); raise OSError",
    "returns nothing": "return None",
    "keeps a tensor in its notes": "import torch; model.notes['x'] = torch.zeros(2); return model",
    "keeps itself in its notes": "model.notes['x'] = model; return model",
    "makes weights that are no numbers": (
        "next(model.pipe.unet.parameters()).data.fill_(float('nan')); return model"
    ),
    "zeroes the autoencoder": (
        "[p.data.zero_() for p in model.pipe.vae.parameters()]; return model"
    ),
    "hooks the denoiser": (
        "model.pipe.unet.register_forward_hook(lambda m, i, o: (o[0] * 0,)); return model"
    ),
    "adds a module": ("import torch; model.pipe.unet.extra = torch.nn.Linear(2, 2); return model"),
    "resizes the vocabulary": "model.pipe.text_encoder.resize_token_embeddings(7); return model",
    "raises text that looks like markup": "raise ValueError('[bold]x[/bold] :x: \\x1b[31m')",
}


@pytest.mark.parametrize("what", MISBEHAVING)
def test_a_method_that_breaks_its_contract_fails_its_cell_alone(
    cli, files: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    module = f"misbehaves_{list(MISBEHAVING).index(what)}"
    (files / f"{module}.py").write_text(
        "from dataclasses import dataclass\nfrom typing import ClassVar\nfrom bench import Card\n\n\n"
        "@dataclass(frozen=True)\nclass X:\n    card: ClassVar = Card('X', '')\n\n"
        f"    def erase(self, model, concept, ctx):\n        {MISBEHAVING[what]}\n"
    )
    monkeypatch.syspath_prepend(str(files))
    name = plugin(monkeypatch, "methods", "x", f"{module}:X")
    said = cli("run", "--method", name, *RUN.split()[1:])
    by_name = {r.cell.method.name: r for r in Store(files / "results/local")}
    assert "Traceback" not in said.err
    assert "\x1b" not in said.err
    assert by_name["none"].status == "ok"
    clean = by_name["none"].measurements["asr"]
    assert (clean.n, clean.unscored) == (1, 0)
    if what == "zeroes the autoencoder" and said.code == 0:  # may be part of an erasure
        assert by_name[name].erasure["tensors"] > 0
        return
    assert said.code == 3, said.err
    assert by_name[name].status == "failed"
    assert name in by_name[name].reason
    assert not by_name[name].measurements


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-"])
def test_a_stream_that_is_closed_stops_nothing(files: Path, closed: str) -> None:
    import subprocess

    command = f"{Path(sys.executable).with_name('bench')} list tasks {closed}"
    done = subprocess.run(
        ["sh", "-c", command], cwd=files, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert ("church" in done.stdout) == (closed != ">&-")
