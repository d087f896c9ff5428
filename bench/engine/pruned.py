"""The figure of pruning strategies: what their erasures set to zero, layer by layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from bench.engine.again import Again
from bench.engine.settings import Settings
from bench.models.delta import weights
from bench.models.diffusers import DiffusersModel
from bench.report.figures.catalog import Made
from bench.report.figures.pruning import STRATEGIES, Bar, draw, kind_of
from bench.report.figures.select import Wanted, missing, named, three
from bench.report.tables import judged
from bench.store.metrics import complement
from bench.store.record import Record


def pruning_strategies(
    records: Sequence[Record], wanted: Wanted, settings: Settings, *, limit: int | None = None
) -> Made:
    """Draw erasing rates of pruning strategies, and which layers they prune.

    By default of ESD, and of ESD with pruning before, while and after erasing, without an attack and under
    UnlearnDiff.

    Raises:
        SpecError: There are no such records, or a method is not what it was.
    """
    asked = (wanted.methods or STRATEGIES, wanted.attacks or ("none", "unlearndiff"))
    chosen = [r for r in Wanted(wanted.tasks, *asked).of(records) if r.cell.method.name != "none"]
    if not chosen:
        raise missing("pruning", wanted, "records of pruning methods", methods=STRATEGIES)
    again, found = Again(settings), list[Bar]()
    names_of = named(chosen)
    seen: set[str] = set()
    for r in sorted(chosen, key=lambda r: (r.cell.task, _place(r), names_of(r))):
        task, method, attack = names_of(r)
        rate = complement(r.measurements[judged(r) or ""])
        if rate.value is not None:
            ends = three(rate)
            erased = round(ends[0] * rate.n)
            found.append(Bar(task, method, "concept erasing rate", attack, *ends, erased, rate.n))
        if (key := f"{r.cell.task} {r.cell.erase_key}") not in seen:
            seen.add(key)
            pruned, total = pruned_weights(again.original(r), again.erased(r).model)
            found += _shares((task, method), pruned, total)
    return draw(found), found


def pruned_weights(
    original: DiffusersModel, erased: DiffusersModel
) -> tuple[Counter[str], Counter[str]]:
    """Return how many of the denoiser's weights became zero, and how many there are, by kind of layer."""
    before, after = weights(original), weights(erased)
    pruned, total = Counter[str](), Counter[str]()
    for name, old in before.items():
        if name.startswith("unet."):
            kind = kind_of(name)
            pruned[kind] += int(((old != 0) & (after[name] == 0)).sum())
            total[kind] += old.numel()
    return pruned, total


def _shares(names: tuple[str, str], pruned: Counter[str], total: Counter[str]) -> Iterator[Bar]:
    """Yield the share of all weights that are pruned, and how they are spread over layers."""
    gone, every = pruned.total(), total.total()
    yield Bar(*names, "pruned weights", "all", gone / every, None, None, gone, every)
    for kind, count in pruned.items():
        share = count / gone if gone else 0.0
        yield Bar(*names, "pruned weights", kind, share, None, None, count, total[kind])


def _place(r: Record) -> int:
    """Return where a strategy stands in the figure."""
    name = r.cell.method.name
    return STRATEGIES.index(name) if name in STRATEGIES else len(STRATEGIES)
