"""How much a device does in a second: images, steps of attacks and of erasures, features for FID.

Weights may be random: they cost the same. A step's time is the difference of two runs that differ in their
number of steps alone, so that what is done once does not count.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from rich.console import Console

from bench.core.devices import described, peak_bytes, restart_peak, use, wait
from bench.core.protocols import Target
from bench.core.types import Concept, Context, Prompt
from bench.models import delta, load_model
from bench.models.diffusers import DiffusersModel
from bench.plugins.registry import Ref, create, resolved
from bench.report.frame import Figure, Line, Table
from bench.report.text import say
from bench.sources.catalog import check_dtype

CONCEPT = Concept("church", "object", "house")
ATTACKS = ("unlearndiff", "p4d")
METHODS = {"esd": {}, "p-esd": {}, "ac": {"images": 8}, "fmn": {"images": 2, "inversion_steps": 0}}
_INCEPTION = 299  # pixels that FID's network reads


@dataclass(frozen=True, slots=True)
class Rate:
    """What was timed.

    Args:
        what: Its name.
        batch: How many at once.
        each: Seconds for one of them; ``None`` if a step takes less than the time varies by.
        peak: Most memory on the device, bytes; ``None`` where nobody counts it.
    """

    what: str
    batch: int
    each: float | None
    peak: int | None


def rates(
    model: str,
    *,
    device: str,
    dtype: str = "fp32",
    batches: Sequence[int] = (1, 8, 32),
    steps: int = 3,
    console: Console,
) -> Table:
    """Time each kind of work once and lay it out.

    Args:
        model: A model's name; its weights may be random.
        device: Where it runs.
        dtype: Type of drawing and attacking; erasing and the plain loop are in fp32.
        batches: Images at once.
        steps: Steps of an attack or an erasure by which the two runs differ, for each of its rounds.
        console: Gets a line for each that is done.

    Raises:
        SpecError: The model, the device or the type is unknown.
    """
    check_dtype(dtype)
    device = use(device)
    base = load_model(model, device=device)
    drawn = base if dtype == "fp32" else base.cast(dtype)
    found: list[Rate] = []
    for rate in _all(base, drawn, device, batches, steps):
        each = "too short to time" if rate.each is None else f"{rate.each:.4g} s each"
        say(f"{rate.what}, {rate.batch} at once: {each}", console)
        found.append(rate)
    lines = tuple(_line(rate, found[0]) for rate in found)
    about = (
        f"{model}, {base.sampling.size} px, {base.sampling.steps} steps of {base.sampling.sampler}, "
        f"{dtype}; "
        f"{described(device)}, torch {torch.__version__}; erasing and the plain loop in fp32"
    )
    columns = ("at once", "a second", "s each", "times plain", "peak MB")
    return Table("What this device does in a second", ("work",), columns, lines, about)


def _line(rate: Rate, plain: Rate) -> Line:
    """Lay out what was timed; images beside the plain loop's."""
    lost = Figure(word="too short")
    figures = (
        Figure(rate.batch),
        Figure(1 / rate.each, digits=3) if rate.each else lost,
        Figure(rate.each, digits=4) if rate.each else lost,
        Figure(plain.each / rate.each, digits=2)
        if rate.each and plain.each and rate.what.startswith("image")
        else Figure(),
        Figure(rate.peak // 2**20) if rate.peak is not None else Figure(word="not counted"),
    )
    return Line((rate.what,), figures)


def _all(
    base: DiffusersModel,
    drawn: DiffusersModel,
    device: str,
    batches: Sequence[int],
    steps: int,
) -> Iterator[Rate]:
    yield _timed("image, plain diffusers loop", 1, device, lambda: _plain_loop(base))
    for n in batches:
        drawn.batch_size = n
        yield _timed("image", n, device, lambda n=n: drawn.generate(_prompts(n)))  # type: ignore[misc]
    for name in ATTACKS:
        for n in (1, 8):
            yield _by_difference(
                f"step of {name}", n, device, steps, attack_of(name, drawn, device, n)
            )
    for name, few in METHODS.items():
        yield _by_difference(
            f"step of {name}", 1, device, steps, erasure_of(name, few, base, device)
        )
    many = max(batches)
    yield _timed("features for FID", many, device, _features(device, many))


def _timed(what: str, batch: int, device: str, work: Callable[[], object]) -> Rate:
    """Time work that makes a batch, after one that warms up."""
    work()
    restart_peak(device)
    seconds = _seconds(device, work)
    return Rate(what, batch, seconds / batch, peak_bytes(device))


def _seconds(device: str, work: Callable[[], object]) -> float:
    wait(device)
    start = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - start


def _by_difference(
    what: str, batch: int, device: str, steps: int, work: Callable[[int], int]
) -> Rate:
    """Time steps; ``work`` takes so many in each of its rounds, and returns the number of rounds."""
    work(1)  # warms up
    restart_peak(device)
    few = _seconds(device, lambda: work(1))
    rounds = 0

    def more() -> None:
        nonlocal rounds
        rounds = work(1 + steps)

    taken = _seconds(device, more) - few
    each = taken / (steps * rounds * batch)
    return Rate(what, batch, each if taken > 0 else None, peak_bytes(device))


def _prompts(n: int) -> list[Prompt]:
    return [Prompt(str(i), f"a photo of a church {i}", i) for i in range(n)]


def _plain_loop(model: DiffusersModel) -> None:
    """Draw one image as the library's own pipeline does, with the model's sampler and guidance."""
    (prompt,) = _prompts(1)
    parts = dict(model.pipe.components)
    parts["scheduler"] = model.schedule.sampler(model.sampling.sampler)
    pipe = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    pipe(
        prompt.text,
        num_inference_steps=model.sampling.steps,
        guidance_scale=prompt.guidance,
        generator=torch.Generator().manual_seed(prompt.seed),
    )


def _finished(kind: Any, name: str, params: dict[str, Any]) -> Any:
    return create(kind, resolved(kind, Ref(name, params), CONCEPT, "photo"))


def attack_of(
    name: str, model: DiffusersModel, device: str, n: int, at_once: int | None = None
) -> Callable[[int], int]:
    """Return what attacks prompts in rounds of so many steps; images take one, for they do not count."""
    victim = model.resampled("ddim", 1)

    def work(steps: int) -> int:
        attack = _finished("attacks", name, {"iterations": steps, "target_steps": 1})
        target = Target(victim, victim, CONCEPT, lambda samples: [False] * len(samples))
        with TemporaryDirectory() as folder:
            ctx = Context("speed", device, Path(folder), at_once or n)
            list(attack.prepare(target, ctx)(_prompts(n)))
        return len(attack.schedule())

    return work


def erasure_of(
    name: str, few: dict[str, Any], base: DiffusersModel, device: str
) -> Callable[[int], int]:
    """Return what erases in so many steps from a private copy, as the harness does."""

    def work(steps: int) -> int:
        method = _finished("methods", name, {**few, "steps": steps})
        with TemporaryDirectory() as folder:
            method.erase(delta.private(base), CONCEPT, Context("speed", device, Path(folder), 8))
        return 1

    return work


def _features(device: str, many: int) -> Callable[[], object]:
    """Return what runs pictures through the network that FID reads, with random weights."""
    from torchvision.models import inception_v3

    net = inception_v3(weights=None, init_weights=False, aux_logits=False).eval().to(device)
    pictures = torch.zeros(many, 3, _INCEPTION, _INCEPTION, device=device)

    def work() -> object:
        with torch.no_grad():
            return net(pictures)

    return work
