"""Pruning strategies, and where they prune: Fig. 6 of arXiv 2405.16534."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.report.figures.style import (
    COLOURS,
    HATCHES,
    Drawing,
    Styles,
    finished,
    look,
    none_first,
    sheet,
    sizes,
)
from bench.report.text import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STRATEGIES = ("esd", "pre-prune", "p-esd", "post-prune")
_KINDS = (  # a part of a weight's name, and what such layers are called; the first that fits
    ("attn1.to_q", "self-attention q"),
    ("attn1.to_k", "self-attention k"),
    ("attn1.to_v", "self-attention v"),
    ("attn1.to_out", "self-attention out"),
    ("attn2.to_q", "cross-attention q"),
    ("attn2.to_k", "cross-attention k"),
    ("attn2.to_v", "cross-attention v"),
    ("attn2.to_out", "cross-attention out"),
    (".ff.", "feed-forward"),
    ("proj_in", "projection in"),
    ("proj_out", "projection out"),
    ("time_emb", "time"),
    ("resnets", "ResNet convolution"),
    ("conv", "other convolution"),
)


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: a rate, or where weights were pruned.

    Args:
        task: Whose concept was erased.
        method: By what.
        shows: "concept erasing rate", or "pruned weights".
        of: The attack, or the kind of layer; "all" is the whole denoiser.
        value: The rate, or the share of all weights that the method pruned; of "all", of all weights.
        low: Lower end of a rate's 95 % interval.
        high: Upper end.
        count: Prompts that are erased, or weights that are pruned.
        total: Prompts, or weights of these layers.
    """

    task: str
    method: str
    shows: str
    of: str
    value: float
    low: float | None
    high: float | None
    count: int
    total: int


def kind_of(weight: str) -> str:
    """Return what a denoiser's layers of this kind are called, from the name of a weight."""
    return next((kind for part, kind in _KINDS if part in weight), "other")


@look()
def draw(found: Sequence[Bar]) -> Drawing:
    """Draw a line of panels for each task: erasing rates, and the layers that are pruned."""
    tasks = list(dict.fromkeys(b.task for b in found))
    known = [kind for _, kind in _KINDS]
    kinds = sorted(
        {b.of for b in found if _is_layer(b)}, key=lambda k: (k not in known, _place(known, k))
    )
    height = max(3.0, 0.3 * len(kinds))
    figure, grid = sheet(len(tasks), 2, width=4.6, height=height)
    methods = list(dict.fromkeys(b.method for b in found))
    attacks = none_first(b.of for b in found if _is_rate(b))
    of_attack = Styles(attacks, COLOURS), Styles(attacks, HATCHES)
    of_method = Styles(methods, COLOURS[2:]), Styles(methods, HATCHES[1:])
    for (left, right), task in zip(grid, tasks, strict=True):
        mine = [b for b in found if b.task == task]
        _rates(left, mine, attacks, of_attack)
        left.set_title(f"{plain(task)}, N={sizes(b.total for b in mine if _is_rate(b))}")
        pruning = [
            m for m in methods if any(b.method == m and _is_layer(b) and b.count for b in mine)
        ]
        _layers(right, mine, kinds, pruning, of_method)
    note = (
        "Left: rates with 95 % Wilson intervals; below a method the share of the denoiser's weights that "
        "it set to zero. Right: how a method's zeroed weights are spread over layers; the bars of each "
        "method add up to 100 %."
    )
    return finished(figure, "Pruning strategies, and the layers that they prune", note)


def _rates(
    axes: Axes, some: Sequence[Bar], attacks: Sequence[str], style: tuple[Styles[str], Styles[str]]
) -> None:
    """Draw a group of bars for each method."""
    colours, hatches = style
    methods = list(dict.fromkeys(b.method for b in some))
    wide = 0.8 / max(1, len(attacks))
    for i, attack in enumerate(attacks):
        bars = [b for b in some if _is_rate(b) and b.of == attack]
        places = [methods.index(b.method) - 0.4 + wide * (i + 0.5) for b in bars]
        heights = [b.value for b in bars]
        ends = [[b.value - (b.low or 0.0) for b in bars], [(b.high or 0.0) - b.value for b in bars]]
        name = "no attack" if attack == "none" else attack
        axes.bar(
            places, heights, wide * 0.92, color=(colours[attack], 0.5), hatch=hatches[attack],
            edgecolor="black", linewidth=0.7, label=plain(name), yerr=ends, capsize=2,
            error_kw={"elinewidth": 1},
        )  # fmt: skip
    shares = {b.method: b.value for b in some if not _is_rate(b) and b.of == "all"}
    names = [
        f"{plain(m)}\n{_percent(shares[m])} pruned" if m in shares else plain(m) for m in methods
    ]
    axes.set_xticks(range(len(methods)), names, fontsize=8)
    axes.set_ylim(0, 1.03)
    axes.grid(axis="x", visible=False)
    axes.set_ylabel("concept erasing rate")


def _layers(
    axes: Axes,
    some: Sequence[Bar],
    kinds: Sequence[str],
    methods: Sequence[str],
    style: tuple[Styles[str], Styles[str]],
) -> None:
    """Draw a group of bars for each kind of layer."""
    colours, hatches = style
    tall = 0.8 / max(1, len(methods))
    for i, method in enumerate(methods):
        bars = {b.of: b for b in some if _is_layer(b) and b.method == method}
        places = [k - 0.4 + tall * (i + 0.5) for k, kind in enumerate(kinds) if kind in bars]
        widths = [100 * bars[kind].value for kind in kinds if kind in bars]
        axes.barh(
            places, widths, tall * 0.92, color=(colours[method], 0.5), hatch=hatches[method],
            edgecolor="black", linewidth=0.7, label=plain(f"pruned by {method}"),
        )  # fmt: skip
    axes.set_yticks(range(len(kinds)), kinds, fontsize=8)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("share of the method's pruned weights, %")
    if not methods:
        axes.text(0.5, 0.5, "nothing is pruned", transform=axes.transAxes, ha="center")


def _is_rate(b: Bar) -> bool:
    return b.shows == "concept erasing rate"


def _is_layer(b: Bar) -> bool:
    return not _is_rate(b) and b.of != "all"


def _place(known: Sequence[str], kind: str) -> int:
    return known.index(kind) if kind in known else len(known)


def _percent(share: float) -> str:
    """Return a share as a percentage with two digits that count."""
    return f"{100 * share:.2g} %" if share else "0 %"
