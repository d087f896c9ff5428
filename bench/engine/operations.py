"""Where an attack's time goes: by kind of operation, with the floating-point operations of each counted.

A multiply-add is two. What a product of two large matrices reaches is a yardstick, not a limit:
convolutions of small images can be faster, and some algorithms multiply less than what is counted.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.console import Console
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from bench.core.devices import described, use, wait
from bench.engine.local import erase_cell
from bench.engine.settings import Settings
from bench.engine.speed import measure
from bench.plan.plan import plan
from bench.plan.spec import Spec
from bench.report.frame import Figure, Line, Table

_SIDE, _TRIES = 1536, 20  # of the product of two matrices that shows the machine's peak
_FEW = 12  # lines of the table
_GIGA = 1e9


@dataclass(slots=True)
class Spent:
    """What one kind of operation took.

    Args:
        calls: How often it was called.
        seconds: Time.
        flops: Floating-point operations; 0 of kinds that are not counted, which have few.
    """

    calls: int = 0
    seconds: float = 0.0
    flops: int = 0


class Operations(TorchDispatchMode):
    """Times and counts every operation while it is entered, in backward passes, too.

    Args:
        device: Where they run; it is waited for after each.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device
        self.spent: defaultdict[str, Spent] = defaultdict(Spent)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one operation."""
        start = time.perf_counter()
        out = func(*args, **(kwargs or {}))
        wait(self.device)
        own = self.spent[_word(func.overloadpacket.__name__)]
        own.seconds += time.perf_counter() - start
        own.calls += 1
        if count := _COUNTS.get(func.overloadpacket):
            own.flops += count(*args, **(kwargs or {}), out_val=out)
        return out


def _word(operation: str) -> str:
    """Return an operation's name; attention's says little more than which kernel computes it."""
    _, attention, kernel = operation.partition("_scaled_dot_product")
    return f"attention{'_backward' * kernel.endswith('backward')}" if attention else operation


def _attention(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(q.shape, k.shape, v.shape))


def _attention_backward(grad: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(grad.shape, q.shape, k.shape, v.shape))


_COUNTS: dict[Any, Callable[..., int]] = {  # the library does not count the CPU's attention
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    **flop_registry,
}


def profile(spec: Spec, settings: Settings, console: Console, *, dtype: str = "fp32") -> Table:
    """Attack one cell's prompts as a batch, and lay out what each kind of operation took.

    Args:
        spec: One method, attack and task.
        settings: Device, batch and cache.
        console: Where progress is shown.
        dtype: Type of drawing and attacking.
    """
    (job,) = plan(spec)
    device = use(settings.device)
    settings = replace(settings, device=device)
    erase_cell(job.cell, settings, console)  # before anything is counted
    with Operations(device) as all_:
        run = measure(job, "batched", settings, dtype=dtype)
    n, spent = run.prompts, all_.spent
    rate = peak(device)
    longest = sorted(spent.items(), key=lambda item: -item[1].seconds)
    kinds = dict(longest[:_FEW]) | {"all others": _sum(s for _, s in longest[_FEW:])}
    every = _sum(kinds.values())
    lines = tuple(_line(*item, every, n) for item in (*kinds.items(), ("sum", every)))
    about = (
        f"{job.cell.attack.name} on {job.cell.method.name}, {job.cell.task}, {n} prompts as a batch, "
        f"{dtype}, {described(device)}, {torch.get_num_threads()} threads; a product of two matrices "
        f"of {_SIDE} rows reaches {rate / _GIGA:.0f} GFLOP a second; at that rate, what was counted "
        f"takes {every.flops / n / rate:.2f} s per prompt; timing each operation slows the whole a little"
    )
    columns = ("calls", "share", "ms per prompt", "GFLOP per prompt", "GFLOP a second")
    return Table("Where an attack's time goes", ("operation",), columns, lines, about)


def _sum(parts: Iterable[Spent]) -> Spent:
    found = list(parts)
    return Spent(*(sum(getattr(s, key) for s in found) for key in ("calls", "seconds", "flops")))


def _line(name: str, spent: Spent, every: Spent, prompts: int) -> Line:
    share, each = spent.seconds / every.seconds, 1000 * spent.seconds / prompts
    counted = (Figure(word="not counted"), Figure())
    if spent.flops:
        flops = spent.flops / _GIGA
        counted = (Figure(flops / prompts, digits=1), Figure(flops / spent.seconds, digits=0))
    calls = Figure(spent.calls)
    return Line((name,), (calls, Figure(share, digits=3), Figure(each, digits=0), *counted))


def peak(device: str) -> float:
    """Return the floating-point operations a second of a product of two large matrices, at best."""
    a = torch.randn(_SIDE, _SIDE, device=device)
    best = float("inf")
    for _ in range(_TRIES):
        wait(device)
        start = time.perf_counter()
        a @ a
        wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * _SIDE**3 / best
