"""Shared fixtures: isolated folders, a tiny model, and the command line in process."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest
import torch
from PIL import Image

from bench import Context
from bench.models import load_model
from bench.models.diffusers import DiffusersModel
from bench.plugins.registry import Ref, create
from bench.sources.assets import finder
from bench.sources.catalog import MODELS

# The models are tiny: a second thread costs more than it gives, and tests run two at a time.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def _tiny() -> DiffusersModel:
    return load_model("tiny-random", batch_size=8)


@pytest.fixture
def tiny(_tiny: DiffusersModel) -> DiffusersModel:
    """A model of 0.2 M random weights; each test has its own copy."""
    return _tiny.copy()


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load the tiny model so that it draws in four steps."""
    info = MODELS["tiny-random"]
    sampling = replace(info.sampling, steps=4)
    monkeypatch.setitem(MODELS, "tiny-random", replace(info, sampling=sampling))


@pytest.fixture
def exact(tiny: DiffusersModel) -> DiffusersModel:
    """The same in float64: what another machine, thread or batch rounds away does not reach float32.

    For tests in which a sign, an order or a threshold decides, which rounding in float32 may flip.
    """
    if version("transformers").startswith("4."):
        pytest.skip("transformers 4 masks no text encoder in float64")
    tiny.pipe.register_modules(vae=copy.deepcopy(tiny.pipe.vae))
    tiny.pipe.to(dtype=torch.float64)
    return tiny


@pytest.fixture
def ctx(tmp_path: Path) -> Context:
    return Context("test", "cpu", tmp_path, batch_size=4)


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    """Run ``bench ARGS`` in this process."""
    from bench import cli as module

    def call(*args: str) -> Said:
        monkeypatch.setattr("sys.argv", ["bench", *args])
        # A wide terminal, so that tables and messages are not folded.
        monkeypatch.setattr(module.out, "_width", 300)
        monkeypatch.setattr(module.err, "_width", 300)
        monkeypatch.setattr(module.progress, "_width", 300)
        code = 0
        try:
            module.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        said = capsys.readouterr()
        return Said(code, said.out, said.err)

    return call


@pytest.fixture
def keyboard() -> Iterator[None]:
    """Let interrupts in, which a background process ignores."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


# ---------------------------------------------------------------------------- judges
@pytest.fixture
def judge(ctx: Context) -> Callable[..., Any]:
    """Prepare an evaluator by name, with assets at these paths."""

    def prepare(name: str, params: dict[str, Any], **paths: Path) -> Any:
        given = {asset.replace("_", "-"): path for asset, path in paths.items()}
        return create("evaluators", Ref(name, params)).prepare(replace(ctx, asset=finder(given)))

    return prepare


@pytest.fixture
def portrait() -> Image.Image:
    """A portrait of a woman in uniform, 512x600."""
    from matplotlib import cbook

    with Image.open(str(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))) as image:
        return image.convert("RGB")


@pytest.fixture
def group(portrait: Image.Image) -> Image.Image:
    """The portrait's head five times, at several sizes, on one wide picture."""
    head, picture = portrait.crop((90, 40, 440, 420)), Image.new("RGB", (900, 780), "gray")
    for x, y, width in ((0, 0, 320), (320, 0, 320), (640, 0, 260), (640, 300, 230), (0, 350, 280)):
        picture.paste(head.resize((width, width * 38 // 35)), (x, y))
    return picture


@pytest.fixture
def broken(tmp_path: Path) -> Image.Image:
    """An image whose file ends too early."""
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / "broken.png"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    return Image.open(path)


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    return networks.vit(tmp_path / "vit")


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return networks.clip(tmp_path / "clip")
