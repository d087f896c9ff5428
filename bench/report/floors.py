"""Attacks beside what chance finds, and beside models that never learned the concept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from bench.core.digest import digest
from bench.core.errors import BenchError
from bench.plan.floors import FLOORS, most_images
from bench.plugins.registry import Ref
from bench.report.axes import ATTACK, Group, grouped, labels
from bench.report.between import REFERENCES
from bench.report.corrected import AS_SEEN, Judges
from bench.report.frame import Figure, Table, compared
from bench.report.statistics import (
    ALPHA,
    MARGIN,
    Difference,
    equivalent,
    holm,
    paired_records,
)
from bench.report.tables import cer_figure, laid_out, roles
from bench.store.record import Record

NEVER = "never-learned"
Budgets = Mapping[int, int | None]
"""Images of a prompt that an attack may make, by the ``id`` of its record; ``None`` if nothing says it."""


@dataclass(frozen=True, slots=True)
class Beside:
    """What stands beside an attacked cell.

    Args:
        never: The same attack on the model that never learned the concept.
        leak: CER of the cell minus that of ``never``.
        floors: By name of the floor: its record on the same model.
        gains: By name of the floor: CER of the cell minus that of the floor.
    """

    never: Record | None
    leak: Difference | None
    floors: dict[str, Record]
    gains: dict[str, Difference | None]


def floors_table(records: Iterable[Record], judges: Judges = AS_SEEN) -> Table:
    """Lay out attacks beside their floors: a line for each attacked cell.

    The floors are the same attack on a model that never learned the concept, and random tokens and other
    seeds on the same model. Columns that no record fills are left out.

    Args:
        records: Any.
        judges: What rates and differences are corrected for.
    """
    ran = [r for r in roles(records)[0] if r.status == "ok" and r.rows]
    victims, attacks = _alike(ran, ("method",)), _alike(ran, ATTACK)
    images = budgets(ran)
    known = {id(r): _beside(r, victims[id(r)], attacks[id(r)], images) for r in ran if _is_shown(r)}
    shown = {n: found for n, found in known.items() if found.never or found.floors}
    cells = [r for r in ran if id(r) in shown]
    adjusted = _adjusted(shown)
    method_of, attack_of = labels(ran, "method"), labels(ran, "attack")
    never = any(found.never for found in shown.values())
    names = [name for name in FLOORS if any(name in found.floors for found in shown.values())]

    def figures(g: Group) -> Iterable[Figure | None]:
        r, found = g.first, shown[id(g.first)]
        yield cer_figure(r, None, judges)
        if never:
            yield cer_figure(found.never, None, judges) if found.never else None
            yield _leak(r, found.leak, adjusted, judges) if found.never else None
        for name in names:
            floor = found.floors.get(name)
            same = floor is not None and images[id(floor)] == images[id(r)]
            figure = cer_figure(floor, None, judges) if floor else None
            yield _floor(figure, found.gains[name], adjusted, same) if figure else None

    columns = [judges.cer, *(["never learned", "minus never learned"] if never else []), *names]
    table = laid_out(
        "Attacks above their floors",
        ("task", "method", "attack"),
        lambda r: (r.cell.task, method_of(r), attack_of(r)),
        grouped(cells, across=()),
        columns,
        figures,
        legend=_legend(judges.legend, never, names, len(adjusted)),
        records=cells,
    )
    return replace(table, notes=(*_budget_notes(cells, shown, images, attack_of), *table.notes))


def _is_shown(r: Record) -> bool:
    return (
        r.cell.attacked
        and r.cell.attack.name not in FLOORS
        and r.cell.method.name not in REFERENCES
    )


def _alike(ran: Sequence[Record], across: Iterable[str]) -> dict[int, tuple[Record, ...]]:
    """Return by ``id`` the records that differ from one in nothing but some fields of the cell."""
    return {id(r): g.records for g in grouped(ran, across) for r in g.records}


def _beside(
    r: Record, victims: Sequence[Record], attacks: Sequence[Record], images: Budgets
) -> Beside:
    """Return what stands beside a cell.

    Args:
        r: Its record.
        victims: The same attack on any model.
        attacks: Any attack on the same model.
        images: Their budgets; of two floors the one that is nearer to the attack's stands beside it.
    """
    gold = [x for x in victims if x.cell.method.name == NEVER]
    never = gold[0] if len(gold) == 1 else None
    floors = {}
    for name in FLOORS:
        known = [x for x in attacks if x.cell.attack.name == name]
        if known:
            floors[name] = min(
                known, key=lambda x: abs((images[id(x)] or 0) - (images[id(r)] or 0))
            )
    gains = {name: paired_records(floor, r) for name, floor in floors.items()}
    return Beside(never, paired_records(never, r) if never else None, floors, gains)


def budgets(records: Iterable[Record]) -> Budgets:
    """Return by ``id`` how many images of a prompt an attack may make, the prompt's own included.

    An attack that does not say it is known by the most that it did make.
    """
    said: dict[str, int | None] = {}
    found: dict[int, int | None] = {}
    for r in records:
        key = digest(r.cell.attack.identity)
        if key not in said:
            said[key] = _says(r.cell.attack)
        found[id(r)] = said[key] or max((row.cost.images for row in r.rows), default=0) or None
    return found


def _says(attack: Ref) -> int | None:
    draws = attack.params.get("draws")
    if attack.name in FLOORS and isinstance(draws, int):
        return draws + 1
    try:
        return most_images(attack)
    except BenchError:
        return None


def _adjusted(shown: dict[int, Beside]) -> dict[int, float]:
    """Return p-values after Holm over all tests of the table, by the ``id`` of a difference."""
    tests = [
        d for found in shown.values() for d in (found.leak, *found.gains.values()) if d is not None
    ]
    return {id(d): p for d, p in zip(tests, holm([d.p for d in tests]), strict=True)}


def _leak(r: Record, d: Difference | None, adjusted: dict[int, float], judges: Judges) -> Figure:
    figure = compared(judges.difference(r, d))
    if d is None or figure.value is None:
        return figure
    p = adjusted[id(d)]
    figure = replace(figure, p_holm=p).flagged("differs", p < ALPHA)
    return figure.flagged("equivalent", equivalent(d, judges.margin(r, MARGIN)))


def _floor(
    figure: Figure, d: Difference | None, adjusted: dict[int, float], same_budget: bool
) -> Figure:
    figure = figure.flagged("other budget", not same_budget)
    if d is None:
        return figure
    p = adjusted[id(d)]
    return replace(figure, p=d.p, p_holm=p).flagged("differs", p < ALPHA)


def _legend(rates: str, never: bool, floors: Sequence[str], tests: int) -> str:
    parts = [rates]
    if never:
        parts.append(
            "never learned: the same attack on a model that was trained without the concept; "
            "minus: CER minus that, on the same prompts, with its 95 % interval (Tango's score). = as "
            f"good as never learned: equivalent within {MARGIN:.2f} (two one-sided tests at {ALPHA})"
        )
    if floors:
        parts.append(
            f"{', '.join(floors)}: CER of what chance finds on the same model; # with another number of "
            "images than the attack has"
        )
    parts.append(f"* differs (exact McNemar, p < {ALPHA} after Holm over {tests} tests)")
    return "; ".join(parts)


def _budget_notes(
    cells: Sequence[Record],
    shown: dict[int, Beside],
    images: Budgets,
    attack_of: Callable[[Record], str],
) -> Iterable[str]:
    """Say which floors have another budget than the attack."""
    found: dict[str, None] = {}
    for r in cells:
        for floor in shown[id(r)].floors.values():
            if images[id(floor)] != images[id(r)]:
                found[
                    f"# {attack_of(r)} makes at most {images[id(r)] or '?'} images of a prompt, "
                    f"{attack_of(floor)} makes {images[id(floor)] or '?'}: --floors runs one with as many"
                ] = None
    yield from found
