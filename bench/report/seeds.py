"""How much rates depend on the seed: several runs of one cell."""

from __future__ import annotations

from collections.abc import Iterable
from math import sqrt

from bench.report.axes import Group, grouped
from bench.report.frame import Figure, Table
from bench.report.statistics import Stages, by_stage, in_common
from bench.report.tables import by_cell, cer_figure, laid_out, roles
from bench.store.record import Record


def seeds_table(records: Iterable[Record]) -> Table:
    """Lay out what several seeds of a cell say: a line for each cell that was run with more than one."""
    ran = [r for r in roles(records)[0] if r.status == "ok" and r.rows]
    groups = [g for g in grouped(ran, across=("seed", "erase_seed")) if len(g.records) > 1]
    split = {id(g): found for g in groups if (found := _split(g))}
    shown = [g for g in groups if id(g) in split]
    used = [r for g in shown for r in g.records]

    same = sorted({r.cell.attack.name for r in used if r.cell.found_by_all_seeds})

    def figures(g: Group) -> Iterable[Figure | None]:
        found = split[id(g)]
        rates = [f.value for r in g.records if (f := cer_figure(r, None)).value is not None]
        yield Figure(found.n)
        yield from (Figure(len(found.runs)), Figure(sum(found.runs)))
        yield Figure(1 - found.rate, found.n, digits=3)
        yield from (Figure(end(rates), digits=2) for end in (min, max))
        of_attack = None if g.records[0].cell.found_by_all_seeds else found.attack
        yield from map(_deviation, (found.erase, of_attack, found.prompts))

    spreads = (f"SD, {stage}" for stage in ("erasures", "attacks", "prompts"))
    return laid_out(
        "Concept erasing rate over several seeds",
        ("task", "method", "attack"),
        by_cell(used),
        shown,
        ("N", "erasures", "runs", "CER", "lowest", "highest", *spreads),
        figures,
        legend="CER: mean over the runs. SD: standard deviation of the CER of one run if only the seed of "
        "the erasure, only that of the attack, or only the prompts were drawn anew; by analysis of "
        "variance, over prompts that could be judged in every run. Where no erased model was attacked "
        "twice, that of erasures holds the attack's"
        + "".join(
            f"; {name} draws from each prompt's own seed: all seeds find the same" for name in same
        ),
        records=used,
        hidden="N",
    )


def _deviation(variance: float | None) -> Figure | None:
    return None if variance is None else Figure(sqrt(variance), digits=3)


def _split(g: Group) -> Stages | None:
    """Split the variance of a cell's runs; ``None`` if their prompts are not the same."""
    runs = in_common(g.records)
    if runs is None:
        return None
    seeds = [(r.cell.erased_with, r.cell.seed) for r in g.records]
    return by_stage(dict(zip(seeds, runs, strict=True)))
