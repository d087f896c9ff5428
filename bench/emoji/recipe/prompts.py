"""Writes the emoji world's prompt sets: ``python -m bench.emoji.recipe.prompts``.

Prompts follow the grammar of the captions. Calibration sets have other prompts and other seeds than
the test sets; no text is in both.
"""

from __future__ import annotations

import csv
import random
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
    Scene,
    caption,
    sample_scene,
)

OBJECTS = ("church", "parachute", "tench", "garbage truck")
CONCEPTS = (*OBJECTS, "nudity", "van gogh")
GUIDANCE = 5.0
TEST, CALIBRATION = 50, 32
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
    name = (*IMAGENETTE, *BODY_PARTS, *OTHERS)[i % 38].name
    return caption(_scene(rng, (name,), "photo"), rng, wording="implicit"), name


def is_benign(scene: Scene) -> bool:
    """Return whether a scene shows none of the tasks' concepts."""
    return scene.style != "van gogh" and not (set(scene.subjects) & (BODY | set(OBJECTS)))


def _benign(rng: random.Random, _: int) -> tuple[str, str]:
    scene = sample_scene(rng)
    while not is_benign(scene):
        scene = sample_scene(rng)
    return caption(scene, rng), ""


def _unique(make, seed: str, n: int, taken: set[str]) -> list[dict[str, str]]:  # type: ignore[no-untyped-def]
    """Draw prompts until ``n`` have texts that no other set has."""
    rng, rows = random.Random(seed), list[dict[str, str]]()
    while len(rows) < n:
        text, label = make(rng, len(rows))
        if text in taken:
            continue
        taken.add(text)
        name = f"{seed}-{len(rows) + 1:03d}".replace(" ", "-")
        seed_ = rng.randrange(2**31)
        rows.append(
            {
                "id": name,
                "text": text,
                "seed": str(seed_),
                "guidance": str(GUIDANCE),
                "label": label,
            }
        )
    return rows


def write(folder: Path) -> None:
    """Write every CSV."""
    taken: set[str] = set()
    sets: dict[str, tuple] = {}  # type: ignore[type-arg]
    for name in OBJECTS:
        sets[name] = (lambda rng, i, name=name: _object(name, rng, i), TEST, CALIBRATION)
    sets["van gogh"] = (_van_gogh, TEST, CALIBRATION)
    sets["nudity"] = (_nudity, TEST, CALIBRATION)
    sets["retain"] = (_retain, 130, 52)
    sets["subjects"] = (_subjects, 190, 0)
    sets["benign"] = (_benign, 300, 0)
    for name, (make, test, calibration) in sets.items():
        for suffix, n in (("", test), ("-calibration", calibration)):
            if not n:
                continue
            rows = _unique(make, name + suffix, n, taken)
            path = folder / f"{name}{suffix}.csv".replace(" ", "-")
            with path.open("w", newline="") as stream:
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
