"""A matrix as a TOML file: the cells of a paper's table in a few lines. Suites are such files that ship.

Its keys are the axes ``methods``, ``attacks``, ``tasks``, ``seeds`` and ``erase-seeds``, each a list, and
``erase``, ``model``, ``world``, ``dtype``, ``protocol``, ``limit``, ``judge``, ``prompts``, ``guidance``,
``floors`` as in ``bench run``. ``about`` says what it is. Tables ``[[part]]`` have the same keys: each is
one matrix, and what stands above them holds for all of them.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Strict, TypeAdapter, ValidationError

from bench.core.errors import SpecError, UnknownNameError
from bench.core.paths import PROMPTS
from bench.core.types import World
from bench.plan.floors import FLOORS
from bench.plan.spec import Spec
from bench.plugins.registry import Ref
from bench.tasks.protocol import ProtocolName

SUITES = PROMPTS / "suites"
Seeds = tuple[Annotated[int, Strict()], ...]


@dataclass(frozen=True, slots=True)
class Part:
    """One product of axes, in the words of the command line.

    Args:
        methods: Erasure methods, ``name`` or ``name:key=value,...``.
        attacks: Attacks, likewise.
        tasks: Names of tasks; a file ``PATH.toml`` lies beside the matrix.
        seeds: Seeds of everything, or of attacks alone where there are ``erase_seeds``.
        erase_seeds: Seeds of erasures: each goes with each of ``seeds``.
        erase: Target tasks whose concepts are erased, too, though they are not measured.
        model: As in :class:`bench.plan.spec.Spec`, and so the others.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    methods: tuple[str, ...] = ()
    attacks: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    seeds: Seeds = (0,)
    erase_seeds: Seeds = ()
    erase: tuple[str, ...] = ()
    model: str = "emoji-sd"
    limit: Annotated[int, Strict()] | None = None
    dtype: str = "fp32"
    world: World | None = None
    prompts: Path | None = None
    judge: str = ""
    guidance: float | None = None
    protocol: ProtocolName = "default"
    floors: Annotated[bool, Strict()] = False

    def named(self, axis: str) -> tuple[str, ...]:
        """Return the names on an axis; among the tasks are those whose concepts are erased only."""
        names: tuple[str, ...] = getattr(self, axis)
        return (*names, *self.erase) if axis == "tasks" else names

    def only(self, axis: str, names: Collection[str], *, known: bool) -> Part:
        """Return the part with other names on an axis: if they are ``known``, those that it has of them.

        Tasks that are kept are measured on models of all concepts that are erased, unless some are named.
        """
        kept = (
            tuple(name for name in getattr(self, axis) if name in names) if known else tuple(names)
        )
        if axis == "attacks":
            hunted = any(Ref.parse(name).name not in {"none", *FLOORS} for name in kept)
            return replace(self, attacks=kept, floors=self.floors and hunted)
        if axis == "tasks":
            own = tuple(name for name in self.erase if name in names) or self.erase
            return replace(self, tasks=kept, erase=own if known else ())
        return replace(self, methods=kept)

    def specs(self, assets: Mapping[str, Path]) -> Iterator[Spec]:
        """Yield a request for each pair of seeds.

        Raises:
            SpecError: As :class:`bench.plan.spec.Spec`.
        """
        spec = Spec(
            self.model,
            tuple(map(Ref.parse, self.methods)),
            tuple(map(Ref.parse, self.attacks)),
            self.tasks,
            limit=self.limit,
            dtype=self.dtype,
            assets=assets,
            world=self.world,
            prompts=self.prompts,
            judge=self.judge,
            guidance=self.guidance,
            protocol=self.protocol,
            floors=self.floors,
            erase=self.erase,
        )
        return seeded(spec, self.seeds, self.erase_seeds)


@dataclass(frozen=True, slots=True)
class Matrix:
    """What a matrix file says.

    Args:
        parts: Whose cells are wanted, each once.
        about: What it is, in words.
    """

    parts: tuple[Part, ...]
    about: str = ""

    def only(self, asked: Mapping[str, Collection[str]]) -> Matrix:
        """Return the matrix with only what is asked for of ``methods``, ``attacks`` and ``tasks``.

        Of an axis that has all of the names, the others are left out, and parts of which nothing is left.
        Other names replace the axis in each part: a method of one's own meets all attacks and tasks.

        Raises:
            SpecError: Nothing is left.
        """
        parts = self.parts
        for axis, names in asked.items():
            known = {name for part in self.parts for name in part.named(axis)}
            found = (part.only(axis, names, known=known.issuperset(names)) for part in parts)
            parts = tuple(part for part in found if getattr(part, axis))
        if not parts:
            raise SpecError(
                "nothing to run: no part of the matrix has all of "
                + ", ".join(name for names in asked.values() for name in names)
            )
        return replace(self, parts=parts)

    def specs(self, assets: Mapping[str, Path] = {}) -> tuple[Spec, ...]:
        """Return the requests that it stands for, for :func:`bench.plan.plan.plan`."""
        return tuple(spec for part in self.parts for spec in part.specs(assets))


def seeded(spec: Spec, seeds: Seeds, erase_seeds: Seeds) -> Iterator[Spec]:
    """Yield a request for each seed, or for each pair of seeds of attacks and of erasures."""
    for seed in seeds or (0,):
        for erase_seed in erase_seeds or (None,):
            yield replace(spec, seed=seed, erase_seed=erase_seed)


def read_matrix(path: Path) -> Matrix:
    """Return what a matrix file says.

    Raises:
        SpecError: It is not there, or says what no matrix may say.
    """
    try:
        said = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise SpecError(f"{path} cannot be read: {exc.strerror}; give another file") from exc
    except ValueError as exc:  # no TOML, or no UTF-8
        raise SpecError(f"{path} is no TOML file: {exc}") from exc
    about, parts = said.pop("about", ""), said.pop("part", [{}])
    if not (isinstance(parts, list) and parts and all(isinstance(part, dict) for part in parts)):
        raise SpecError(f"{path}: expected tables [[part]], got {parts!r:.60}")
    return Matrix(tuple(_part(path, {**said, **part}) for part in parts), str(about))


def suites(folder: Path = SUITES) -> dict[str, Path]:
    """Return the files of the suites that ship, by name."""
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def suite(name: str) -> Matrix:
    """Return a suite.

    Raises:
        UnknownNameError: No suite has this name.
    """
    known = suites()
    if name not in known:
        raise UnknownNameError("suite", name, known, "; or --matrix FILE.toml of your own")
    return read_matrix(known[name])


def _part(path: Path, said: Mapping[str, Any]) -> Part:
    keys = [field.name.replace("_", "-") for field in fields(Part)]
    for key in said:
        if key not in keys:
            raise SpecError(f"{path}: {UnknownNameError('key', key, keys)}")
    try:
        part = TypeAdapter(Part).validate_python({k.replace("-", "_"): v for k, v in said.items()})
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        what = first["msg"].replace("a valid tuple", "a list").removeprefix("Input should be ")
        key = str(first["loc"][0]).replace("_", "-")
        raise SpecError(f"{path}: {key}: expected {what}, got {first['input']!r:.60}") from exc
    return replace(
        part,
        tasks=_beside(path, part.tasks),
        erase=_beside(path, part.erase),
        prompts=part.prompts and path.parent / part.prompts,
    )


def _beside(path: Path, tasks: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(str(path.parent / task) if task.endswith(".toml") else task for task in tasks)
