"""Which worker computes which cell, so that each finds in memory and cache what one process would find.

How many images are drawn at once decides the last bits of each, and images that are there are not drawn
again. So cells of one erased model that share prompts stay together, in order, as a chain; and a cell is
not split, but for images that are only measured, and for attacks where the user wants it. Nobody else
erases a concept while one worker does; who has the model in memory goes on with it. A cell that takes what
another found begins when that one is finished.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import ceil

from bench.engine.settings import Settings
from bench.plan.cell import REPLAYED, Cell
from bench.plan.plan import Job
from bench.plugins.registry import load


@dataclass(slots=True, eq=False)
class Chain:
    """Cells that one worker computes one after the other.

    Args:
        model: Names their erased model.
        jobs: They.
    """

    model: tuple[str, ...]
    jobs: deque[Job]

    def width(self, settings: Settings) -> int:
        """Return how many workers can have work at a time: more than one where a cell has parts."""
        return max((parts(job, settings) for job in self.jobs), default=1)


def parts(job: Job, settings: Settings) -> int:
    """Return how many parts workers may share of a cell.

    They share images that are only measured, and attacked prompts if the user wants it; not those of an
    attack that learns something for all prompts, or takes what was found elsewhere.
    """
    cell, task = job.cell, job.task
    if job.problem:
        return 1
    if task.streamed:
        return ceil(cell.prompts / settings.shard)
    alone = not cell.attacked or task.role != "target" or cell.attack.name in REPLAYED
    if not settings.split or alone:
        return 1
    of_each_prompt = load("attacks", cell.attack.name).threat.space in {"prompt", "latent"}
    return ceil(cell.prompts / settings.split) if of_each_prompt else 1


def chains(jobs: Iterable[Job]) -> list[Chain]:
    """Return the chains of a plan: cells of one erased model and type that draw some of the same images."""
    from networkx import Graph, connected_components

    plan, graph = list(jobs), Graph()
    for place, job in enumerate(plan):
        cell = job.cell
        prompts = (_model(cell), cell.dtype, cell.task_digest, cell.prompts)
        if prompts not in graph:
            for prompt in job.task.prompts[: cell.prompts]:
                graph.add_edge(prompts, (*prompts[:2], prompt.text, prompt.seed, prompt.guidance))
        graph.add_edge(place, prompts)
    places = (sorted(n for n in part if isinstance(n, int)) for part in connected_components(graph))
    return [Chain(_model(plan[p[0]].cell), deque(plan[i] for i in p)) for p in sorted(places)]


def _model(cell: Cell) -> tuple[str, ...]:
    """Name a cell's erased model; without an erasure it is the same for all concepts."""
    if cell.method.name == "none":
        return (cell.model, cell.revision)
    return (cell.erase_key,)


class Schedule:
    """Gives chains to workers.

    Args:
        work: The chains.
        erased: Says whether the erasure of a cell is finished.
    """

    def __init__(self, work: Iterable[Chain], erased: Callable[[Cell], bool]) -> None:
        self._waiting = list(work)
        self._held: dict[int, Chain] = {}
        self._models: dict[int, tuple[str, ...]] = {}  # the last of each worker
        self._open = {job.cell.id for chain in self._waiting for job in chain.jobs}
        self.erased = erased

    def __bool__(self) -> bool:
        """Say whether a cell is left that nobody has begun."""
        return any(chain.jobs for chain in (*self._waiting, *self._held.values()))

    def take(self, worker: int) -> Job | None:
        """Return the next cell for a worker that has finished its last one; ``None``: not now."""
        chain: Chain | None = self._held.pop(worker, None)
        if chain and chain.jobs and not self._may_begin(chain):  # others come first
            self._waiting.insert(0, chain)
        if chain is None or not chain.jobs or chain in self._waiting:
            chain = next(filter(self._may_begin, self._best(self._models.get(worker))), None)
            if chain is None:
                return None
            self._waiting.remove(chain)
        self._held[worker], self._models[worker] = chain, chain.model
        return chain.jobs.popleft()

    def finish(self, cell: Cell) -> None:
        """Note that a cell has its record, which others may have waited for."""
        self._open.discard(cell.id)

    def drop(self, worker: int, job: Job | None = None) -> None:
        """Take a worker's chain back: it is gone, and with it a cell that it had begun."""
        chain = self._held.pop(worker, None)
        self._models.pop(worker, None)
        if chain and job:
            chain.jobs.appendleft(job)
        if chain and chain.jobs:
            self._waiting.insert(0, chain)

    def _may_begin(self, chain: Chain) -> bool:
        after = chain.jobs[0].after
        return after is None or after.id not in self._open

    def _best(self, in_memory: tuple[str, ...] | None) -> Iterator[Chain]:
        """Yield chains: of the model in memory, of models nobody has, of others' that are erased."""
        yield from (chain for chain in self._waiting if chain.model == in_memory)
        taken = {chain.model for chain in self._held.values()}
        yield from (chain for chain in self._waiting if chain.model not in taken)
        yield from (chain for chain in self._waiting if self.erased(chain.jobs[0].cell))
