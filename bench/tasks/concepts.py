"""Concepts by name: those of the tasks, and the user's own."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import replace

from bench.core.errors import SpecError, UnknownNameError
from bench.core.types import Concept, World
from bench.tasks.entries import shipped

KINDS = ("nsfw", "style", "object")


def find_concept(name: str, world: World, kind: str = "", anchor: str = "") -> Concept:
    """Return a task's concept by name, or a new one if none has it and its kind is given.

    Raises:
        UnknownNameError: No task has it and no kind is given.
        SpecError: The kind is none of nsfw, style, object, or the name is a list.
    """
    if not name.strip():
        raise SpecError("--concept: expected a name, got an empty text")
    if kind and kind not in KINDS:
        raise SpecError(f"--kind: expected nsfw, style or object, got {kind!r}")
    given = name
    name, *others = (part.strip() for part in re.split(r"[,;|\n]", name))
    if others:
        again = " ".join(f"--concept {shlex.quote(part)}" for part in (name, *others) if part)
        raise SpecError(f"--concept: expected one concept, got the list {given!r}: give {again}")
    known = {c.name: c for entry in shipped(world).values() if (c := entry.concept)}
    if name not in known and not kind:
        raise UnknownNameError("concept", name, known, "; give --kind for your own")
    own = Concept(name, kind or "object")  # type: ignore[arg-type]
    found = known.get(name, own)
    found = own if kind and kind != found.kind else found
    return replace(found, anchor=anchor) if anchor else found


def find_concepts(
    names: Sequence[str], world: World, kinds: Sequence[str] = (), anchors: Sequence[str] = ()
) -> Concept:
    """Return one concept, or several as the terms of one, each with its own anchor.

    Args:
        names: Names of tasks' concepts, or of new ones.
        world: Whose tasks.
        kinds: Of new concepts: none, one for all, or one each.
        anchors: What they are mapped to instead of the tasks' anchors: none, one for all, or one each.

    Raises:
        UnknownNameError: No task has a concept of that name, and no kind is given.
        SpecError: They are of more than one kind, or not as many as kinds or anchors.
    """
    each = [
        find_concept(name, world, kind, anchor)
        for name, kind, anchor in zip(
            names, _each("--kind", kinds, names), _each("--anchor", anchors, names), strict=True
        )
    ]
    one, *others = dict.fromkeys(each)
    if not others:
        return one
    if other := next((c for c in others if c.kind != one.kind), None):
        raise SpecError(
            f"several concepts: expected one kind, got {one.name!r} ({one.kind}) and {other.name!r} "
            f"({other.kind}): erase one, and the other from the model that --export writes"
        )
    return Concept(
        ", ".join(concept.name for concept in (one, *others)),
        one.kind,
        _joined([anchor for concept in (one, *others) for anchor in concept.anchors]),
        tuple(phrase for concept in (one, *others) for phrase in concept.phrases),
    )


def _each(option: str, values: Sequence[str], names: Sequence[str]) -> Sequence[str]:
    if len(values) not in {0, 1, len(names)}:
        raise SpecError(
            f"{option}: expected it once for all concepts or once for each of the {len(names)}, "
            f"got it {len(values)} times"
        )
    return values if len(values) == len(names) else [*values, ""][:1] * len(names)


def _joined(anchors: Sequence[str]) -> str:
    return anchors[0] if len(set(anchors)) == 1 else "; ".join(anchors)
