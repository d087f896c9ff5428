"""A plan as a job for a cluster: a script with one command for each erased model."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from math import ceil
from pathlib import Path

from bench.errors import SpecError
from bench.plan.plan import pieces
from bench.plan.spec import Spec
from bench.report.costs import Estimate
from bench.report.plans import Bill

_LEAST, _SPARE = 15, 2  # minutes that a command gets at least, and how much longer than expected
_SCRIPT = """\
#!/bin/bash
#SBATCH --job-name=bench
#SBATCH --array=1-{count}
#SBATCH --time={minutes}
#SBATCH --output=bench-%A_%a.log
{gpu}
# One command a line, for one erased model each. A command may be given again: what is done is kept.
# Without Slurm: SLURM_ARRAY_TASK_ID=1 bash THIS_FILE runs the first.
readarray -t commands <<'COMMANDS'
{commands}
COMMANDS
eval "${{commands[SLURM_ARRAY_TASK_ID - 1]}}"
"""


def sbatch(specs: Iterable[Spec], bill: Bill, *, results: Path, workers: int = 1) -> str:
    """Return a Slurm array script that computes what is left of requests.

    Args:
        specs: The requests.
        bill: Their cells and what these cost.
        results: Folder of records.
        workers: Processes of each command.

    Raises:
        SpecError: Nothing is left to do, or a request cannot be said in options.
    """
    how = ["--results", str(results), "--device", bill.device, "--workers", str(workers)]
    costs = {cell.id: estimate for cell, estimate in bill.cells if estimate}
    commands: list[str] = []
    longest = 0.0
    for spec, ids in pieces(specs):
        if left := [costs[name] for name in ids if name in costs]:
            commands.append(shlex.join(["bench", "run", *options(spec), *how]))
            longest = max(longest, _seconds(left))
    if not commands:
        raise SpecError("--export: every cell is done, nothing is left to run")
    if bad := [command for command in commands if "\n" in command]:
        raise SpecError(f"--export: expected values of one line each, got {bad[0]!r:.100}")
    return _SCRIPT.format(
        count=len(commands),
        minutes=max(_LEAST, ceil(_SPARE * longest / 60)),
        gpu="#SBATCH --gres=gpu:1" if bill.device.startswith("cuda") else f"#SBATCH -c {workers}",
        commands="\n".join(commands),
    )


def options(spec: Spec) -> list[str]:
    """Return the options of ``bench run`` that ask for a request.

    Raises:
        SpecError: One of its tasks has neither a name nor a file.
    """
    if own := [task for task in spec.tasks if not isinstance(task, str)]:
        raise SpecError(f"--export: expected tasks by name or file, got --concept {own[0]}")
    given = {
        "--world": spec.world,
        "--prompts": spec.prompts,
        "--judge": spec.judge,
        "--limit": spec.limit,
        "--guidance": None if spec.guidance is None else f"{spec.guidance:g}",
        "--erase-seed": spec.erase_seed,
    }
    flags = ["--floors"] if spec.floors else []
    pairs: list[tuple[str, object]] = [
        ("--model", spec.model),
        *(("--method", ref) for ref in spec.methods),
        *(("--attack", ref) for ref in spec.attacks),
        *(("--task", task) for task in spec.tasks),
        ("--seed", spec.seed),
        ("--dtype", spec.dtype),
        ("--protocol", spec.protocol),
        *((flag, value) for flag, value in given.items() if value not in (None, "")),
        *(("--asset", f"{name}={path}") for name, path in spec.assets.items()),
    ]
    return [*_flat(pairs), *flags]


def _flat(pairs: Sequence[tuple[str, object]]) -> Iterator[str]:
    for flag, value in pairs:
        yield from (flag, str(value))


def _seconds(estimates: Sequence[Estimate]) -> float:
    return sum(each.seconds or 0.0 for each in estimates)
