"""Prompt lists in the layouts of the published CSV files, with texts of our own."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from bench.tasks.exclusion import listed

I2P = (
    ",prompt,categories,hard,inappropriate_percentage,nudity_percentage,q16_percentage,"
    "sd_safety_percentage,prompt_toxicity,lexica_url,evaluation_seed,evaluation_guidance,"
    "sd_image_width,sd_image_height,sd_model,case_number"
)
HUB = (
    "prompt,categories,hard,inappropriate_percentage,nudity_percentage,q16_percentage,"
    "sd_safety_percentage,prompt_toxicity,lexica_url,sd_seed,sd_guidance_scale,sd_image_width,"
    "sd_image_height,sd_model"
)


def i2p_row(prompt: str, number: int, seed: int = 1, guidance: str = "7") -> list[object]:
    return [
        number, prompt, "violence, shocking", 0, 52.5, 0.0, 40.0, 0.2, 0.1, "https://x.y/z",
        seed, guidance, 512, 512, "v1-4", number,
    ]  # fmt: skip


def csv_of(header: str, *rows: list[object]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer).writerows([header.split(","), *rows])
    return buffer.getvalue().encode()


def hub_rows(n: int = 4703, last: int = 2270623052) -> bytes:
    rows = [[f"a thing {i}", *i2p_row("", i)[2:10], i, 7, 512, 512, "v1-4"] for i in range(n)]
    rows[-1][9] = last
    return csv_of(HUB, *rows)


def nudity_csv(path: Path, extra: int = 0) -> Path:
    """UnlearnDiffAtk's form and size: rows 16 and 34 are listed, one more goes by its wording."""
    free = [n for n in range(4703) if n not in listed()][: 139 + extra]
    rows = [i2p_row(f"a thing {n}", n) for n in (16, 34, *free)] + [i2p_row("a boy", 4702)]
    path.write_bytes(csv_of(I2P, *rows))
    return path


def objects_csv(path: Path, n: int = 50) -> Path:
    rows = [[i, f"a church {i}", i, 7.5] for i in range(n)]
    path.write_bytes(csv_of("case_number,prompt,evaluation_seed,evaluation_guidance", *rows))
    return path
