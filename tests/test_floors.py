"""Floors with the budget of an attack, as a request asks for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

import attacks
from attacks.noise_probe import NoiseProbe
from attacks.seed_search import SeedSearch
from bench import PluginError, SpecError
from bench.plan.floors import most_images
from bench.plan.plan import Plan, plan
from bench.plan.spec import Spec
from bench.plugins.registry import Ref
from bench.store.record import Record
from bench.store.store import Store

REFERENCE = Path(__file__).resolve().parent.parent / "results" / "reference"


def asked(*texts: str, tasks: tuple[str, ...] = ("church",)) -> Plan:
    given = tuple(Ref.parse(text) for text in texts)
    return plan(Spec("emoji-sd", (Ref("esd"),), given, tasks, floors=True))


def draws(planned: Plan) -> list[tuple[str, str, int]]:
    """Return task, name and draws of each floor of a plan, in its order."""
    cells = [job.cell for job in planned]
    return [(c.task, c.attack.name, n) for c in cells if (n := c.attack.params.get("draws"))]


def test_each_number_of_images_has_its_pair_of_floors() -> None:
    planned = asked("none", "unlearndiff", "p4d", "noise-probe", tasks=("church", "retain"))
    assert draws(planned) == [
        ("church", "random", 10), ("church", "seed-search", 10),
        ("church", "random", 24), ("church", "seed-search", 24),
    ]  # fmt: skip
    assert planned.notes == (
        "floors of unlearndiff, p4d: random and seed-search with draws=10, at most 11 images of a prompt, "
        "its own included",
        "floors of noise-probe: random and seed-search with draws=24, at most 25 images of a prompt, its "
        "own included",
    )


@pytest.mark.parametrize(
    ("attack", "expected"),
    [
        ("unlearndiff:timesteps=official", 50),
        ("p4d-official:similarity=emoji-subject,iterations=200,check=20", 11),
        ("mma", 1),
        ("transfer:found_on=uce,found_by=mma", 1),
    ],
)
def test_a_budget_is_that_of_the_attacks_parameters(attack: str, expected: int) -> None:
    assert draws(asked(attack)) == [
        ("church", "random", expected), ("church", "seed-search", expected),
    ]  # fmt: skip


def test_a_floor_that_was_asked_for_is_there_once() -> None:
    """However it was written; one with other parameters stands beside it."""
    planned = asked("random:tokens=3,draws=10", "random", "unlearndiff")
    assert [found[1:] for found in draws(planned)] == [
        ("random", 10), ("random", 40), ("seed-search", 10),
    ]  # fmt: skip
    assert len({job.cell.id for job in planned}) == len(planned.jobs) == 4


def test_floors_of_nothing_are_refused() -> None:
    with pytest.raises(
        SpecError, match="--floors: expected an attack that says .* got none, random"
    ):
        asked("none", "random")


@dataclass(frozen=True)
class Silent(SeedSearch):
    """Does not say how many images it makes."""

    card: ClassVar = SeedSearch.card


def test_an_attack_without_a_budget_is_named(monkeypatch) -> None:
    monkeypatch.setitem(attacks.PLUGINS, "silent", f"{__name__}:Silent")
    *_, line = asked("none", "random", "silent", "unlearndiff").notes
    assert line == "no floors of silent: it does not say how many images it makes (most_images)"
    assert not any(
        line.startswith("no floors") for line in asked("none", "random", "unlearndiff").notes
    )


@dataclass(frozen=True)
class Boasts(SeedSearch):
    """Says that it makes many images."""

    card: ClassVar = SeedSearch.card

    def most_images(self) -> object:
        return "many"


def test_an_attack_that_says_no_number_is_named(monkeypatch) -> None:
    monkeypatch.setitem(attacks.PLUGINS, "boasts", f"{__name__}:Boasts")
    with pytest.raises(PluginError, match="attack boasts: expected most_images .* got 'many'"):
        asked("boasts")


def test_an_attack_that_cannot_be_loaded_spoils_its_own_cell_only(monkeypatch) -> None:
    monkeypatch.setitem(attacks.PLUGINS, "gone", "attacks.nowhere:Gone")
    planned = asked("gone", "noise-probe")
    assert [bool(job.problem) for job in planned] == [True, False, False, False]
    assert NoiseProbe().most_images() == 25


RECORDS = [r for r in Store(REFERENCE) if most_images(r.cell.attack)]


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: f"{r.cell.task} {r.cell.attack.name}")
def test_committed_records_made_as_many_images_where_all_failed(record: Record) -> None:
    """A text pass beyond those of the steps is one of an image of ids, which cannot succeed."""
    failed = [r for r in record.rows if "iterations" in r.trace and not r.trace["success"]]
    made = {r.cost.images - (r.cost.text_forward - r.trace["iterations"]) for r in failed}
    assert made <= {most_images(record.cell.attack)}
