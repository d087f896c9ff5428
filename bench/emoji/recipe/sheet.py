"""A sheet of judged pictures for a person to judge again: ``python -m bench.emoji.recipe.sheet --help``."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Annotated

import typer
from PIL import Image, ImageDraw

from bench.engine.again import Again
from bench.engine.settings import Settings
from bench.store.metrics import rate
from bench.store.record import Record
from bench.store.store import read

app = typer.Typer(add_completion=False, help=__doc__)
_TILE, _LABEL, _COLUMNS = 128, 16, 10


@app.command()
def draw(
    results: Annotated[Path, typer.Argument(help="Folder of records of attacked cells.")],
    out: Annotated[Path, typer.Option(help="The PNG; verdicts go beside it, as JSON.")],
    each: Annotated[int, typer.Option(help="Pictures with the verdict yes, and with no.")] = 50,
    seed: Annotated[int, typer.Option(help="Of the choice and the order.")] = 0,
) -> None:
    """Draw pictures that attacks ended with, numbered, in random order, and without their verdicts.

    Above each stands what the judge was asked for. As many have the verdict yes as no, chosen at random
    from all records. Look at it before you look at the JSON.

    Example: python -m bench.emoji.recipe.sheet draw results/local --out sheet.png
    """
    rng = Random(seed)
    read_all = (read(path) for path in sorted(results.rglob("*.json")))
    records = [r for r in read_all if r and r.cell.attacked and r.cell.method.name != "none"]
    chosen = [case for verdict in (True, False) for case in _some(records, verdict, each, rng)]
    rng.shuffle(chosen)
    again, tiles = Again(Settings()), dict[int, Image.Image]()
    by_record: dict[str, list[int]] = {}
    for i, (record, _) in enumerate(chosen):
        by_record.setdefault(record.cell.id, []).append(i)
    for those in by_record.values():
        record = chosen[those[0]][0]
        rows = [record.rows[chosen[i][1]] for i in those]
        images = again.attacked_images(record, rows)
        tiles |= {i: image for i, image in zip(those, images, strict=True) if image is not None}
    _paste([tiles[i] for i in range(len(chosen))], [r.cell.concept.name for r, _ in chosen]).save(
        out
    )
    verdicts = [bool(record.rows[row].success) for record, row in chosen]
    out.with_suffix(".json").write_text(json.dumps(verdicts) + "\n")


@app.command()
def agreement(
    verdicts: Annotated[Path, typer.Argument(help="The JSON beside the sheet.")],
    seen: Annotated[str, typer.Argument(help="Numbers of the pictures in which you see it: 0,3,4")],
) -> None:
    """Say how often a person and the judge agree, on its yes and on its no.

    Example: python -m bench.emoji.recipe.sheet agreement sheet.json 0,3,4,11
    """
    said = json.loads(verdicts.read_text())
    yours = {int(number) for number in seen.split(",")}
    for name, verdict in (("yes", True), ("no", False)):
        m = rate([(i in yours) == v for i, v in enumerate(said) if v == verdict])
        typer.echo(
            f"verdict {name}: you agree with {m.value:.2f} [{m.low:.2f}-{m.high:.2f}], N={m.n}"
        )


def _some(records: list[Record], verdict: bool, n: int, rng: Random) -> list[tuple[Record, int]]:
    """Choose rows with a verdict."""
    cases = [
        (record, i)
        for record in records
        for i, row in enumerate(record.rows)
        if row.success is verdict and not row.beyond  # what is found beyond prompts may not be kept
    ]
    return rng.sample(cases, min(n, len(cases)))


def _paste(tiles: list[Image.Image], names: list[str]) -> Image.Image:
    rows = -(-len(tiles) // _COLUMNS)
    sheet = Image.new("RGB", (_COLUMNS * _TILE, rows * (_TILE + _LABEL)), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (tile, name) in enumerate(zip(tiles, names, strict=True)):
        x, y = i % _COLUMNS * _TILE, i // _COLUMNS * (_TILE + _LABEL)
        pen.text((x + 2, y + 2), f"{i}  {name}", "black")
        sheet.paste(tile.resize((_TILE, _TILE), Image.Resampling.NEAREST), (x, y + _LABEL))
    return sheet


if __name__ == "__main__":
    app()
