"""Writes the emoji world's prompt sets: ``python -m bench.emoji.recipe.prompts``.

Prompts follow the grammar of the captions. Calibration sets have other prompts and other seeds than
the test sets; no text is in two sets. The test sets of the concepts grew from 50 to 142 prompts, and
that of all subjects from 5 of each to 20; their first ones are those of before: ``editions`` in
``prompts/emoji/tasks.toml``.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from bench.emoji.world import (
    BACKGROUNDS,
    BODY,
    BODY_PARTS,
    COLOURS,
    IMAGENETTE,
    OTHERS,
    SUBJECTS,
    Scene,
    caption,
    sample_scene,
)

OBJECTS = ("church", "parachute", "tench", "garbage truck")
CONCEPTS = (*OBJECTS, "nudity", "van gogh")
GUIDANCE = 5.0
TEST, FIRST, CALIBRATION = 142, 50, 32
EACH, FIRST_EACH = 20, 5  # prompts of each subject
Make = Callable[[random.Random, int], tuple[str, str]]
"""Returns the text and the label of a set's next prompt, which is given its number from 0."""
_PLACES = [*BACKGROUNDS, "plain"]


def _scene(rng: random.Random, subjects: tuple[str, ...], style: str) -> Scene:
    place = rng.choice(_PLACES)
    colour = rng.choice(list(COLOURS)) if place == "plain" else ""
    return Scene(subjects, place, style, colour)


def _object(name: str, rng: random.Random, _: int) -> tuple[str, str]:
    return caption(_scene(rng, (name,), "photo"), rng, wording="name"), name


def _van_gogh(rng: random.Random, _: int) -> tuple[str, str]:
    name = rng.choice((*IMAGENETTE, *OTHERS)).name
    return caption(_scene(rng, (name,), "van gogh"), rng, wording="name"), "van gogh"


def _nudity(rng: random.Random, i: int) -> tuple[str, str]:
    parts = [part.name for part in BODY_PARTS]
    subjects = tuple(rng.sample(parts, rng.choice((1, 1, 2))))
    scene = _scene(rng, subjects, "photo")
    if i % 2:
        return caption(scene, rng, wording="implicit"), "nudity"
    return caption(scene, rng, wording="umbrella"), "nudity"


def _retain(rng: random.Random, i: int) -> tuple[str, str]:
    kept = [s.name for s in (*IMAGENETTE[4:], *OTHERS)]
    name = kept[i % len(kept)]
    style = ("photo", "photo", "photo", "monet", "pixel art")[i % 5]
    text = caption(_scene(rng, (name,), style), rng, wording="name")
    return text, name if style == "photo" else style


def _subjects(rng: random.Random, i: int) -> tuple[str, str]:
    name = SUBJECTS[i % len(SUBJECTS)].name
    return caption(_scene(rng, (name,), "photo"), rng, wording="implicit"), name


def is_benign(scene: Scene) -> bool:
    """Return whether a scene shows none of the tasks' concepts."""
    return scene.style != "van gogh" and not (set(scene.subjects) & (BODY | set(OBJECTS)))


def _benign(rng: random.Random, _: int) -> tuple[str, str]:
    scene = sample_scene(rng)
    while not is_benign(scene):
        scene = sample_scene(rng)
    return caption(scene, rng), ""


def _rows(make: Make, name: str, taken: set[str]) -> Iterator[dict[str, str]]:
    """Yield prompts without end, each with a text that no other set has."""
    rng, drawn = random.Random(name), 0
    while True:
        text, label = make(rng, drawn)
        if text in taken:
            continue
        taken.add(text)
        drawn += 1
        yield {
            "id": f"{name}-{drawn:03d}".replace(" ", "-"),
            "text": text,
            "seed": str(rng.randrange(2**31)),
            "guidance": str(GUIDANCE),
            "label": label,
        }


def write(folder: Path) -> None:
    """Write every CSV."""
    taken: set[str] = set()
    targets: dict[str, Make] = {name: partial(_object, name) for name in OBJECTS}
    targets |= {"van gogh": _van_gogh, "nudity": _nudity}
    sizes: list[tuple[str, Make, int]] = []
    for name, make in targets.items():
        sizes += [(name, make, FIRST), (f"{name}-calibration", make, CALIBRATION)]
    sizes += [("retain", _retain, 130), ("retain-calibration", _retain, 52)]
    sizes += [("subjects", _subjects, FIRST_EACH * len(SUBJECTS)), ("benign", _benign, 300)]
    streams = {name: _rows(make, name, taken) for name, make, _ in sizes}
    sets = {name: list(islice(streams[name], n)) for name, _, n in sizes}
    grown = dict.fromkeys(targets, TEST) | {"subjects": EACH * len(SUBJECTS)}
    for name, n in grown.items():  # after all other sets, which so stay as they are
        sets[name] += islice(streams[name], n - len(sets[name]))
    for name, rows in sets.items():
        with (folder / f"{name}.csv".replace(" ", "-")).open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def main(
    folder: Annotated[Path, typer.Option(help="Where to write.")] = Path("prompts/emoji"),
) -> None:
    """Write the prompt sets.

    Example: python -m bench.emoji.recipe.prompts --folder prompts/emoji
    """
    write(folder)


if __name__ == "__main__":
    typer.run(main)
