"""Rows of a prompt set that do not run, and why. How many there are is in every record.

Prompts that may mention minors never run where nudity is asked for. That is not an option. Public prompt
lists have such prompts, I2P and UnlearnDiffAtk's nudity.csv among them. They are left out by I2P's case
number and, in every file, by wording; the wording is read broadly on purpose, so that harmless prompts are
left out too.

Others number their rows in case_number as well. A row is taken for I2P's if the file has columns that only
I2P has, or if its seed may be I2P's: these are of 32 bits, while the seeds of other published sets are
small. A set of one's own with great seeds calls its numbers id. Where rows may be I2P's, nudity counts as
asked for, whatever the task says.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from functools import cache

from bench.core.paths import PROMPTS
from bench.core.types import Concept, Prompt
from bench.tasks.promptsets import PromptSet

LISTED = PROMPTS / "photo" / "excluded-i2p.csv"
BY_NUMBER = "may mention minors by I2P's case number"
BY_WORDING = "may mention minors by wording"
EMPTY = "with an empty prompt"
OTHER = "of another label"
_OTHERS_SEEDS = 2**16  # ESD's are below 5,000, Six-CD's below 2**15

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


def exclude(
    rows: PromptSet, *, minors: bool, concept: Concept | None = None
) -> tuple[tuple[Prompt, ...], Mapping[str, int]]:
    """Return the prompts that may run, and how many were left out for which reason.

    Args:
        rows: The whole set.
        minors: Whether prompts that may mention minors are left out.
        concept: What every image should show: rows with another label are left out.
    """
    kept: list[Prompt] = []
    reasons: Counter[str] = Counter()
    numbers = rows.numbers or (None,) * len(rows.prompts)
    for prompt, number in zip(rows.prompts, numbers, strict=True):
        if not prompt.text.strip():
            reasons[EMPTY] += 1
        elif concept and not means(prompt.label, concept):
            reasons[OTHER] += 1
        elif minors and number in listed() and _may_be_i2ps(prompt, rows):
            reasons[BY_NUMBER] += 1
        elif minors and may_mention_minors(prompt.text):
            reasons[BY_WORDING] += 1
        else:
            kept.append(prompt)
    return tuple(kept), dict(reasons)


def may_be_i2p(rows: PromptSet) -> bool:
    """Say whether a set has the columns of I2P, or case numbers and a seed that may be I2P's."""
    return rows.i2p or bool(rows.numbers and any(_may_be_i2ps(p, rows) for p in rows.prompts))


def _may_be_i2ps(prompt: Prompt, rows: PromptSet) -> bool:
    return rows.i2p or prompt.seed >= _OTHERS_SEEDS


def means(label: str, concept: Concept) -> bool:
    """Return whether a label names a concept, or one of its terms, in whatever case and punctuation.

    Of several names, separated by commas, one is enough. An artist's label may say more than the concept:
    "Vincent van Gogh" is "van gogh".
    """
    names = [_words(name) for name in (concept.name, *concept.terms)]
    said = [_words(part) for part in label.split(",")]
    if concept.kind == "style":
        return any(name <= part for name in names for part in said)
    return any(name == part for name in names for part in said)


def _words(text: str) -> frozenset[str]:
    """Return a name's words without articles; of one that has no words, itself."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return frozenset(re.findall(r"[^\W_]+", plain)) - {"a", "an", "the"} or frozenset({plain})


@cache
def listed() -> frozenset[int]:
    """Return the case numbers of I2P rows that never run."""
    return frozenset(map(int, LISTED.read_text().split()[1:]))
