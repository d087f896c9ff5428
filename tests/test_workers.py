"""Which worker gets which cell, what each takes of the machines, and bad input; starts no Ray."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterable
from dataclasses import replace
from itertools import combinations

import pytest

from bench.engine import cluster
from bench.engine.cluster import Seats, seats
from bench.engine.schedule import Schedule, chains, parts
from bench.engine.settings import Settings
from bench.errors import SpecError
from bench.plan.plan import Job, plan
from bench.plan.spec import Spec
from bench.plugins.registry import Ref
from bench.tasks.tasks import Measure


def jobs(
    *methods: str,
    tasks: Iterable[str] = ("church", "nudity"),
    attacks: Iterable[Ref] = (Ref("seed-search", {"draws": 1}),),
    **more: object,
) -> list[Job]:
    attacks = (Ref("none"), *attacks)
    refs = tuple(Ref(name) for name in methods)
    return list(plan(Spec("tiny-random", refs, attacks, tuple(tasks), limit=3, **more)))


def images(job: Job) -> set[tuple[object, ...]]:
    """The own images of a cell, by brute force."""
    cell = job.cell
    model = "base" if cell.method.name == "none" else cell.erase_key
    prompts = job.task.prompts[: cell.prompts]
    return {(model, cell.dtype, p.text, p.seed, p.guidance) for p in prompts}


def test_cells_that_draw_the_same_images_stay_together_in_order() -> None:
    work = jobs("none", "esd", tasks=("church", "nudity", "retain"))
    found = chains(work)
    assert sorted(id(job) for chain in found for job in chain.jobs) == sorted(map(id, work))
    for chain in found:
        assert list(chain.jobs) == [job for job in work if job in chain.jobs]
    of = {id(job): chain for chain in found for job in chain.jobs}
    for a, b in combinations(work, 2):
        if images(a) & images(b):
            assert of[id(a)] is of[id(b)]
    erased = [chain for chain in found if len(chain.model) == 1]
    # ESD of each concept: its target task, and retain.
    assert [len(chain.jobs) for chain in erased] == [2, 1, 2, 1]
    # Without an erasure retain is the same for both concepts: drawn once.
    assert [len(chain.jobs) for chain in found if len(chain.model) == 2] == [2, 2, 2]


def test_types_of_drawing_are_drawn_apart() -> None:
    work = [*jobs("esd", tasks=["church"]), *jobs("esd", tasks=["church"], dtype="bf16")]
    first, second = chains(work)
    assert first.model == second.model  # one erasure


def test_nobody_else_erases_meanwhile_and_models_stay_where_they_are() -> None:
    work, erased = chains(jobs("esd", "uce", tasks=("church", "retain"))), set[str]()
    schedule = Schedule(work, lambda cell: cell.erase_key in erased)
    esd, uce = schedule.take(1), schedule.take(2)
    assert esd and uce
    assert esd.cell.method.name == "esd"
    assert uce.cell.method.name == "uce"  # not ESD's other chain, which waits for the erasure
    assert schedule.take(3) is None
    erased.add(esd.cell.erase_key)
    other = schedule.take(3)
    assert other and (other.cell.method.name, other.cell.task) == ("esd", "retain")
    assert (second := schedule.take(2)) and second.cell.method.name == "uce"
    assert (third := schedule.take(2)) and third.cell.task == "retain"  # its own model's
    assert schedule.take(2) is None
    assert (last := schedule.take(1)) and last.cell.attack.name == "seed-search"
    assert not schedule


def test_what_a_lost_worker_had_goes_to_another_in_the_same_order() -> None:
    work = chains(jobs("esd", tasks=["church"]))
    schedule = Schedule(work, lambda cell: False)
    first = schedule.take(1)
    assert schedule.take(2) is None
    schedule.drop(1, first)
    assert schedule.take(2) is first  # although nothing is erased: nobody is at it
    assert (then := schedule.take(2)) and then.cell.attack.name == "seed-search"
    schedule.drop(2)  # given up
    assert not schedule
    assert schedule.take(1) is None


def test_a_cell_waits_for_the_one_whose_prompts_it_takes() -> None:
    first, second = jobs("none", tasks=["church"], attacks=[]), jobs("none", tasks=["nudity"])
    waits = replace(first[0], after=second[-1].cell)
    schedule = Schedule(chains([waits, *second]), lambda cell: True)
    (before, then) = second
    assert schedule.take(1) is before
    assert schedule.take(2) is None
    assert schedule.take(1) is then  # its chain's next
    assert schedule.take(1) is None
    schedule.finish(then.cell)
    assert schedule.take(2) is waits
    assert not schedule
    other = replace(
        second[1], after=first[0].cell
    )  # in the middle of a chain: the worker goes elsewhere
    schedule = Schedule(chains([before, other, first[0]]), lambda cell: True)
    assert schedule.take(1) is before
    assert schedule.take(1) is first[0]
    schedule.finish(first[0].cell)
    assert schedule.take(1) is other


def test_images_that_are_only_measured_keep_more_workers_busy() -> None:
    (job,) = jobs("none", tasks=["church"], attacks=[])
    streamed = replace(job, task=replace(job.task, measures=(Measure("fid", Ref("fid"), "set"),)))
    cell = replace(job.cell, prompts=30_000)
    (chain,) = chains([replace(streamed, cell=cell), job])
    assert chain.width(Settings()) == 118
    (chain,) = chains([job])
    assert chain.width(Settings()) == 1


def test_workers_share_an_attack_that_is_split() -> None:
    attacks = [Ref("unlearndiff"), Ref("relearn"), Ref("cce"), Ref("seed-search", {"draws": 1})]
    work = jobs("esd", tasks=("church", "retain"), attacks=attacks)
    found = {(job.cell.task, job.cell.attack.name): parts(job, Settings(split=2)) for job in work}
    assert found == {
        ("church", "none"): 1,
        ("church", "unlearndiff"): 2,  # three prompts
        ("church", "relearn"): 1,  # it learns for all prompts at once
        ("church", "cce"): 1,
        ("church", "seed-search"): 2,
        ("retain", "none"): 1,
    }
    assert {parts(job, Settings()) for job in work} == {1}
    assert max(chain.width(Settings(split=1)) for chain in chains(work)) == 3
    first, *_, last = work
    taken = replace(last.cell, attack=Ref("transfer"), task="church")
    assert parts(replace(first, cell=taken), Settings(split=1)) == 1


def test_a_broken_cell_is_a_chain_of_its_own() -> None:
    (job, *_) = jobs("none", tasks=["church"])
    empty = Job(
        job.cell, type(job.task)("church", "emoji", "target", job.cell.concept, (), (), ""), "no"
    )
    (chain,) = chains([empty])
    assert list(chain.jobs) == [empty]


def spread(device: str = "auto", wanted: int | None = None, most: int = 99, **more: float) -> Seats:
    has = {"cpus": 32.0, "gpus": 0.0, "nodes": 4} | more
    return seats(device, wanted, most, here=False, **has)


def test_each_worker_has_a_gpu_or_an_equal_part_of_one(monkeypatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert spread() == Seats("auto", 4, 0.0, 8)
    assert spread(gpus=8) == Seats("cuda", 8, 1.0, 4)
    assert spread(gpus=8, wanted=3) == Seats("cuda", 3, 1.0, 10)
    assert spread(gpus=8, most=2).count == 2
    assert spread(gpus=2, wanted=4).gpus == 0.5
    assert spread(gpus=2, wanted=3).gpus == 0.5  # 2 / 3 would leave room for two
    assert spread("cpu", gpus=8) == Seats("cpu", 4, 0.0, 8)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert spread().threads == 3


@pytest.mark.parametrize(
    ("device", "more", "said"),
    [
        ("cuda", {}, "--device cuda cannot be used: Ray finds no GPU in the cluster; try --device cpu"),
        ("cuda:1", {"gpus": 2}, "--device cuda:1: Ray chooses the GPU of each worker; give --device cuda"),
        ("cpu", {"wanted": 40}, "--workers 40: Ray has 32 processors in the cluster; give at most 32"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_said(device: str, more: dict[str, float], said: str) -> None:
    with pytest.raises(SpecError) as caught:
        spread(device, **more)
    assert str(caught.value) == said


# ---------------------------------------------------------------------------- without Ray
RUN = ("run", "--model", "tiny-random", "--method", "none", "--task", "church", "--limit", "1")


def test_what_to_install_is_said_before_anything_is_done(cli, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for more in (("--workers", "2"), ("--ray-address", "auto")):
        said = cli(*RUN, *more)
        assert said.code == 2
        assert "need Ray, which is not installed: pip install 'ray" in said.err
        assert said.err.count("\n") == 1
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("nonsense", "expected HOST:PORT or auto, got 'nonsense'"),
        ("ray://head:10001", "expected HOST:PORT or auto"),
        ("127.0.0.1:1", "127.0.0.1:1: nobody answers there (Connection refused)"),
        ("127.0.0.1:99999", "127.0.0.1:99999: nobody answers there"),
    ],
)
def test_a_wrong_address_is_one_line(cli, address: str, said: str) -> None:
    pytest.importorskip("ray")
    found = cli(*RUN, "--ray-address", address)
    assert found.code == 2
    assert said in found.err
    assert found.err.splitlines()[-1].startswith("error: --ray-address")


def test_another_service_is_not_taken_for_ray(cli, monkeypatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setattr(cluster, "_ANSWER", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        said = cli(*RUN, "--ray-address", address)
    assert said.code == 2
    assert f"error: --ray-address {address}: no Ray answered there in 2 seconds" in said.err


def test_one_chain_needs_no_ray(cli, monkeypatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setattr(cluster, "connected", lambda *_: pytest.fail("starts Ray"))
    said = cli(*RUN, "--workers", "4")
    assert said.code == 0
    assert "--workers 4: 1 can have work" in said.err


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        ({"torch": "", "bench": "x"}, "gpu7 has torch not installed, expected 2.5"),
        ({"torch": "2.5", "bench": ""}, "gpu7 has no bench: install the same there"),
        ({"torch": "2.5", "bench": "y"}, "gpu7 has another bench than this machine"),
    ],
)
def test_another_machines_packages(theirs: dict[str, str], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        cluster._compare("gpu7", theirs, {"torch": "2.5", "bench": "x"}, [])
