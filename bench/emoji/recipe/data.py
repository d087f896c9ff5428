"""Stage 1, scenes: pictures, captions and labels of the training set, on disk as NumPy arrays."""

from __future__ import annotations

import json
from dataclasses import dataclass
from multiprocessing import Pool
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray

from bench.emoji.recipe.scenes import SIZE, Painter
from bench.emoji.world import (
    BACKGROUNDS,
    BODY,
    IMAGENETTE,
    LABELS,
    NOTHING,
    OTHERS,
    STYLES,
    Mix,
    caption,
    sample_scene,
)

CAPTIONS = 3
HELD_OUT = 4000
MIX = Mix(second=0.25, seconds=(*IMAGENETTE, *OTHERS), styles=(40, 26, 17, 17))  # for training
_CHUNK = 2000


@dataclass(frozen=True, slots=True)
class Scenes:
    """A rendered set. The last :data:`HELD_OUT` scenes are for measuring only.

    Args:
        images: ``(n, 64, 64, 3)`` uint8.
        subjects: ``(n, 39)`` 0/1, which of ``LABELS`` are in the picture.
        styles: ``(n,)`` index into ``STYLES``.
        backgrounds: ``(n,)`` index into ``BACKGROUNDS``; plain ones have the last index.
        captions: ``n`` lists of :data:`CAPTIONS` captions.
    """

    images: NDArray[np.uint8]
    subjects: NDArray[np.float32]
    styles: NDArray[np.int64]
    backgrounds: NDArray[np.int64]
    captions: list[list[str]]

    @property
    def train_size(self) -> int:
        """Number of scenes that may be trained on."""
        return len(self.images) - HELD_OUT

    def shows(self, *concepts: str) -> NDArray[np.bool_]:
        """Return which scenes show one of some subjects or styles; "nudity" is any body part."""
        shown = np.zeros(len(self.images), bool)
        for concept in concepts:
            if concept in STYLES:
                shown |= self.styles == STYLES.index(concept)
            else:
                names = BODY if concept == "nudity" else {concept}
                shown |= np.any(self.subjects[:, [LABELS.index(n) for n in names]] > 0, axis=1)
        return shown


def render(folder: Path, n: int, workers: int = 2, first: int = 0, mix: Mix = MIX) -> Scenes:
    """Return ``n`` scenes, drawing them first if the folder does not have them.

    ``first`` numbers the first chunk of 2000; chunks with other numbers have other scenes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arrays, texts = folder / f"scenes-{n}.npz", folder / f"captions-{n}.json"
    if not texts.exists():
        with Pool(workers) as pool:
            chunks = pool.starmap(_chunk, [(first + i, mix) for i in range(-(-n // _CHUNK))])
        parts = [np.concatenate([c[k] for c in chunks])[:n] for k in range(4)]
        np.savez(arrays, images=parts[0], subjects=parts[1], styles=parts[2], backgrounds=parts[3])
        texts.write_text(json.dumps([caps for c in chunks for caps in c[4]][:n]))
    with np.load(arrays) as saved:
        return Scenes(
            saved["images"],
            saved["subjects"],
            saved["styles"],
            saved["backgrounds"],
            json.loads(texts.read_text()),
        )


def _chunk(index: int, mix: Mix) -> tuple[NDArray[np.generic], ...]:
    painter, rng = Painter(seed=100 + index), Random(900 + index)
    places = [*BACKGROUNDS, "plain"]
    images = np.zeros((_CHUNK, SIZE, SIZE, 3), np.uint8)
    subjects = np.zeros((_CHUNK, len(LABELS)), np.float32)
    styles, backgrounds = np.zeros(_CHUNK, np.int64), np.zeros(_CHUNK, np.int64)
    captions = []
    for i in range(_CHUNK):
        scene = sample_scene(rng, mix)
        images[i] = painter.paint(scene)
        subjects[i, [LABELS.index(name) for name in scene.subjects or (NOTHING,)]] = 1
        styles[i], backgrounds[i] = STYLES.index(scene.style), places.index(scene.background)
        captions.append([caption(scene, rng) for _ in range(CAPTIONS)])
    return images, subjects, styles, backgrounds, captions  # type: ignore[return-value]
