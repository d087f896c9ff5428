"""Starts other processes that attack a share of the prompts.

A small model hardly uses a second CPU thread. Two processes with one thread each take .7 to 1.1 of the time
of one process with two threads, as ``bench speed attack --workers 2`` shows. Each process loads the models.
What a worker finds goes into the cache, like everything else.

A worker (:mod:`bench.engine.worker`) reads one job per line. It answers with one line per finished prompt,
then "done". It ends when its input closes, so also when this process is killed.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Thread
from typing import Any, Self

from bench.core.paths import ROOT

DONE = "done\n"
log = logging.getLogger("bench")


class Workers:
    """This process and others, which start at once and load while this one does.

    Args:
        count: How many processes, this one included; 1 starts none.
    """

    def __init__(self, count: int = 1) -> None:
        self.count = count
        self._others: list[_Worker] = []  # those that were started
        self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start(self) -> None:
        self._others = [worker for worker in self._others if worker.process.poll() is None]
        self._others += [_Worker() for _ in range(self.count - 1 - len(self._others))]
        for worker in self._others:
            worker.finished = 0

    def stop(self) -> None:
        """End the others, whatever they are doing."""
        for worker in self._others:
            worker.process.kill()
            worker.process.wait()
        self._others = []

    @property
    def finished(self) -> int:
        """How many pieces of the last job the others have finished."""
        return sum(worker.finished for worker in self._others)

    @contextmanager
    def share(
        self, job: Callable[[Sequence[str]], dict[str, Any]], pieces: Sequence[str]
    ) -> Iterator[set[str]]:
        """Give each worker its pieces of a job, and yield the pieces of this process.

        ``job`` says what a worker needs to do some of the pieces.

        In the block this process has its share of the threads; an error in it stops the others.
        """
        import torch

        self._start()
        threads = torch.get_num_threads()
        each = max(1, threads // self.count)
        torch.set_num_threads(each if self.count > 1 else threads)
        try:
            for i, worker in enumerate(self._others, 1):
                if part := pieces[i :: self.count]:
                    worker.give({**job(part), "threads": each})
            yield set(pieces[:: self.count])
        except BaseException:
            self.stop()
            raise
        finally:
            torch.set_num_threads(threads)

    def wait(self, progress: Callable[[], None]) -> None:
        """Wait until the others are done or dead; the caller does what a dead one left undone."""
        try:
            while any(worker.busy for worker in self._others):
                progress()
                time.sleep(0.1)
            for worker in self._others:
                if worker.lost:
                    log.warning("%s; this process does what it left undone", worker.obituary())
                    worker.lost = False
        except BaseException:
            self.stop()
            raise


class _Worker:
    """One other process, in a session of its own, so that Ctrl-C reaches this process alone."""

    def __init__(self) -> None:
        self.finished, self.busy, self.lost = 0, False, False
        self.said: deque[str] = deque(maxlen=1)  # the last line of its standard error
        self.process = subprocess.Popen(
            python("bench.engine.worker"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        Thread(target=self._listen, daemon=True).start()
        Thread(target=self._overhear, daemon=True).start()

    def give(self, job: dict[str, Any]) -> None:
        self.busy = True
        try:
            assert self.process.stdin  # it is a pipe
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
        except OSError:  # it is dead
            self.lost, self.busy = True, False

    def _listen(self) -> None:
        for line in self.process.stdout or ():
            if line == DONE:
                self.busy = False
            else:
                self.finished += 1
        self.lost, self.busy = self.busy, False

    def _overhear(self) -> None:
        for line in self.process.stderr or ():
            if line.strip():
                self.said.append(line.strip())

    def obituary(self) -> str:
        """Say how it ended."""
        line = self.said[-1][:300] if self.said else ""
        said = ": " + "".join(c for c in line if c.isprintable()) if line else ""
        return f"a worker (process {self.process.pid}) ended with {self.process.wait()}{said}"


def python(module: str) -> list[str]:
    """Return the command that runs one of our modules, and no code of the current folder.

    Where this package is not installed, it is found where this process found it.
    """
    code = f"import runpy, sys; sys.path.append({str(ROOT)!r}); "
    code += f"runpy.run_module({module!r}, run_name='__main__')"
    return [sys.executable, "-P", "-c", code]
