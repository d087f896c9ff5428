"""How sensitive neurons are to adversarial prompts, by timestep: Fig. 2, 5 and 7 of arXiv 2405.16534."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from bench.report.figures.style import (
    COLOURS,
    MARKERS,
    Drawing,
    Styles,
    finished,
    look,
    sheet_of,
    sizes,
)
from bench.report.text import plain


@dataclass(frozen=True, slots=True)
class Step:
    """One point of a curve.

    Args:
        task: Whose prompts.
        method: Of the erased model.
        attack: Whose adversarial prompts.
        call: The denoiser call's number, from 1: the first sees pure noise.
        calls: How many there are.
        timestep: The training timestep of the call.
        neurons: "concept" or "others".
        pairs: Pairs of a prompt and its adversarial prompt.
        sensitivity: Eq. 5, with its 95 % interval ``low`` to ``high`` over pairs.
    """

    task: str
    method: str
    attack: str
    call: int
    calls: int
    timestep: float
    neurons: str
    pairs: int
    sensitivity: float
    low: float
    high: float


@look()
def draw(found: Sequence[Step]) -> Drawing:
    """Draw a panel for each task: concept neurons as whole lines, the others dashed."""
    tasks = list(dict.fromkeys(s.task for s in found))
    figure, grid = sheet_of(len(tasks), width=4.0, height=3.0)
    names = [f"{s.method}, {s.attack}" for s in found]
    colours, markers = Styles(names, COLOURS), Styles(names, MARKERS)
    for axes, task in zip(grid, tasks, strict=True):
        some = [s for s in found if s.task == task]
        for (method, attack, neurons), curve in groupby(
            some, key=lambda s: (s.method, s.attack, s.neurons)
        ):
            x, y, low, high = zip(
                *((s.call, s.sensitivity, s.low, s.high) for s in curve), strict=True
            )
            name = f"{method}, {attack}"
            concept = neurons == "concept"
            axes.plot(
                x, y, color=colours[name], marker=markers[name], markevery=max(1, len(x) // 7),
                ls="-" if concept else "--", markerfacecolor=colours[name] if concept else "white",
                label=plain(f"{name}: {neurons if concept else 'other'} neurons"),
            )  # fmt: skip
            axes.fill_between(x, low, high, color=colours[name], alpha=0.15, lw=0)
        axes.set_ylim(bottom=0)
        axes.locator_params("x", integer=True)
        axes.set_title(f"{plain(task)}, N={sizes(s.pairs for s in some)} pairs")
        axes.set_xlabel(f"denoiser call (of {some[0].calls}; 1: pure noise)")
        axes.set_ylabel("|z(adversarial) - z(prompt)|")
    note = (
        "Sensitivity (Eq. 5 of arXiv 2405.16534): mean over pixels, neurons of a layer, layers, pairs of a "
        "prompt and its adversarial prompt, from the same noise. Concept neurons: of each layer those 5 "
        "that the erasure itself reduced most on the same prompts (Eq. 4). Only prompts that all methods "
        "shown erase without an attack. Bands: 95 % t intervals over pairs."
    )
    return finished(figure, "Sensitivity of neurons to adversarial prompts", note)
