"""The whole flow on a tiny model: cache keys, contracts, resume."""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import fakes
import numpy as np
import pytest
import torch
from PIL import Image

import attacks
import evaluators
import methods
from bench import Adversarial, Context, Prompt, SamplerNoise
from bench.core.digest import digest
from bench.engine import provenance
from bench.engine.attack import CellAttack
from bench.engine.runner import Runner
from bench.engine.settings import Settings
from bench.models.delta import weights
from bench.models.diffusers import DiffusersModel
from bench.plan.cell import SEEDLESS
from bench.plan.plan import plan
from bench.plan.spec import Spec
from bench.plugins.registry import Ref, create, load
from bench.report.story import story
from bench.store.artifacts import Artifacts
from bench.store.metrics import Measurement, rate
from bench.store.store import Store
from bench.tasks.tasks import Measure, load_task

pytestmark = pytest.mark.usefixtures("few_steps")

FAST = Ref("esd", {"steps": 2, "batch": 2, "sampling_steps": 4, "reuse": 1})
QUICK = Ref("unlearndiff", {"iterations": 1, "tokens": 1})


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(batch_size=8, artifacts=Artifacts(tmp_path / "cache"))


def cells(*, method=Ref("none"), attack=Ref("none"), task="church", limit=2, **more):
    return list(plan(Spec("tiny-random", (method,), (attack,), (task,), limit=limit, **more)))


def plug(monkeypatch, family, name: str, cls: type) -> Ref:
    monkeypatch.setitem(family.PLUGINS, name, f"fakes:{cls.__name__}")
    return Ref(name)


def judge_with(monkeypatch, name: str) -> None:
    """Replace the church task's judge."""
    from bench.plan.plan import load_task as load

    def patched(task, world, **rest):
        loaded = load(task, world, **rest)
        return replace(loaded, measures=(replace(loaded.measures[0], evaluator=Ref(name)),))

    monkeypatch.setattr("bench.plan.plan.load_task", patched)


def test_ids_depend_on_what_changes_a_value() -> None:
    a = cells()[0].cell
    assert a.id == cells()[0].cell.id
    for other in (
        {"seed": 1},
        {"limit": 3},
        {"dtype": "bf16"},
        {"method": FAST},
        {"attack": QUICK},
    ):
        assert cells(**other)[0].cell.id != a.id
    b = cells(limit=3)[0].cell
    assert (a.erase_key, a.attack_key) == (b.erase_key, b.attack_key)
    c = cells(dtype="bf16")[0].cell
    assert (a.erase_key == c.erase_key, a.attack_key == c.attack_key) == (True, False)
    erased_in_bf16 = {
        **asdict(c), "method": c.method.identity, "attack": c.attack.identity,
    }  # fmt: skip
    for later in ("assets", "judges", "sources"):
        erased_in_bf16.pop(later)
    assert c.id != digest(erased_in_bf16)  # what the first versions called such a cell


def test_seeds_share_the_erasure_of_a_method_that_draws_nothing(settings) -> None:
    for method, shared in ((Ref("uce"), True), (FAST, False)):
        a, b = (cells(method=method, attack=QUICK, seed=seed)[0].cell for seed in (0, 1))
        assert (a.erase_key == b.erase_key) == shared
        assert len({c.id for c in (a, b)}) == 2
        assert (a.attack_key == b.attack_key) == shared
        by_the_run = Ref("unlearndiff", {**QUICK.params, "stream": "run"})
        for attack in (by_the_run, Ref("random")):
            keys = {cells(method=method, attack=attack, seed=s)[0].cell.attack_key for s in (0, 1)}
            assert len(keys) == 2
        edited = (replace(c, method=replace(c.method, source="edited")).erase_key for c in (a, b))
        assert len(set(edited)) == 2  # it may draw
    runner = Runner(settings)
    found = [runner.run(cells(method=Ref("uce"), seed=seed)[0]) for seed in (0, 1)]
    assert [r.status for r in found] == ["ok"] * 2
    assert found[0].erasure == found[1].erasure
    assert found[0].erasure["seed"] is None
    assert len(list((settings.artifacts.root / "erasures").iterdir())) == 1


@pytest.mark.parametrize("name", sorted(SEEDLESS))
def test_a_method_without_a_seed_draws_no_random_number(name, tiny, ctx, monkeypatch) -> None:
    assert ".seed(" not in inspect.getsource(inspect.getmodule(load("methods", name)))
    if name in {"never-learned", "external", "safety-checker"}:  # they load what they return
        return
    (job,) = cells(method=Ref(name))
    monkeypatch.setattr(Context, "seed", lambda *args: pytest.fail("it asks for a random stream"))
    before = torch.get_rng_state()
    create("methods", job.cell.method).erase(tiny, job.cell.concept, ctx)
    assert torch.equal(torch.get_rng_state(), before)


def test_ids_depend_on_the_judge(monkeypatch) -> None:
    """Its weights and its version: they also tell an attack when to stop."""
    a = cells(attack=QUICK)[0].cell
    judge = load("evaluators", load_task("church", "emoji").measures[0].evaluator.name)
    monkeypatch.setattr(judge, "card", replace(judge.card, version=9))
    newer = cells(attack=QUICK)[0].cell
    weights = replace(a, assets={"resnet50-ms": "some digest"})
    other = replace(a, assets={"resnet50-ms": "another"})
    for keys in zip(*((c.id, c.attack_key) for c in (a, newer, weights, other)), strict=True):
        assert len(set(keys)) == 4
    assert newer.erase_key == other.erase_key == a.erase_key


def test_retain_tasks_share_the_erased_model(settings) -> None:
    spec = Spec("tiny-random", (FAST,), (Ref("none"), QUICK), ("church", "retain"), limit=2)
    planned = list(plan(spec))
    assert [(c.cell.task, c.cell.attack.name) for c in planned] == [
        ("church", "none"), ("church", "unlearndiff"), ("retain", "none"),
    ]  # fmt: skip
    assert len({c.cell.erase_key for c in planned}) == 1
    runner = Runner(settings)
    results = [runner.run(c) for c in planned]
    assert [r.status for r in results] == ["ok"] * 3
    assert set(results[2].measurements) == {"accuracy"}
    assert len(list((settings.artifacts.root / "erasures").iterdir())) == 1


def test_results_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    (cell,) = cells(method=FAST, attack=QUICK, limit=4)
    rows = []
    for batch in (1, 8):
        artifacts = Artifacts(tmp_path / f"cache{batch}")
        result = Runner(Settings(batch_size=batch, artifacts=artifacts)).run(cell)
        rows.append([(r.id, r.adversarial, r.success, r.trace["ids"]) for r in result.rows])
    assert rows[0] == rows[1]


@pytest.fixture
def split(tmp_path: Path, monkeypatch):
    """A cell of five prompts, settings that split it, and what was attacked together."""
    (job,) = cells(attack=Ref("random", {"tokens": 1, "draws": 2}), limit=5)
    attacked: list[str] = []
    find = CellAttack.find

    def noted(self, prompts, finish) -> None:
        attacked.append(" ".join(p.id for p in prompts))
        find(self, prompts, finish)

    monkeypatch.setattr(CellAttack, "find", noted)

    def made(name: str) -> Settings:
        return Settings(batch_size=8, artifacts=Artifacts(tmp_path / name), split=2)

    a, b, c, d, e = (p.id for p in job.task.prompts[:5])
    return job, made, attacked, [f"{a} {b}", f"{c} {d}", e]


def test_who_attacks_a_part_of_a_cell_does_not_matter(split) -> None:
    job, settings, attacked, parts = split
    alone = Runner(settings("alone")).run(job)
    assert attacked == parts
    attacked.clear()
    Runner(settings("shared")).help(job, 0.5)
    assert attacked == [*parts[1:], parts[0]]  # from the middle on
    together = Runner(settings("shared")).run(job)
    assert len(attacked) == 3  # not again
    assert [replace(row, cost=None) for row in together.rows] == [
        replace(row, cost=None) for row in alone.rows
    ]


def test_a_part_that_another_process_has_comes_last(split) -> None:
    job, settings, attacked, parts = split
    here, there = settings("shared"), Artifacts(settings("shared").artifacts.root)
    key = digest([job.cell.attack_key, *parts[0].split()])
    held, free = threading.Event(), threading.Event()

    def another() -> None:  # is killed before it finds something
        with there.lock(key, "the first part"):
            held.set()
            free.wait(60)

    thread = threading.Thread(target=another)
    thread.start()
    held.wait(60)
    progress = replace(here, progress=lambda stage, done, n: free.set() if done == 3 else None)
    record = Runner(progress).run(job)
    thread.join()
    assert attacked == [*parts[1:], parts[0]]
    assert (record.status, len(record.rows)) == ("ok", 5)


def test_where_memory_ends_the_batch_is_halved_and_every_prompt_is_drawn(
    tmp_path: Path, monkeypatch
) -> None:
    (cell,) = cells(limit=7)
    plenty = Runner(Settings(batch_size=4, artifacts=Artifacts(tmp_path / "plenty"))).run(cell)
    honest, sizes = DiffusersModel._sample, []

    def narrow(self, prompts, *rest):
        if len(prompts) > 2:
            raise torch.OutOfMemoryError
        sizes.append(len(prompts))
        return honest(self, prompts, *rest)

    monkeypatch.setattr(DiffusersModel, "_sample", narrow)
    runner = Runner(Settings(batch_size=4, artifacts=Artifacts(tmp_path / "short")))
    short = runner.run(cell)
    assert (short.status, max(sizes)) == ("ok", 2)
    assert [(r.id, r.own) for r in short.rows] == [
        (r.id, pytest.approx(r.own, abs=1e-4)) for r in plenty.rows
    ]
    erased = runner.erase(cell.cell)
    erased.model.batch_size = 4
    found = [
        Adversarial(Prompt(str(i), "x", i), sampler_noise=SamplerNoise(1.0, seed=i))
        for i in range(7)
    ]
    samples = runner._images.replay(erased, found)
    assert [s.prompt for s in samples] == [a.prompt for a in found]


def git(folder: Path, *args: str) -> str:
    who = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    done = subprocess.run(
        ["git", *who, *args], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_provenance_is_this_projects_commit_or_none(tmp_path: Path, monkeypatch) -> None:
    """Whatever repository the package lies in, whether there is a git, or a GIT_DIR in its place."""
    site = tmp_path / "venv" / "site-packages"
    site.mkdir(parents=True)
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "theirs")
    monkeypatch.setattr(provenance, "ROOT", site)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
    assert provenance.environment("cpu")["git"] == "not a checkout"
    monkeypatch.delenv("GIT_DIR")
    (site / "pyproject.toml").touch()
    git(site, "init", "-q")
    git(site, "commit", "-q", "--allow-empty", "-m", "ours")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
    ours = provenance.environment("cpu")["git"]
    monkeypatch.delenv("GIT_DIR")
    assert ours == git(site, "rev-parse", "--short", "HEAD")
    monkeypatch.setenv("PATH", "")
    assert provenance.environment("cpu")["git"] == "unknown"


def test_provenance_names_other_distributions_and_their_commit(tmp_path: Path, monkeypatch) -> None:
    lab, site = tmp_path / "repo" / "lab", tmp_path / "site"
    for version, folder in (("0.1", lab), ("0.2", tmp_path / "wheel")):
        info = site / f"{folder.name}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Name: {folder.name}\nVersion: {version}\n")
    direct = {"url": lab.as_uri(), "dir_info": {"editable": True}}
    (site / "lab-0.1.dist-info" / "direct_url.json").write_text(json.dumps(direct))
    monkeypatch.syspath_prepend(str(site))
    lab.mkdir(parents=True)
    (lab / "pyproject.toml").touch()

    def told() -> dict[str, str]:
        found = provenance.environment("cpu", names=["esd", "lab/a", "lab/b", "wheel/c", "gone/d"])
        return {key: value for key, value in found.items() if key.startswith("from ")}

    assert told() == {"from lab": "0.1", "from wheel": "0.2"}
    git(lab.parent, "init", "-q")
    git(lab.parent, "add", ".")
    git(lab.parent, "commit", "-q", "-m", "theirs")
    commit = git(lab.parent, "rev-parse", "--short", "HEAD")
    assert told()["from lab"] == f"0.1, git {commit}"
    (lab / "new.py").touch()
    assert told()["from lab"] == f"0.1, git {commit}-dirty"


def test_provenance_without_the_packages_metadata(monkeypatch) -> None:
    def none(package):
        raise PackageNotFoundError(package)

    assert torch.__version__.startswith(provenance.environment("cpu")["torch"])
    monkeypatch.setattr(provenance, "version", none)
    found = provenance.environment("cpu")
    assert {found[name] for name in ("erasure-bench", "torch")} == {"not installed"}


def test_a_record_says_its_batch_and_its_parts(settings) -> None:
    (cell,) = cells(method=FAST)
    ways = (settings, replace(settings, batch_size=3, split=2))
    found = [Runner(each).run(cell).environment for each in ways]
    assert [(f["batch"], f.get("split")) for f in found] == [
        (str(settings.batch_size), None),
        ("3", "2"),
    ]


def test_an_erasure_comes_back_from_its_delta(settings) -> None:
    (cell,) = cells(method=FAST)
    first = Runner(settings).run(cell)
    monitored = []
    again = Runner(replace(settings, progress=lambda *a: monitored.append(a[0]))).run(cell)
    assert "erase" not in monitored
    assert first.rows == again.rows
    assert first.erasure == again.erasure
    assert first.erasure["seconds"] > 0


def test_record_says_what_was_run(settings) -> None:
    (cell,) = cells(method=FAST, attack=QUICK)
    record = Runner(settings).run(cell)
    params = record.cell.method.params
    assert (params["params"], params["lr"] > 0, params["xt_alignment"]) == ("esd-u", True, "exact")
    assert record.cell.attack.params["lr"] == 0.01
    assert {"torch", "git", "device", "peak_memory_mb"} <= set(record.environment)
    assert {"erase", "attack", "generate", "judge"} == set(record.seconds)
    row = record.rows[0]
    assert row.adversarial.endswith(row.text)
    assert row.cost.images in range(
        11, 22
    )  # and one of the ids, where they do not survive decoding
    assert row.cost.backward == 10
    assert row.cost.forward == 10 + 8 * row.cost.images


def test_a_record_keeps_what_was_said_of_both_images(settings) -> None:
    (plain,), (attacked,) = (
        cells(method=FAST, task="nudity", attack=attack) for attack in (Ref("none"), QUICK)
    )
    runner = Runner(settings)
    own, both = runner.run(plain).rows, runner.run(attacked).rows
    assert [row.own_detail for row in both] == [row.detail for row in own]
    assert [row.own_detail for row in own] == [{}, {}]
    assert any(row.detail != row.own_detail for row in both)


@pytest.mark.parametrize(
    ("family", "cls", "status", "reason"),
    [
        (
            "method",
            fakes.Raises,
            "failed",
            "method fake raised ZeroDivisionError: by design (tests/fakes.py:",
        ),
        ("method", fakes.Unfit, "skipped", "needs a transformer, got a UNet"),
        (
            "method",
            fakes.WrongType,
            "failed",
            "method fake returned int, expected the model that it was given",
        ),
        (
            "attack",
            fakes.Peeks,
            "failed",
            "the attack may only generate with this model; it asked for 'pipe'",
        ),
        ("attack", fakes.Forgets, "failed", "attack fake returned nothing for 1 prompts"),
    ],
)
def test_a_bad_plugin_spoils_its_own_cell_only(
    settings, monkeypatch, family, cls, status, reason
) -> None:
    ref = plug(monkeypatch, {"method": methods, "attack": attacks}[family], "fake", cls)
    (bad,) = cells(**{family: ref})
    runner = Runner(settings)
    result = runner.run(bad)
    assert (result.status, result.measurements) == (status, {})
    assert reason in result.reason
    assert "git" in result.environment
    assert runner.run(cells()[0]).status == "ok"


def test_seconds_that_an_attack_does_not_say_are_measured(settings, monkeypatch) -> None:
    """Each prompt gets the time since the one before; their sum is that of the stage."""

    def slow(_, prompts):
        for n, prompt in enumerate(prompts):
            time.sleep(0.2 * (n + 1))
            yield Adversarial(replace(prompt, text=f"lo {prompt.text}"))

    monkeypatch.setattr(fakes.Does, "what", staticmethod(slow), raising=False)
    record = Runner(settings).run(cells(attack=plug(monkeypatch, attacks, "fake", fakes.Does))[0])
    spent = [row.cost.seconds for row in record.rows]
    assert spent[0] >= 0.2 and spent[1] >= 0.4
    assert sum(spent) <= record.seconds["attack"] + 1e-3


def test_a_record_says_which_parts_of_the_model_changed(settings, monkeypatch) -> None:
    def edit(model):
        model.pipe.unet.conv_in.weight.data *= 2
        model.pipe.text_encoder.get_input_embeddings().weight.data *= 2

    monkeypatch.setattr(fakes.Does, "what", staticmethod(edit), raising=False)
    record = Runner(settings).run(cells(method=plug(monkeypatch, methods, "fake", fakes.Does))[0])
    assert record.erasure["parts"] == {"unet": 1, "text_encoder": 1}
    said = [line.text for line in story(record) if line.text.startswith("2 tensors changed")]
    assert said[0].startswith("2 tensors changed (unet 1, text_encoder 1), ")


def test_photographs_for_an_nsfw_concept_are_kept_blurred(tmp_path: Path, monkeypatch) -> None:
    """By default no such image is on disk as it is, nor read back; on the user's word it is."""
    from bench.engine import erase as module

    monkeypatch.setattr(module, "unsafe", lambda world, concept, measures: concept.kind == "nsfw")
    (cell,) = plan(Spec("tiny-random", (Ref("none"),), (Ref("none"),), ("nudity",), limit=2))
    settings = Settings(artifacts=Artifacts(tmp_path))
    runner = Runner(settings)
    first = runner.run(cell)
    kept = sorted(tmp_path.rglob("images/**/*.png"))
    assert len(kept) == 2
    assert all(p.name.endswith(".blurred.png") for p in kept)
    plain = runner.samples(cell, 2)
    for path in kept:
        pixels = np.asarray(Image.open(path), dtype=float)
        assert all(pixels.std() < 0.5 * np.asarray(s[1].image, float).std() for s in plain)
    again = Runner(settings).run(cell)
    assert [r.own for r in again.rows] == [r.own for r in first.rows]
    Runner(replace(settings, keep_unsafe=True)).run(cell)
    as_they_are = [p for p in tmp_path.rglob("images/**/*.png") if "blurred" not in p.name]
    assert len(as_they_are) == 2


def test_what_an_attack_writes_is_not_drawn_if_it_may_mention_minors(
    tmp_path: Path, monkeypatch
) -> None:
    """Such an image is black for the attack, and unscored in the record: never "safe"."""
    from bench.engine import erase as module

    monkeypatch.setattr(module, "unsafe", lambda world, concept, measures: concept.kind == "nsfw")
    (cell,) = plan(Spec("tiny-random", (Ref("none"),), (Ref("none"),), ("nudity",), limit=2))
    source = tmp_path / "found.csv"
    first, second = load_task("nudity", "emoji").prompts[:2]
    source.write_text(
        f'id,adversarial\n{first.id},"a school, {first.text}"\n{second.id},"lo, {second.text}"\n'
    )
    (cell,) = cells(attack=Ref("transfer", {"source": str(source)}), task="nudity")
    runner = Runner(Settings(artifacts=Artifacts(tmp_path / "c")))
    result = runner.run(cell)
    assert result.status == "ok", result.reason
    refused, drawn = result.rows
    assert (refused.attacked, refused.detail["error"][:9]) == (None, "not drawn")
    assert drawn.attacked is not None
    if not refused.own:
        assert refused.success is None
    images = [s[2].image.getbbox() for s in runner.samples(cell, 2)]
    assert images[0] is None
    assert images[1] is not None


@pytest.mark.parametrize(("judge", "count"), [(fakes.Miscounts, 1), (fakes.NeverEnds, 3)])
def test_wrong_number_of_scores(settings, monkeypatch, judge, count: int) -> None:
    plug(monkeypatch, evaluators, "miscounts", judge)
    judge_with(monkeypatch, "miscounts")
    result = Runner(settings).run(cells()[0])
    assert result.status == "failed"
    assert f"miscounts returned {count} scores, expected 2" in result.reason


def test_an_image_that_cannot_be_judged_is_unscored_never_safe(settings, monkeypatch) -> None:
    plug(monkeypatch, evaluators, "blind", fakes.Blind)
    judge_with(monkeypatch, "blind")
    result = Runner(settings).run(cells(limit=3)[0])
    asr = result.measurements["asr"]
    assert (asr.n, asr.unscored, asr.value) == (2, 1, 0.0)
    assert [r.success for r in result.rows] == [None, False, False]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32("nan")])
def test_a_score_that_is_not_finite_is_none(settings, monkeypatch, value) -> None:
    plug(monkeypatch, evaluators, "fake", fakes.Judges)
    monkeypatch.setattr(fakes.Judges, "value", value)
    judge_with(monkeypatch, "fake")
    result = Runner(settings).run(cells(limit=3)[0])
    assert result.measurements["asr"] == Measurement(None, 0, unscored=3)
    assert all(row.own is None and "not finite" in row.detail["error"] for row in result.rows)


def test_an_image_that_must_not_be_judged_is_neither_judged_nor_kept(settings, monkeypatch) -> None:
    """It is no evidence in any measure, in a set's features a row of NaN."""
    plug(monkeypatch, evaluators, "fake", fakes.Judges)
    plug(monkeypatch, evaluators, "colour", fakes.Colour)
    judge_with(monkeypatch, "fake")
    honest, seen = DiffusersModel.generate, []

    def generate(self, prompts, **more):
        images = honest(self, prompts, **more)
        for prompt, image in zip(prompts, images, strict=True):
            if prompt.id == "church-001":
                image.info["unscored"] = "the latents are not finite"
        return images

    monkeypatch.setattr(DiffusersModel, "generate", generate)
    monkeypatch.setattr(fakes, "judged", seen.append)
    runner = Runner(settings)
    (cell,) = cells(limit=3)
    result = runner.run(cell)
    assert result.measurements["asr"] == replace(rate([False, False]), unscored=1)
    assert [row.success for row in result.rows].count(None) == 1
    (row,) = [row for row in result.rows if row.success is None]
    assert (row.id, row.detail) == ("church-001", {"error": "the latents are not finite"})
    assert "church-001" not in seen
    assert len(list(settings.artifacts.root.glob("images/*/*.png"))) == 2
    erased = runner.erase(cell.cell)
    samples = runner._images.make(erased, load_task("church", "emoji").prompts[:3], "again")
    _, extract = runner._stream._extract(cell.cell, Measure("x", Ref("colour"), "set"))
    missing = extract(samples).isnan().all(1).tolist()
    assert [s.prompt.id for s, m in zip(samples, missing, strict=True) if m] == ["church-001"]
    (bad,) = [s for s in samples if s.prompt.id == "church-001"]
    assert extract([bad]).isnan().all()


def test_a_measure_that_fails_stands_beside_those_that_work(settings, monkeypatch) -> None:
    from bench.plan.plan import load_task as load

    plug(monkeypatch, evaluators, "miscounts", fakes.Miscounts)

    def patched(task, world, **rest):
        loaded = load(task, world, **rest)
        more = Measure("extra", Ref("miscounts"), "mean")
        return replace(loaded, measures=(*loaded.measures, more))

    monkeypatch.setattr("bench.plan.plan.load_task", patched)
    result = Runner(settings).run(cells(limit=2)[0])
    assert (result.status, result.measurements["asr"].n) == ("ok", 2)
    assert "evaluator miscounts" in result.measurements["extra"].failed
    assert result.measurements["extra"].value is None
    assert [row.scores for row in result.rows] == [{"extra": None}] * 2
    plug(monkeypatch, evaluators, "miscounts", fakes.Judges)  # a score that is none says why
    monkeypatch.setattr(fakes.Judges, "value", float("nan"))
    again = Runner(settings).run(cells(limit=2)[0])
    assert [row.detail["errors"] for row in again.rows] == [
        {"extra": "the score is not finite: nan"}
    ] * 2


def test_erasing_is_fp32_whatever_is_drawn_in(settings) -> None:
    """The same delta; victim and original are the fp32 ones cast."""
    (exact,), (coarse,) = (
        cells(method=FAST, task="nudity", dtype=dtype) for dtype in ("fp32", "bf16")
    )
    runner = Runner(settings)
    results = [runner.run(cell) for cell in (exact, coarse)]
    assert [r.status for r in results] == ["ok", "ok"]
    assert results[0].erasure == results[1].erasure
    assert results[0].erasure["base"]["dtype"] == "fp32"
    assert len(list(settings.artifacts.root.glob("erasures/*"))) == 1
    assert [r.protocol["train"] for r in results] == ["fp32"] * 2
    assert [r.protocol["draw"][-6:] for r in results] == [", fp32", ", bf16"]
    assert results[0].rows != results[1].rows
    full, half = runner.erase(exact.cell).model, runner.erase(coarse.cell).model
    before, after = runner.model(exact.cell), runner.model(coarse.cell)
    for wide, narrow in ((full, half), (before, after)):
        tensors = weights(narrow)
        assert all(torch.equal(t.bfloat16(), tensors[n]) for n, t in weights(wide).items())
        assert narrow.pipe.unet.dtype == torch.bfloat16


def test_a_record_says_what_its_numbers_rest_on(settings) -> None:
    (cell,) = cells(method=FAST)
    found = Runner(settings).run(cell).protocol
    assert found.pop("prompts").startswith("church.csv ")
    assert found.pop("judge").startswith("emoji-")
    model = Runner(settings).model(cell.cell)
    drawn = f"{model.sampling.sampler}, {model.sampling.steps} steps, 32 px, fp32"
    assert found == {"draw": drawn, "train": "fp32", "prediction": "epsilon"}


@pytest.mark.usefixtures("keyboard")
def test_a_stopped_attack_goes_on_where_it_was(settings, monkeypatch) -> None:
    ref = plug(monkeypatch, attacks, "dies", fakes.DiesOnce)
    (cell,) = cells(attack=ref, limit=5)
    with pytest.raises(KeyboardInterrupt):
        Runner(settings).run(cell)
    result = Runner(settings).run(cell)
    assert result.status == "ok"
    worked = fakes.CALLS.read_text().split()
    assert len(worked) == len(set(worked)) == 5
    assert [r.adversarial for r in result.rows] == [f"lo {r.text}" for r in result.rows]


@pytest.mark.slow
def test_kill_nine_loses_nothing_finished(tmp_path: Path) -> None:
    """Kill the real command in mid-attack, give it again, compare with a run that was left alone."""
    command = [
        sys.executable, "-m", "bench", "run", "--model", "tiny-random", "--method", "none",
        "--attack", "seed-search:draws=2", "--task", "church", "--limit", "3", "--batch-size", "1",
    ]  # fmt: skip

    def run(name: str, *, kill: bool) -> dict:
        env = {**os.environ, "BENCH_CACHE": str(tmp_path / name), "COLUMNS": "200"}
        results = tmp_path / f"{name}-results"
        process = subprocess.Popen(
            [*command, "--results", str(results)], env=env, stderr=subprocess.PIPE, text=True
        )
        if kill:
            deadline = time.monotonic() + 120
            while not list((tmp_path / name).glob("attacks/*/church-001-*.json")):
                assert process.poll() is None, process.stderr.read()
                assert time.monotonic() < deadline
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert not list(results.rglob("*.json"))
            kept = {p: p.stat().st_mtime_ns for p in (tmp_path / name).glob("attacks/*/*.json")}
            record = run(name, kill=False)
            assert all(p.stat().st_mtime_ns == t for p, t in kept.items())
            return record
        assert process.wait() == 0, process.stderr.read()
        (path,) = results.rglob("*.json")
        return json.loads(path.read_text())

    killed, whole = run("killed", kill=True), run("whole", kill=False)
    for row in killed["rows"] + whole["rows"]:
        assert row["cost"].pop("seconds") > 0
    assert killed["rows"] == whole["rows"]
    assert killed["measurements"] == whole["measurements"]


def test_store_round_trip(tmp_path: Path, settings) -> None:
    store = Store(tmp_path / "results")
    (cell,) = cells(attack=QUICK)
    assert cell.cell not in store
    result = Runner(settings).run(cell)
    store.put(result)
    assert cell.cell in store
    assert store.get(cell.cell) == result
    assert list(store) == [result]
    store.put(replace(result, status="failed"))
    assert cell.cell not in store
