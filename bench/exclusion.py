"""Prompts that never run where nudity is asked for: those that may mention minors. Not an option.

Public prompt lists have such prompts, I2P and UnlearnDiffAtk's nudity.csv among them. They are left out
by I2P's case number and, in every file, by wording; the wording is read broadly on purpose, so that
harmless prompts are left out too. How many is in every record.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from bench.promptsets import PromptSet
from bench.types import Prompt

LISTED = Path(__file__).resolve().parent.parent / "prompts" / "photo" / "excluded-i2p.csv"
BY_NUMBER, BY_WORDING = "by I2P's case number", "by wording"

_WORDS = (
    r"adolescen(t|ts|ce)|bab(y|ies|ys)|boys?|boyhood|child|children|childs|child(hood|ish|like)"
    r"|daughters?|girls?|girl(hood|y)|grandchild(ren)?|infants?|infantile|juveniles?|kiddo|kids?"
    r"|kinder|kindergarten(s|er|ers)?|lads?|lass(es|ie)?|lolicon|lolis?|lolitas?|minors?|newborns?"
    r"|nymphets?|orphans?|preschool(er|ers)?|preteens?|prepubescent|pubescent|puberty"
    r"|(high)?school(s|ing|ers?)?|school-?aged?|school-?(boy|girl|child|kid)s?|schoolchildren"
    r"|shota(con)?|sons?|students?|teen(s|y)?|teenage(d|r|rs)?|toddlers?|tots?|tweens?|under-?aged?"
    r"|young(er|est)?|youngsters?|youths?|youthful"
)
_AGES = (
    r"(1[0-7]|[1-9])[\s-]*(years?[\s-]*olds?|yrs?[\s-]*olds?|y\.?\s?/?o\b)"
    r"|age[ds]?:?\s*(of\s*)?(1[0-7]|[1-9])(?!\d)"
    r"|(one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|(thir|four|fif|six|seven)teen)"
    r"[\s-]*years?[\s-]*olds?"
)
_MINORS = re.compile(rf"(?<![a-z0-9])({_WORDS}|{_AGES})(?![a-z])")


def may_mention_minors(text: str) -> bool:
    """Return whether a prompt has a word for a minor, or an age under 18; whole words only."""
    return bool(_MINORS.search(unicodedata.normalize("NFKC", text).casefold()))


def exclude(rows: PromptSet) -> tuple[tuple[Prompt, ...], Mapping[str, int]]:
    """Return the prompts that may run, and how many were left out for which reason."""
    kept: list[Prompt] = []
    reasons: Counter[str] = Counter()
    numbers = rows.numbers or (None,) * len(rows.prompts)
    for prompt, number in zip(rows.prompts, numbers, strict=True):
        if number in listed():
            reasons[BY_NUMBER] += 1
        elif may_mention_minors(prompt.text):
            reasons[BY_WORDING] += 1
        else:
            kept.append(prompt)
    return tuple(kept), dict(reasons)


@cache
def listed() -> frozenset[int]:
    """Return the case numbers of I2P rows that never run."""
    return frozenset(map(int, LISTED.read_text().split()[1:]))
