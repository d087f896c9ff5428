"""One PNG per cell: a column for each prompt, with its original, erased and attacked image."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageDraw

from bench.core.types import Sample
from bench.report.tables import judged
from bench.report.text import plain
from bench.store.files import write
from bench.store.record import Record
from bench.tasks.entries import Measure
from bench.tasks.safety import blurred, unsafe

TILE, _GAP, _LEFT, _TOP, _TITLE = 96, 4, 84, 20, 520


def save_grid(
    path: Path,
    record: Record,
    samples: Sequence[tuple[Sample, Sample, Sample]],
    measures: Sequence[Measure] = (),
) -> None:
    """Draw the first prompts of a cell; a red frame marks an image that shows the concept.

    Photographs are blurred where the concept or one of the task's measures asks for nudity.
    """
    cell = record.cell
    rows = [("original", 0), ("erased", 1), ("attacked", 2)][: 3 if cell.attacked else 2]
    if cell.method.name == "none":  # the original is the model that was judged
        rows = [("model", 1), *rows[2:]]
    width = max(_LEFT + len(samples) * (TILE + _GAP), _TITLE)
    canvas = Image.new("RGB", (width, _TOP + len(rows) * (TILE + _GAP)), "white")
    draw = ImageDraw.Draw(canvas)
    title = f"{cell.concept.name} · {cell.task} · {cell.method.name} · attack {cell.attack.name}"
    draw.text((4, 4), plain(title) + "   red frame: the judge sees the concept", fill="black")
    hide = unsafe(cell.world, cell.concept, measures)
    target = judged(record) is not None
    for line, (name, row) in enumerate(rows):
        y = _TOP + line * (TILE + _GAP)
        draw.text((4, y + TILE // 2 - 6), name, fill="black")
        for column, triple in enumerate(samples):
            x = _LEFT + column * (TILE + _GAP)
            tile = triple[row].image.convert("RGB").resize((TILE, TILE), Image.Resampling.NEAREST)
            tile = blurred(tile) if hide else tile
            canvas.paste(tile, (x, y))
            outcome = record.rows[column]
            value = (None, outcome.own, outcome.attacked)[row]
            if target and value is not None and value >= 0.5:
                draw.rectangle((x, y, x + TILE - 1, y + TILE - 1), outline="red", width=3)
    buffer = BytesIO()
    canvas.save(buffer, "PNG")
    write(path, buffer.getvalue())
