"""A plan as a job for a cluster: a script with one command for each erased model."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from math import ceil
from pathlib import Path

from bench.core.errors import SpecError
from bench.plan.asked import options
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


def sbatch(
    specs: Iterable[Spec], bill: Bill, *, results: Path, device: str, workers: int = 1
) -> str:
    """Return a Slurm array script that computes what is left of requests.

    Args:
        specs: The requests.
        bill: Their cells and what these cost.
        results: Folder of records.
        device: Where the commands run.
        workers: Processes of each command.

    Raises:
        SpecError: Nothing is left to do, or a request cannot be said in options.
    """
    how = ["--results", str(results), "--device", device, "--workers", str(workers)]
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
        gpu="#SBATCH --gres=gpu:1" if device.startswith("cuda") else f"#SBATCH -c {workers}",
        commands="\n".join(commands),
    )


def _seconds(estimates: Sequence[Estimate]) -> float:
    return sum(each.seconds or 0.0 for each in estimates)
