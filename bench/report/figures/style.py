"""How all figures look, and how they are written: the same bytes for the same figure, no display.

Within a figure a method or an attack has one colour and one marker, and a curve one kind of line: colours
are those of Okabe and Ito (Color Universal Design, 2008), and nothing is told by colour alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from bench.core.errors import SpecError
from bench.report.text import plain
from bench.store.files import write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLACK, BLUE, VERMILION = "#000000", "#0072B2", "#D55E00"
COLOURS = (BLUE, VERMILION, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", BLACK, "#8C6D00")
MARKERS = (
    "o",
    "s",
    "D",
    "^",
    "v",
    "P",
    "X",
    "*",
    "<",
    "h",
    ">",
)  # more than colours: no pair is repeated
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 3)))
HATCHES = ("", "///", "...", "xxx", "---", "++", "oo", "\\\\")
FORMATS: dict[
    str, dict[str, None]
] = {  # the metadata that would tell when and by what it was written
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
_LOOK: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "figure.dpi": 150,
    "figure.titlesize": 11,
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same on every machine
    "font.size": 9,
    "grid.alpha": 0.3,
    "hatch.linewidth": 0.6,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "legend.handlelength": 4.5,
    "lines.linewidth": 1.6,
    "lines.markersize": 6,
    "pdf.fonttype": 42,  # fonts are embedded
    "savefig.dpi": 150,
    "svg.fonttype": "path",
    "svg.hashsalt": "erasure-bench",
    "text.hinting": "no_hinting",  # a text is as wide as its font says
    "text.parse_math": False,  # a $ in a prompt is a $
}
Value = TypeVar("Value")


@contextmanager
def look() -> Iterator[None]:
    """Draw in the common look, whatever the user's own settings of matplotlib are."""
    import matplotlib
    from matplotlib import rcParamsDefault

    own = {k: v for k, v in rcParamsDefault.items() if not k.startswith("backend")}
    with matplotlib.rc_context(own | _LOOK):  # type: ignore[arg-type]
        yield


class Styles(Generic[Value]):
    """Gives each name a style of its own, the same wherever it appears in a figure."""

    def __init__(self, names: Iterable[str], styles: Sequence[Value]) -> None:
        known = list(dict.fromkeys(names))
        self._of = {name: styles[i % len(styles)] for i, name in enumerate(known)}

    def __getitem__(self, name: str) -> Value:
        return self._of[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._of)


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure that is ready to be written.

    Args:
        figure: It.
        title: What it shows, in one line.
    """

    figure: Figure
    title: str

    def bytes(self, format_: str) -> bytes:
        """Return the file's content: "png", "svg" or "pdf"; equal figures give equal bytes."""
        buffer, told = BytesIO(), dict[str, str | None](FORMATS[format_])
        with look():
            self.figure.savefig(
                buffer, format=format_, metadata={"Title": plain(self.title)} | told
            )
        return buffer.getvalue()

    def save(self, path: Path) -> None:
        """Write it as the file's name says.

        Raises:
            SpecError: The name ends in something else.
            StoreError: The file cannot be written.
        """
        write(path, self.bytes(format_of(path)))


def format_of(path: Path) -> str:
    """Return the format that a file's name asks for.

    Raises:
        SpecError: There is no such format.
    """
    ending = path.suffix.removeprefix(".").lower()
    if ending not in FORMATS:
        raise SpecError(f"--out {path}: expected a name that ends in .png, .svg or .pdf")
    return ending


def sheet(rows: int, columns: int, *, width: float = 3.4, height: float = 2.8) -> Any:
    """Return an empty figure and its axes ``(rows, columns)``; sizes are those of one panel, in inches."""
    from matplotlib.figure import Figure

    size = (max(6.4, width * columns), height * rows + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def finished(figure: Figure, title: str, note: str) -> Drawing:
    """Put the title above the panels; below them, on paper that is added, a common legend and the note."""
    width, height = figure.get_size_inches()
    figure.suptitle(fill(plain(title), int(width * 12)))
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    longest = max(map(len, handles), default=1)
    columns = max(1, min(len(handles), int(width / (0.068 * longest + 0.75))))
    text = fill(plain(note), int(width * 15.5))
    of_note = 0.135 * (text.count("\n") + 1) + 0.1
    added = of_note + 0.165 * -(-len(handles) // columns) + 0.1
    whole = height + added
    figure.set_size_inches(width, whole)
    engine: Any = figure.get_layout_engine()
    engine.set(rect=(0, added / whole, 1, 1 - added / whole))
    figure.text(0.5, 0.06 / whole, text, fontsize=7.5, color="#333333", ha="center", va="bottom")
    if handles:
        figure.legend(
            handles.values(),
            handles.keys(),
            loc="lower center",
            bbox_to_anchor=(0.5, of_note / whole),
            borderaxespad=0.0,
            labelspacing=0.35,
            ncols=columns,
        )
    return Drawing(figure, title)


def sheet_of(
    count: int, most: int = 3, *, width: float = 3.4, height: float = 2.8
) -> tuple[Any, list[Axes]]:
    """Return an empty figure, and so many panels of it, line by line: ``most`` side by side."""
    columns = min(most, count)
    figure, grid = sheet(-(-count // columns), columns, width=width, height=height)
    axes = list(grid.flatten())
    for empty in axes[count:]:
        empty.set_axis_off()
    return figure, axes[:count]


def outer(figure: Figure, rate: str) -> None:
    """Label the vertical axis of the first panels alone, and the horizontal one of the lowest alone.

    All panels have one vertical scale, and those below each other one horizontal scale.
    """
    places = {
        axes: place for axes in figure.axes if axes.axison and (place := axes.get_subplotspec())
    }
    for axes, place in places.items():
        column = [p.rowspan.start for p in places.values() if p.colspan == place.colspan]
        if place.rowspan.start < max(column):
            axes.set_xlabel("")
            axes.tick_params(labelbottom=False)
        if place.is_first_col():
            axes.set_ylabel(rate)
        else:
            axes.tick_params(labelleft=False)


def stairs(axes: Axes, *ends: Sequence[float], style: tuple[str, Any, str], name: str) -> None:
    """Draw a rate that changes in steps, in its interval.

    Args:
        axes: Of the panel.
        ends: x, the rate, and the lower and upper end of its interval.
        style: Colour, line and marker.
        name: In the legend.
    """
    (x, y, low, high), (colour, line, marker) = ends, style
    axes.step(
        x, y, where="post", color=colour, ls=line, label=name,
        marker=marker, markevery=0.15, markersize=5,
    )  # fmt: skip
    axes.fill_between(x, low, high, step="post", color=colour, alpha=0.1, lw=0)


def none_first(names: Iterable[str]) -> list[str]:
    """Return each name once, sorted; first what was not erased, or not attacked."""
    return sorted(set(names), key=lambda name: (name != "none", name))


def sizes(numbers: Iterable[int]) -> str:
    """Return each number once, as "50/142"."""
    return "/".join(map(str, sorted(set(numbers))))
