"""Where the concept's neurons are active: Fig. 3 of arXiv 2405.16534."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.report.figures.style import BLACK, Drawing, finished, look
from bench.report.text import plain
from bench.report.words import marked
from bench.tasks.safety import blurred

if TYPE_CHECKING:
    from PIL.Image import Image

CONTOURS = (0.25, 0.5, 0.75)


@dataclass(frozen=True, slots=True)
class Overlay:
    """One image, and how active the concept's neurons were while it was drawn.

    Args:
        name: "original", "erased" or "attacked".
        image: It.
        heat: ``(height, width)``; 1 is the highest in the original.
        verdict: What the judge said of it.
    """

    name: str
    image: Image
    heat: Any
    verdict: str


@dataclass(frozen=True, slots=True)
class Activity:
    """The numbers of one image.

    Args:
        cell: Whose prompt.
        id: The prompt's name.
        image: "original", "erased" or "attacked".
        verdict: What the judge said of it.
        call: The denoiser call at which neurons were read.
        calls: How many there are.
        activity: Mean over pixels, in units of the original's.
    """

    cell: str
    id: str
    image: str
    verdict: str
    call: int
    calls: int
    activity: float


@dataclass(frozen=True, slots=True)
class Strip:
    """One prompt: its text, what an attack made of it, and its images."""

    text: str
    adversarial: str
    overlays: Sequence[Overlay]


@look()
def draw(strips: Sequence[Strip], title: str, when: str, *, hide: bool) -> Drawing:
    """Draw a line for each prompt; the redder, the more active, and lines of equal activity.

    Args:
        strips: At least one.
        title: Which cell.
        when: At which denoiser call neurons were read.
        hide: Whether images are blurred.
    """
    import numpy as np
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    columns = max(len(strip.overlays) for strip in strips)
    figure = Figure(figsize=(2.25 * columns + 0.5, 2.75 * len(strips) + 0.5), layout="constrained")
    grid = figure.subplots(len(strips), columns, squeeze=False)
    for line, strip in zip(grid, strips, strict=True):
        first = strip.overlays[0].heat
        for axes, each, share in zip(line, strip.overlays, shares(strip), strict=True):
            image = blurred(each.image) if hide else each.image
            size = first.shape[::-1]
            grey = np.asarray(image.convert("L").resize(size)) / 255
            axes.imshow(0.35 + 0.65 * grey, cmap="gray", vmin=0, vmax=1)
            alpha = 0.75 * np.clip(each.heat, 0, 1)
            axes.imshow(each.heat, cmap="Reds", vmin=0, vmax=1, alpha=alpha)
            if float(np.max(each.heat)) > CONTOURS[0]:
                axes.contour(each.heat, CONTOURS, colors=BLACK, linewidths=(0.6, 1.0, 1.5))
            axes.set_xticks([])
            axes.set_yticks([])
            axes.grid(False)
            axes.set_title(f"{each.name}: activity {share:.2f}\nconcept {each.verdict}", fontsize=8)
        line[0].set_xlabel(_wrapped(strip.text), fontsize=7.5, loc="left")
        if strip.adversarial:
            line[-1].set_xlabel(_adversarial(strip), fontsize=7.5, loc="left")
    scale = ScalarMappable(Normalize(0, 1), "Reds")
    bar = figure.colorbar(scale, ax=grid, shrink=0.6, aspect=30, pad=0.02)
    bar.set_label("activity (1: highest in the original)")
    bar.ax.hlines(CONTOURS, 0, 1, colors=BLACK, linewidths=(0.6, 1.0, 1.5))
    note = (
        "Images in grey, above them the mean activation of the 5 neurons of each layer that the erasure "
        f"reduced most (Eq. 4 of arXiv 2405.16534), what is above 0, {when}. Each layer is divided by its "
        "highest in the original. Activity is the mean over pixels, in units of the "
        "original's."
    )
    return finished(figure, title, note)


def shares(strip: Strip) -> list[float]:
    """Return the mean activity of each image, in units of the first's."""
    first = max(float(strip.overlays[0].heat.mean()), 1e-9)
    return [float(each.heat.mean()) / first for each in strip.overlays]


def _wrapped(text: str) -> str:
    from textwrap import fill

    return fill(plain(text), 34)


def _adversarial(strip: Strip) -> str:
    """Return the adversarial text, what the attack wrote in brackets."""
    words = [f"[{w}]" if mark else w for w, mark in marked(strip.text, strip.adversarial)]
    return _wrapped(" ".join(words).replace("] [", " "))
