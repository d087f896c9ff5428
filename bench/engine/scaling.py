"""What more of the same costs: time should grow with it, and memory should not.

Times are of the processor where there is no GPU, so that what else runs on the machine does not count.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rich.console import Console

from bench.core.devices import described, peak_bytes, restart_peak, use
from bench.engine.rates import attack_of, erasure_of
from bench.models import load_model
from bench.models.diffusers import DiffusersModel
from bench.report.frame import Figure, Line, Table
from bench.report.text import say

TIMES = (1, 2, 4)
PROMPTS, STEPS, ERASING = 8, 2, 5


@dataclass(frozen=True, slots=True)
class Size:
    """What was timed.

    Args:
        what: What there is more of.
        n: How much of it.
        seconds: What it took.
        peak: The most memory until then, bytes; on a CPU the whole process's.
    """

    what: str
    n: int
    seconds: float
    peak: int


def scaling(model: str, *, device: str, console: Console) -> Table:
    """Time an attack on more prompts and for more steps, and more erasures, and lay it out.

    Args:
        model: A model's name; its weights may be random.
        device: Where it runs.
        console: Gets a line for each that is done.

    Raises:
        SpecError: The model or the device is unknown.
    """
    device = use(device)
    lines, firsts = [], dict[str, float]()
    for size in _sizes(load_model(model, device=device), device):
        lines.append(_line(size, firsts.setdefault(size.what, size.seconds)))
        say(f"{size.what}, {size.n}: {size.seconds:.2f} s", console)
    about = (
        f"{model} on {described(device)}; unlearndiff, {PROMPTS} prompts at once, {STEPS} steps at each of "
        f"10 timesteps unless said, images in one step; esd, {ERASING} steps. Memory is the most until then"
    )
    columns = ("how many", "s", "times the first", "peak MB")
    return Table("What more of the same costs", ("more",), columns, tuple(lines), about)


def _line(size: Size, first: float) -> Line:
    figures = (
        Figure(size.n),
        Figure(size.seconds, digits=2),
        Figure(size.seconds / first, digits=2),
        Figure(size.peak // 2**20),
    )
    return Line((size.what,), figures)


def _sizes(base: DiffusersModel, device: str) -> Iterator[Size]:
    def attack(prompts: int, steps: int) -> None:
        attack_of("unlearndiff", base, device, prompts, PROMPTS)(steps)

    def erase(n: int) -> None:
        for _ in range(n):
            erasure_of("esd", {}, base, device)(ERASING)

    attack(1, 1)  # warms up
    for n in TIMES:
        yield _timed("prompts", n * PROMPTS, device, lambda n=n: attack(n * PROMPTS, STEPS))  # type: ignore[misc]
    for n in TIMES:
        yield _timed("steps", n * STEPS, device, lambda n=n: attack(PROMPTS, n * STEPS))  # type: ignore[misc]
    for n in TIMES:
        yield _timed("erasures", n, device, lambda n=n: erase(n))  # type: ignore[misc]


def _timed(what: str, n: int, device: str, work: Callable[[], object]) -> Size:
    restart_peak(device)
    clock = time.process_time if device == "cpu" else time.perf_counter
    start = clock()
    work()
    seconds, peak = clock() - start, peak_bytes(device)
    whole = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Size(what, n, seconds, whole if peak is None else peak)
