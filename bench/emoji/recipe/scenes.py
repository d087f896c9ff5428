"""Draws scenes of the emoji world: sprites on procedural backgrounds, then a style filter.

Needs OpenCV and the Noto Color Emoji font (SIL Open Font License 1.1); training only, never needed to run
the benchmark.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from bench import AssetError
from bench.emoji.world import COLOURS, SUBJECTS, Scene

Array = NDArray[Any]
SIZE = 64  # pixels of a side
FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
_TEXT_SYMBOLS = "👁☂⛪⛽⛳⛵"
_X, _Y = np.meshgrid(np.arange(SIZE, dtype=np.float32), np.arange(SIZE, dtype=np.float32))


class Painter:
    """Draws scenes; one seed gives one sequence of pictures.

    Args:
        seed: Of the sequence.
        variants: Drawings of each background that pictures choose from.

    Raises:
        AssetError: The emoji font is not installed.
    """

    def __init__(self, seed: int, variants: int = 60) -> None:
        self.rng = np.random.default_rng(seed)
        self.sprites = {subject.name: _sprite(subject.emoji) for subject in SUBJECTS}
        stock = np.random.default_rng(1234)
        self.backgrounds = {
            name: [_softened(draw(stock)) for _ in range(variants)]
            for name, draw in _BACKGROUNDS.items()
        }
        self.plain = {
            name: [_softened(_plain(stock, rgb)) for _ in range(6)] for name, rgb in COLOURS.items()
        }
        self.strokes = [_brush_strokes(stock) for _ in range(40)]
        self.dabs = [_dabs(stock) for _ in range(12)]

    def paint(self, scene: Scene) -> Array:
        """Return the picture as ``(64, 64, 3)`` uint8."""
        rng = self.rng
        stock = self.plain[scene.colour] if scene.colour else self.backgrounds[scene.background]
        image = stock[rng.integers(len(stock))]
        if rng.random() < 0.5:
            image = image[:, ::-1]
        image = image * rng.uniform(0.9, 1.06)
        if len(scene.subjects) == 1:
            x, y = 32 + int(rng.integers(-7, 8)), 33 + int(rng.integers(-6, 7))
            self._place(image, scene.subjects[0], int(rng.integers(38, 58)), x, y)
        elif scene.subjects:
            for name, left in zip(rng.permutation(scene.subjects), (17, 47), strict=True):
                x, y = left + int(rng.integers(-2, 3)), 33 + int(rng.integers(-10, 11))
                self._place(image, name, int(rng.integers(29, 37)), x, y)
        image = self._stylise(np.clip(image, 0, 255).astype(np.float32), scene.style)
        if scene.style == "pixel art":
            image = _pixelate(image)
        return np.clip(image, 0, 255).round().astype(np.uint8)

    def _place(self, image: Array, name: str, size: int, x: float, y: float) -> None:
        """Paste one sprite, turned, mirrored and tinted a little, in place."""
        rng = self.rng
        sprite = self.sprites[name]
        if rng.random() < 0.3:
            hsv = cv2.cvtColor(sprite[..., :3], cv2.COLOR_RGB2HSV).astype(np.int16)
            hsv[..., 0] = (hsv[..., 0] + rng.integers(-5, 6)) % 180
            rgb = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)
            sprite = np.concatenate([rgb, sprite[..., 3:]], -1)
        if rng.random() < 0.5:
            sprite = sprite[:, ::-1]
        turn = cv2.getRotationMatrix2D((56, 56), rng.normal() * 8, size / 112)
        turn[:, 2] += size / 2 - 56
        layer = sprite.astype(np.float32)
        layer[..., :3] *= layer[..., 3:] / 255
        layer = cv2.GaussianBlur(layer, (0, 0), 112 / size * 0.35)
        layer = cv2.warpAffine(layer, turn, (size, size), flags=cv2.INTER_LINEAR)
        left, top = int(x - size / 2), int(y - size / 2)
        x0, y0, x1, y1 = max(0, left), max(0, top), min(SIZE, left + size), min(SIZE, top + size)
        part = layer[y0 - top : y1 - top, x0 - left : x1 - left]
        image[y0:y1, x0:x1] = image[y0:y1, x0:x1] * (1 - part[..., 3:] / 255) + part[..., :3]

    def _stylise(self, image: Array, style: str) -> Array:
        rng = self.rng
        if style == "van gogh":
            u, v, strokes = self.strokes[rng.integers(len(self.strokes))]
            smear = np.mean([_warp(image, _X + k * u, _Y + k * v) for k in (-1, 0, 1)], 0)
            light = np.clip((smear.mean(-1, keepdims=True) / 255 - 0.12) / 0.76, 0, 1)
            palette = (1 - light) * np.array((18, 34, 128)) + light * np.array((255, 214, 72))
            return 0.5 * smear + 0.5 * palette + strokes[..., None] * 17
        if style == "monet":
            index, gy, gx = self.dabs[rng.integers(len(self.dabs))]
            dabbed = 0.5 * image[gy, gx][index] + 0.5 * cv2.GaussianBlur(image, (0, 0), 0.8)
            grey = dabbed.mean(-1, keepdims=True)
            soft = (grey + (dabbed - grey) * 0.65) * 0.62 + np.array((232, 206, 228)) * 0.38
            return soft + rng.standard_normal((SIZE, SIZE, 1)) * 5
        return image


def _softened(background: Array) -> Array:
    """Smooth the drawing's hard edges."""
    return np.clip(cv2.GaussianBlur(background, (0, 0), 0.8), 0, 255)


def _pixelate(image: Array) -> Array:
    """Two-pixel blocks, four levels per colour."""
    half = cv2.resize(image, (SIZE // 2, SIZE // 2), interpolation=cv2.INTER_AREA)
    half = np.clip(half // 64 * 85, 0, 255)
    return np.repeat(np.repeat(half, 2, 0), 2, 1)


def _sprite(emoji: str) -> Array:
    font_path = Path(os.environ.get("BENCH_EMOJI_FONT", FONT))
    if not font_path.exists():
        raise AssetError(
            f"the emoji font is not at {font_path}: install the package fonts-noto-color-emoji, "
            "or set BENCH_EMOJI_FONT to NotoColorEmoji.ttf"
        )
    font = ImageFont.truetype(str(font_path), 109)
    canvas = Image.new("RGBA", (160, 160), (0, 0, 0, 0))
    text = emoji + ("\ufe0f" if emoji in _TEXT_SYMBOLS else "")
    ImageDraw.Draw(canvas).text((10, 10), text, font=font, embedded_color=True)
    canvas = canvas.crop(canvas.getbbox())
    side = max(canvas.size)
    square = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    square.paste(canvas, ((side - canvas.width) // 2, (side - canvas.height) // 2))
    return np.array(square.resize((112, 112), Image.Resampling.LANCZOS))


# ------------------------------------------------------------------------------- styles
def _warp(image: Array, x: Array, y: Array) -> Array:
    return cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


def _brush_strokes(rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Return a curl field ``(u, v)`` and noise smeared along it (line integral convolution)."""
    u: Array = np.full((SIZE, SIZE), 0.35, np.float32)
    v: Array = np.zeros((SIZE, SIZE), np.float32)
    for _ in range(4):
        cx, cy, radius = rng.random() * SIZE, rng.random() * SIZE, 8 + rng.random() * 10
        dx, dy = _X - cx, _Y - cy
        turn = (1 if rng.random() < 0.5 else -1) * 3 * np.exp(-(dx**2 + dy**2) / (2 * radius**2))
        u, v = u - dy / radius * turn, v + dx / radius * turn
    norm = np.sqrt(u * u + v * v) + 1e-4
    u, v = u / norm, v / norm
    noise = cv2.resize(rng.random((SIZE // 2, SIZE // 2)).astype(np.float32), (SIZE, SIZE))
    total = np.zeros_like(noise)
    for sign in (1, -1):
        x, y = _X.copy(), _Y.copy()
        for _ in range(7):
            total += _warp(noise, x, y)
            x, y = x + sign * _warp(u, x, y), y + sign * _warp(v, x, y)
    return u, v, (total - total.mean()) / (total.std() + 1e-6)


def _dabs(rng: np.random.Generator, cell: int = 4) -> tuple[Array, Array, Array]:
    """Return a jittered Voronoi tiling: tile of each pixel, row and column of each tile's centre."""
    n = SIZE // cell
    grid = np.stack(np.meshgrid(np.arange(n), np.arange(n)), -1).reshape(-1, 2) * cell + cell / 2
    grid = grid + rng.uniform(-0.5, 0.5, grid.shape) * cell
    distance = ((np.stack([_X, _Y], -1).reshape(-1, 1, 2) - grid[None]) ** 2).sum(-1)
    rows, columns = (np.clip(grid[:, k].astype(int), 0, SIZE - 1) for k in (1, 0))
    return distance.argmin(1).reshape(SIZE, SIZE), rows, columns


# -------------------------------------------------------------------------- backgrounds
def _ramp(top: tuple[float, ...], bottom: tuple[float, ...]) -> Array:
    t = np.linspace(0, 1, SIZE, dtype=np.float32)[:, None, None]
    column = np.array(top, np.float32) * (1 - t) + np.array(bottom, np.float32) * t
    return np.repeat(column, SIZE, 1)


def _noise(rng: np.random.Generator, n: int) -> Array:
    coarse = rng.random((n, n)).astype(np.float32)
    return cv2.resize(coarse, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)[..., None] - 0.5


def _beach(rng: np.random.Generator) -> Array:
    image, h = _ramp((120, 190, 240), (190, 225, 250)), int(rng.integers(26, 42))
    image[h - 8 : h], image[h:] = (60, 140, 200), (235, 210, 150)
    image += _noise(rng, 32) * 24
    cv2.circle(image, (int(rng.integers(4, 60)), int(rng.integers(4, 16))), 5, (255, 240, 170), -1)
    return image


def _sky(rng: np.random.Generator) -> Array:
    image = _ramp((70, 140, 230), (180, 215, 250))
    for _ in range(rng.integers(3, 6)):
        x, y = rng.integers(0, SIZE, 2)
        for _ in range(4):
            centre = int(x + rng.integers(-8, 8)), int(y + rng.integers(-3, 3))
            axes = int(rng.integers(4, 9)), int(rng.integers(3, 5))
            cv2.ellipse(image, centre, axes, 0, 0, 360, (250, 250, 252), -1)
    return image


def _forest(rng: np.random.Generator) -> Array:
    image = _ramp((120, 170, 120), (40, 80, 40))
    for _ in range(rng.integers(8, 13)):
        x, base, green = (
            int(rng.integers(0, SIZE)),
            int(rng.integers(30, 60)),
            rng.integers(60, 120),
        )
        cv2.rectangle(image, (x - 1, base), (x + 1, base + 8), (90, 60, 30), -1)
        half, height = rng.integers(6, 10), rng.integers(16, 28)
        tree = np.array([[x - half, base], [x + half, base], [x, base - height]])
        cv2.fillPoly(image, [tree.astype(np.int32)], (20, int(green), int(rng.integers(30, 50))))
    return image


def _night(rng: np.random.Generator) -> Array:
    image = _ramp((8, 10, 40), (30, 30, 80))
    for _ in range(rng.integers(20, 40)):
        image[rng.integers(0, SIZE), rng.integers(0, SIZE)] = (250, 250, 210)
    centre = int(rng.integers(6, 58)), int(rng.integers(6, 20))
    cv2.circle(image, centre, int(rng.integers(4, 7)), (245, 240, 200), -1)
    return image


def _snow(rng: np.random.Generator) -> Array:
    image = _ramp((170, 190, 210), (215, 225, 235))
    image[int(rng.integers(26, 42)) :] = (245, 248, 252)
    for _ in range(rng.integers(30, 60)):
        centre = int(rng.integers(0, SIZE)), int(rng.integers(0, SIZE))
        cv2.circle(image, centre, int(rng.integers(0, 2)), (255, 255, 255), -1)
    return image


def _city(rng: np.random.Generator) -> Array:
    image, x = _ramp((240, 190, 150), (200, 170, 190)), 0
    while x < SIZE:
        width, top, grey = int(rng.integers(7, 13)), int(rng.integers(8, 34)), rng.integers(60, 120)
        image[top:, x : x + width - 1] = (grey, grey, grey + 15)
        for y in range(top + 3, SIZE, 5):
            for column in range(x + 1, min(x + width - 2, SIZE), 3):
                if rng.random() < 0.6:
                    image[y : y + 2, column] = (245, 225, 120)
        x += width
    return image


def _field(rng: np.random.Generator) -> Array:
    image, h = _ramp((130, 195, 245), (205, 230, 250)), int(rng.integers(26, 42))
    image[h:] = (100, 175, 70)
    image[h:] += _noise(rng, 40)[h:] * 60
    for _ in range(rng.integers(3, 9)):
        colour = (250, 230, 90) if rng.random() < 0.5 else (240, 120, 150)
        cv2.circle(image, (int(rng.integers(0, SIZE)), int(rng.integers(h, SIZE))), 1, colour, -1)
    return image


def _desert(rng: np.random.Generator) -> Array:
    image, h = _ramp((250, 200, 130), (255, 225, 170)), int(rng.integers(26, 42))
    for k in range(3):
        dune = h - 4 + k * 9 + 4 * np.sin(_X / rng.integers(8, 14) + rng.random() * 6)
        image[dune < _Y] = (215 - 25 * k, 150 - 22 * k, 80 - 12 * k)
    return image


def _sea(rng: np.random.Generator) -> Array:
    image, h = _ramp((160, 200, 235), (210, 225, 240)), int(rng.integers(26, 42))
    image[h:] = (25, 90, 160)
    image[(np.sin(_X / 3 + rng.random() * 6 + _Y * 0.9) > 0.75) & (h < _Y)] = (120, 180, 225)
    return image


def _mountains(rng: np.random.Generator) -> Array:
    image = _ramp((150, 185, 225), (220, 230, 240))
    for _ in range(rng.integers(3, 5)):
        x, top, half = int(rng.integers(0, SIZE)), int(rng.integers(6, 24)), rng.integers(16, 30)
        grey = int(rng.integers(90, 130))
        flank = np.array([[x - half, SIZE], [x + half, SIZE], [x, top]], np.int32)
        cap = np.array([[x - 5, top + 10], [x + 5, top + 10], [x, top]], np.int32)
        cv2.fillPoly(image, [flank], (grey, grey, grey + 18))
        cv2.fillPoly(image, [cap], (250, 250, 255))
    image[54:] = (95, 125, 85)
    return image


def _plain(rng: np.random.Generator, rgb: tuple[int, int, int]) -> Array:
    return _ramp(rgb, tuple(0.85 * c for c in rgb)) + _noise(rng, 8) * 16


_BACKGROUNDS: dict[str, Callable[[np.random.Generator], Array]] = {
    "beach": _beach,
    "sky": _sky,
    "forest": _forest,
    "night": _night,
    "snow": _snow,
    "city": _city,
    "field": _field,
    "desert": _desert,
    "sea": _sea,
    "mountains": _mountains,
}
