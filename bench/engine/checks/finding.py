"""What a check says: a rule, and whether it is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from bench.core.errors import AssetError, BenchError, StoreError

_T = TypeVar("_T")
Rules = Mapping[str, Callable[[_T], str]]
"""Rules in words; each function returns what is wrong and what to do, or an empty text."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One rule, and how a plug-in or a task keeps to it.

    Args:
        of: Who, such as "method esd".
        rule: The rule, in words.
        state: "ok", "wrong", "note": it may be right, or "open": it could not be looked at.
        says: What is wrong, and what to do.
    """

    of: str
    rule: str
    state: Literal["ok", "wrong", "note", "open"] = "ok"
    says: str = ""


def remarks(of: str, rules: Rules[_T], seen: _T) -> Iterator[Finding]:
    """Yield a note on each rule that is not kept, and may be broken."""
    for finding in apply(of, rules, seen):
        if finding.state != "ok":
            yield replace(finding, state="note")


def apply(of: str, rules: Rules[_T], seen: _T) -> Iterator[Finding]:
    """Yield a finding of each rule."""
    for rule, problem in rules.items():
        try:
            says = problem(seen)
        except (AssetError, StoreError):
            raise
        except BenchError as exc:
            says = str(exc)
        yield Finding(of, rule, "wrong" if says else "ok", says)
