"""Figures of neurons: an erased model draws prompts and adversarial prompts again, and is watched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bench.core.errors import SpecError
from bench.engine.again import Again, prompt_of
from bench.engine.examples import ATTACKED, at_most, picks, tiles_of
from bench.engine.neurons import Pair, concept_neurons, heat, relative, sensitivity
from bench.engine.settings import Settings
from bench.report import verdict
from bench.report.figures import neurons, select
from bench.report.figures import sensitivity as curves
from bench.report.figures.catalog import Made
from bench.report.figures.select import Wanted
from bench.report.hidden import hidden
from bench.store.metrics import Measurement
from bench.store.record import Record, Row


def neuron_sensitivity(
    records: Sequence[Record], wanted: Wanted, settings: Settings, *, limit: int | None = None
) -> Made:
    """Draw how sensitive the neurons of erased models are to adversarial prompts (Eq. 5).

    By default of ESD and P-ESD under UnlearnDiff. Of each task the same prompts in all cells: those that
    all of them erase without an attack.

    Raises:
        SpecError: There are no such records, or no prompt is erased by all.
    """
    asked = (wanted.methods or ("esd", "p-esd"), wanted.attacks or ("unlearndiff",))
    chosen = [r for r in Wanted(wanted.tasks, *asked).of(records) if _has_pairs(r)]
    if not chosen:
        raise select.missing("sensitivity", wanted, ATTACKED, methods=("esd", "p-esd"))
    again, found = Again(settings), list[curves.Step]()
    names = select.named(chosen)
    for task in sorted({r.cell.task for r in chosen}):
        mine = [r for r in chosen if r.cell.task == task]
        shared = _erased_by_all(mine)[:limit]
        if not shared:
            methods = ", ".join(names(r)[1] for r in mine)
            raise SpecError(
                f"figure sensitivity: no prompt of {task} is erased by all of {methods}"
            )
        for r in sorted(mine, key=names):
            pairs = [_pair(row) for row in r.rows if row.id in shared]
            found += _curves(again, r, pairs, names(r))
    return curves.draw(found), found


def _curves(
    again: Again, r: Record, pairs: Sequence[Pair], called: tuple[str, str, str]
) -> list[curves.Step]:
    """Return the two curves of a cell: of the concept's neurons, and of the others."""
    original, erased = again.original(r), again.erased(r).model
    chosen = concept_neurons(original, erased, [prompt for prompt, _ in pairs])
    steps = sensitivity(erased, pairs, chosen, again.settings.progress)
    return [
        curves.Step(*called, step.call, len(steps), step.timestep, group, len(pairs), *_ends(m))
        for group in ("concept", "others")
        for step in steps
        for m in [step.concept if group == "concept" else step.others]
    ]


def neuron_overlays(
    records: Sequence[Record], wanted: Wanted, settings: Settings, *, limit: int | None = None
) -> Made:
    """Draw where the concept's neurons are active: in the original's image, the erased and the attacked.

    Raises:
        SpecError: There is no such cell, or there are several.
    """
    known = [r for r in wanted.of(records) if _has_pairs(r)]
    if not known:
        raise select.missing("neurons", wanted, ATTACKED)
    at_most("neurons", known, 1)
    (r,) = known
    rows = tuple(filter(_is_pair, r.rows))
    some = picks(replace(r, rows=rows), limit or 3)
    again = Again(settings)
    original, erased = again.original(r), again.erased(r).model
    chosen = concept_neurons(original, erased, [*map(prompt_of, rows)])
    calls = erased.passes_per_image // (len(erased.guidance.texts) + 1)
    call = max(1, round(0.6 * calls))  # the paper's 30th of 50
    before, after = zip(*map(_pair, some), strict=True)
    drawn = ((original, before), (erased, before), (erased, after))
    heats = relative([heat(model, prompts, chosen, call) for model, prompts in drawn])
    strips = [
        neurons.Strip(
            row.text,
            row.adversarial or "",
            [
                neurons.Overlay(tile.name, tile.image, each[i].numpy(), tile.verdict)
                for tile, each in zip(tiles, heats, strict=False)
                if tile.image is not None
            ],
        )
        for i, (row, tiles) in enumerate(zip(some, tiles_of(again, r, some, records), strict=True))
    ]
    numbers = [
        neurons.Activity(r.cell.id, row.id, o.name, o.verdict, call, calls, share)
        for row, strip in zip(some, strips, strict=True)
        for o, share in zip(strip.overlays, neurons.shares(strip), strict=True)
    ]
    title = f"Neurons of {r.cell.concept.name}: {r.cell.method.name}, attack {r.cell.attack.name}"
    when = f"at denoiser call {call} of {calls}"
    return neurons.draw(strips, title, when, hide=hidden(r)), numbers


def _has_pairs(r: Record) -> bool:
    """Say whether a cell has pairs of a prompt and an adversarial prompt on an erased model."""
    return r.cell.attacked and r.cell.method.name != "none" and any(map(_is_pair, r.rows))


def _is_pair(row: Row) -> bool:
    """Say whether an attack changed the text and nothing else."""
    same = row.adversarial_seed in {None, row.seed} and not row.beyond
    return same and row.adversarial is not None and row.adversarial != row.text


def _pair(row: Row) -> Pair:
    prompt = prompt_of(row)
    return prompt, replace(prompt, text=row.adversarial or row.text)


def _erased_by_all(records: Sequence[Record]) -> list[str]:
    """Return the prompts that all these cells erase without an attack, and that they attack in the text."""
    ids = [
        {row.id for row in r.rows if _is_pair(row) and verdict.own(r, row) is False}
        for r in records
    ]
    return [row.id for row in records[0].rows if all(row.id in some for some in ids)]


def _ends(m: Measurement) -> tuple[float, float, float]:
    """Return a mean and the ends of its interval; of one value there is none."""
    value = float(m.value or 0.0)
    return value, value if m.low is None else m.low, value if m.high is None else m.high
