"""Makes hostile text safe for each medium: names, prompts, file names and exceptions come from strangers.

All text that is printed goes through one of these functions; figures, which are made here, need none.
"""

from __future__ import annotations

import re
from decimal import ROUND_HALF_UP, Decimal

from rich.console import Console
from rich.text import Text

_MARKDOWN = re.compile(r"([\\`*_{}\[\]|~]|^#|^[-+](?= ))")
_NUMBERED = re.compile(r"^(\d+)([.)] )")  # a list, to Markdown
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_FORMULA = ("=", "+", "-", "@")
_TEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_",
    "%": r"\%", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''", "`": r"\textasciigrave{}",
    "[": "{[}", "]": "{]}", "*": "{*}",
    "·": r"$\cdot$", "≠": r"$\neq$", "†": r"\dag{}", "γ": r"$\gamma$", "≤": r"$\leq$", "≥": r"$\geq$",
    "×": r"$\times$", "–": r"\textendash{}", "—": r"\textemdash{}", "−": "$-$",
}  # fmt: skip
_TEX_LETTERS = frozenset("ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜÝàáâãäåæçèéêëìíîïñòóôõöøùúûüýÿß")


def plain(text: object) -> str:
    r"""Return one line for a terminal: no control character, no escape sequence, no invisible character.

    White space becomes a space; any other character that cannot be seen is written as ``\x1b``.
    """
    line = str(text)
    return line if line.isprintable() else "".join(map(_visible, line))


def say(line: object, to: Console, style: str = "") -> None:
    """Print one line; whatever is in it, it stays one line of text."""
    to.print(Text(plain(line), style), soft_wrap=True)


def markdown(text: object) -> str:
    """Return text that Markdown shows as it is, also within a table: no markup, no HTML, no new column."""
    escaped = "".join(_HTML.get(c, c) for c in plain(text))
    return _NUMBERED.sub(r"\1\\\2", _MARKDOWN.sub(r"\\\1", escaped))


def latex(text: object) -> str:
    r"""Return text that pdflatex sets as it is, anywhere in a table: no command, no cell, no ``\\[...]``.

    A character that its usual fonts lack is written as its code point, such as U+1F600.
    """
    return re.sub("-(?=-)", "-{}", "".join(map(_tex, plain(text))))


def fixed(value: float, digits: int) -> str:
    """Return a number with so many decimals; a half is rounded away from zero, as in JavaScript."""
    if not abs(value) < 1e15:  # more than its digits hold
        return f"{value:.{digits}f}"
    return str(Decimal(value).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP))


def counted(n: int, one: str) -> str:
    """Return "1 image", "2 images"."""
    return f"{n} {one}" if n == 1 else f"{n} {one}s"


def csv_cell(text: object) -> str:
    """Return text for a CSV cell; one that a spreadsheet would take for a formula begins with ``'``."""
    line = plain(text)
    return f"'{line}" if line.startswith(_FORMULA) else line


def _tex(character: str) -> str:
    if character in _TEX:
        return _TEX[character]
    return (
        character if character.isascii() or character in _TEX_LETTERS else f"U+{ord(character):04X}"
    )


def _visible(character: str) -> str:
    if character.isprintable():
        return character
    if character.isspace():
        return " "
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
