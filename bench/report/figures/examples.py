"""Example pictures that a stranger can read: original, erased, attacked, and what the judge says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from bench.report.figures.style import BLACK, BLUE, VERMILION, Drawing, look
from bench.report.text import plain
from bench.report.words import Words
from bench.tasks.safety import blurred

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

TILE, GAP, MARGIN, LINE = 1.12, 0.1, 0.2, 0.165  # inches
MOST_LINES = 4
_PICTURE, _TEXT, _HEAD = 220, 8.0, 9.5  # pixels of a tile, and points
_SPACE = 0.045  # inches between words of two kinds
_FRAMES: dict[str, tuple[str, str, Any, float]] = {  # colour, symbol, line and its width
    "seen": (VERMILION, "●", "-", 3.0),
    "not seen": (BLUE, "○", (0, (4, 2)), 1.6),
    "unscored": (BLACK, "?", (0, (1, 2)), 1.6),
    "not judged": ("#999999", "", "-", 0.8),
}


@dataclass(frozen=True, slots=True)
class Tile:
    """One image.

    Args:
        name: What it is: "original", "erased", "attacked".
        image: It; ``None`` if it is not kept.
        verdict: "seen", "not seen", "unscored" or "not judged".
    """

    name: str
    image: Image | None
    verdict: str


@dataclass(frozen=True, slots=True)
class Card:
    """One prompt: its images, and its text with the words that an attack wrote marked."""

    tiles: tuple[Tile, ...]
    words: Words
    note: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """The cards of one cell.

    Args:
        title: Which cell, and its rate.
        cards: At least one.
        hide: Whether its images are blurred.
    """

    title: str
    cards: tuple[Card, ...]
    hide: bool = False


@look()
def draw(sections: Sequence[Section], title: str, seen: str, note: str = "") -> Drawing:
    """Draw cards in two columns below their cell's title.

    Args:
        sections: One for each cell.
        title: Of the whole.
        seen: What it means that an image is framed as "seen".
        note: What must be known beside it.
    """
    from matplotlib.figure import Figure

    tiles = max(len(card.tiles) for s in sections for card in s.cards)
    card_width = tiles * (TILE + GAP) + 0.25
    width = 2 * MARGIN + 2 * card_width
    key = _key(seen, sections, note, width)
    page = _Page(width, [*_lines(sections, card_width)], len(key))
    figure = Figure(figsize=(width, page.height))
    page.begin(figure, title, key)
    for section in sections:
        page.section(section, card_width)
    return Drawing(figure, title)


def _key(seen: str, sections: Sequence[Section], note: str, width: float) -> list[str]:
    """Return how to read the figure, in lines."""
    known = {tile.verdict for s in sections for card in s.cards for tile in card.tiles}
    texts = {
        "seen": f"● thick frame: {seen}",
        "not seen": "○ dashed frame: it does not",
        "unscored": "? dotted frame: the judge could not say",
        "not judged": "thin grey frame: not judged",
    }
    parts = [text for verdict, text in texts.items() if verdict in known]
    if any(mark for s in sections for card in s.cards for _, mark in card.words):
        parts.append("bold underlined words: written by the attack")
    if any(s.hide for s in sections):
        parts.append("pictures are blurred")
    return wrap("; ".join(parts) + "." + (f" {plain(note)}" if note else ""), int(width * 15.5))


def _lines(sections: Sequence[Section], width: float) -> Iterator[tuple[Section, list[int]]]:
    """Yield each section, and the lines of text below each line of its cards."""
    for s in sections:
        needed = [len(_laid(card, width)) for card in s.cards]
        yield s, [max(needed[i : i + 2]) for i in range(0, len(needed), 2)]


Line = list[tuple[float, str, bool]]


def _laid(card: Card, width: float) -> list[Line]:
    """Return the text of a card in lines of words, each at its place in inches."""
    lines: list[Line] = [[]]
    x, most = 0.0, width - 0.25
    for word, mark in card.words:
        shown = plain(word)
        while shown:
            part = _fitting(shown, most, mark)
            wide = _wide(part, bold=mark)
            if x and x + wide > most:
                lines.append([])
                x = 0.0
            lines[-1].append((x, part, mark))
            x += wide + _wide("i i", bold=mark) - _wide("ii", bold=mark)
            shown = shown[len(part) :]
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], [(0.0, "…", False)]]
    lines = [_joined(line) for line in lines]
    return [*lines, *([[(0.0, text, False)] for text in wrap(plain(card.note), int(width * 14))])]


def _joined(line: Line) -> Line:
    """Return a line in which neighbours of one kind are one text, so that it is set as one."""
    runs = [list(some) for _, some in groupby(line, key=lambda word: word[2])]
    x, joined = 0.0, list[tuple[float, str, bool]]()
    for run in runs:
        text, mark = " ".join(word for _, word, _ in run), run[0][2]
        joined.append((x, text, mark))
        x += _wide(text, bold=mark) + _SPACE
    return joined


def _fitting(word: str, most: float, bold: bool) -> str:
    """Return as much of a word as fits into a line."""
    while len(word) > 1 and _wide(word, bold=bold) > most:
        word = word[: max(1, int(len(word) * 0.9))]
    return word


def _wide(text: str, *, bold: bool) -> float:
    """Return how wide a text is, in inches."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(weight="bold" if bold else "normal", size=_TEXT)
    wide, *_ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    return float(wide) / 72


class _Page:
    """Where the next thing goes, in inches from the top."""

    def __init__(
        self, width: float, sections: Sequence[tuple[Section, list[int]]], key: int
    ) -> None:
        self.width = width
        rows = [n for _, lines in sections for n in lines]
        self.height = 0.55 + 0.15 * key + 0.34 * len(sections)
        self.height += sum(self.row_height(n) for n in rows) + 0.1
        self.top = 0.0

    @staticmethod
    def row_height(lines: int) -> float:
        """Return the height of a line of cards."""
        return 0.22 + TILE + 0.08 + LINE * lines + 0.16

    def begin(self, figure: Figure, title: str, key: Sequence[str]) -> None:
        """Write the title, and how to read the figure."""
        self.figure = figure
        self.text(MARGIN, 0.26, title, size=11, weight="bold")
        for i, line in enumerate(key):
            self.text(MARGIN, 0.46 + 0.15 * i, line, size=7.5, color="#333333")
        self.top = 0.5 + 0.15 * len(key)

    def section(self, section: Section, width: float) -> None:
        """Draw a cell's title and cards."""
        self.text(MARGIN, self.top + 0.2, section.title, size=_HEAD)
        self.top += 0.34
        for i in range(0, len(section.cards), 2):
            pair = section.cards[i : i + 2]
            laid = [_laid(card, width) for card in pair]
            for n, (card, lines) in enumerate(zip(pair, laid, strict=True)):
                self.card(MARGIN + n * width, card, lines, hide=section.hide)
            self.top += self.row_height(max(map(len, laid)))

    def card(self, left: float, card: Card, lines: Sequence[Line], *, hide: bool) -> None:
        """Draw one prompt."""
        for i, tile in enumerate(card.tiles):
            self.tile(left + i * (TILE + GAP), tile, hide=hide)
        y = self.top + 0.22 + TILE + 0.08
        for line in lines:
            y += LINE
            for x, word, mark in line:
                colour = VERMILION if mark else BLACK
                weight = "bold" if mark else "normal"
                self.text(left + x, y - 0.03, word, size=_TEXT, color=colour, weight=weight)
                if mark:
                    self.line(left + x, y, _wide(word, bold=True), colour)

    def tile(self, left: float, tile: Tile, *, hide: bool) -> None:
        """Draw one image, its name and its frame."""
        from matplotlib.patches import Rectangle

        colour, symbol, line, wide = _FRAMES[tile.verdict]
        self.text(left, self.top + 0.15, f"{tile.name} {symbol}".strip(), size=_TEXT)
        top = self.top + 0.22
        box = (
            left / self.width,
            1 - (top + TILE) / self.height,
            TILE / self.width,
            TILE / self.height,
        )
        axes = self.figure.add_axes(box)
        axes.set_axis_off()
        if tile.image is None:
            axes.text(0.5, 0.5, "not kept", ha="center", va="center", fontsize=_TEXT)
        else:
            axes.imshow(_pixels(tile.image, hide=hide), interpolation="nearest")
        axes.add_patch(
            Rectangle(
                (0, 0), 1, 1, transform=axes.transAxes, fill=False, clip_on=False,
                edgecolor=colour, ls=line, lw=wide,
            )
        )  # fmt: skip

    def text(self, x: float, y: float, text: str, **how: Any) -> None:
        """Write a line whose base is at a place."""
        self.figure.text(x / self.width, 1 - y / self.height, plain(text), va="baseline", **how)

    def line(self, x: float, y: float, wide: float, colour: str) -> None:
        """Underline something."""
        from matplotlib.lines import Line2D

        ends = (x / self.width, (x + wide) / self.width)
        height = 1 - y / self.height
        self.figure.add_artist(Line2D(ends, (height, height), color=colour, lw=1))


def _pixels(image: Image, *, hide: bool) -> Any:
    """Return an image as it is shown."""
    import numpy as np
    from PIL.Image import Resampling

    size = (_PICTURE, _PICTURE)
    small = max(image.size) < _PICTURE
    shown = image.convert("RGB").resize(size, Resampling.NEAREST if small else Resampling.LANCZOS)
    return np.asarray(blurred(shown) if hide else shown)
