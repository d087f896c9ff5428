"""A process that attacks a share of a cell's prompts; :mod:`bench.engine.workers` starts and feeds it."""

from __future__ import annotations

import json
import os
import sys
from queue import SimpleQueue
from threading import Thread

import torch
from pydantic import TypeAdapter

from bench.core.devices import use
from bench.core.foreign import watched_keyboard
from bench.engine.runner import Runner
from bench.engine.settings import Settings
from bench.engine.workers import DONE
from bench.errors import BenchError
from bench.plan.plan import Job


def main() -> None:
    """Read one job per line of standard input and do it; stop at once when the input closes."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    sys.stdout = sys.stderr  # whatever a library prints is no answer
    jobs: SimpleQueue[str] = SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            jobs.put(line)
        os._exit(0)

    Thread(target=listen, daemon=True).start()
    runner = None
    while job := json.loads(jobs.get()):
        torch.set_num_threads(job["threads"])
        if runner is None:
            settings = Settings.from_json(job["settings"])
            use(settings.device)
            runner = Runner(settings)
        try:
            runner.attack(
                TypeAdapter(Job).validate_python(job["job"]),
                lambda found: print(found.prompt.id, file=answers),
            )
        except BenchError as exc:  # the process that asked finds prompts missing, and tries itself
            sys.stderr.write(f"{type(exc).__name__}: {exc}\n")
            runner = None  # its models may have been changed
        answers.write(DONE)


if __name__ == "__main__":
    with watched_keyboard():  # no interrupt reaches a worker: one is a plug-in's
        main()
