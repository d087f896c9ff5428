"""Every exception the harness raises on purpose.

* BenchError                  exit 1   base class; anything else is a bug and shows its traceback
  x SpecError                 exit 2   the user's request is wrong
    + UnknownNameError                 no plug-in, task or model has this name
    + ParamError                       a parameter is unknown or of the wrong type
  x PluginError               exit 3   a plug-in broke its contract (the cell fails, the run goes on)
    + PluginLoadError                  a plug-in cannot be imported, or two share a name
    + ShadowedPackageError             another package hides one of ours
    + ContractError                    a plug-in returned something its protocol forbids
      - ChangedModelError              one changed a model that is not its own
    + RefusedError            exit 2   a plug-in says that the request is wrong
  x IncompatibleError         exit 1   method and model do not fit (the cell is skipped)
  x AssetError                exit 4   weights or data are missing, damaged or cannot be fetched
  x StoreError                exit 5   a record or artifact cannot be read or written
"""

from collections.abc import Iterable
from difflib import get_close_matches

EXIT_CODES = {
    0: "done (a cell that is skipped because method and model do not fit is named)",
    1: "method and model do not fit (`bench erase`, `bench apply`), or `bench doctor` found a fault",
    2: "the request is wrong: a name, a parameter, a file",
    3: "a plug-in broke its contract, or a cell failed",
    4: "weights or data are missing or damaged",
    5: "a file or record cannot be read or written, or is damaged",
    6: "the time of --max-hours is used up, and the same command goes on",
    130: "stopped by Ctrl-C, and the same command resumes",
    143: "stopped by SIGTERM, as of a job whose time is up, and the same command resumes",
}
"""What the exit codes of `bench` mean."""


class BenchError(Exception):
    """Base class; catch it to handle everything the harness foresees."""

    exit_code = 1


class SpecError(BenchError):
    """The user asked for something that does not exist or makes no sense."""

    exit_code = 2


class UnknownNameError(SpecError):
    """No plug-in, task, concept or model has this name."""

    def __init__(self, kind: str, name: str, known: Iterable[str], advice: str = "") -> None:
        names = sorted(known)
        hint = did_you_mean(name, names)
        super().__init__(f"unknown {kind} {name!r}.{hint} Known: {', '.join(names)}{advice}")


class ParamError(SpecError):
    """A plug-in was given a parameter it does not take, or a value of the wrong type."""


class PluginError(BenchError):
    """A plug-in failed in a way the harness can describe."""

    exit_code = 3


class PluginLoadError(PluginError):
    """A plug-in's module could not be imported, or its name is taken twice."""


class ShadowedPackageError(PluginError):
    """Another package hides one of ours."""


class ContractError(PluginError):
    """A plug-in returned something its protocol forbids."""


class ChangedModelError(ContractError):
    """A plug-in changed a model that is not its own."""


class RefusedError(PluginError):
    """A plug-in says that the request is wrong: of a matrix one cell fails, a command on its own stops."""

    exit_code = 2


class IncompatibleError(BenchError):
    """The method does not support this base model; the cell is skipped, not failed."""


class AssetError(BenchError):
    """Weights or data that are not here, not intact, or cannot be fetched."""

    exit_code = 4


class MissingError(AssetError):
    """Several files that are not here.

    Args:
        ways: For each how it may be given, in a few words.
    """

    def __init__(self, ways: Iterable[str]) -> None:
        self.ways = tuple(ways)
        n = len(self.ways)
        many = f"{n} files or folders are not here" if n != 1 else "a file or folder is not here"
        self.title = f"{many}; `bench assets` says of each what it is"
        super().__init__(f"{self.title}: {'; '.join(self.ways)}")


class StoreError(BenchError):
    """A record or an artifact cannot be read or written."""

    exit_code = 5


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a question with the known name that is nearest, or nothing if none is near."""
    names = list(known)
    short = {full.rpartition("/")[2]: full for full in names}  # of another distribution's
    if name in short:
        return f" Did you mean {short[name]!r}?"
    close = get_close_matches(name, names, n=1) or get_close_matches(name, short, n=1)
    return f" Did you mean {short.get(close[0], close[0])!r}?" if close else ""


def first_line(exc: BaseException) -> str:
    """Return the first line of what an exception says, or its name if it says nothing."""
    return str(exc).strip().partition("\n")[0] or type(exc).__name__


def raised(exc: BaseException) -> str:
    """Say what a plug-in raised: the exception's name and the first line of what it says."""
    try:
        said = str(exc).strip()
    except Exception:  # an exception's own text is a plug-in's code, too
        said = "(its text cannot be read)"
    line = (said.splitlines() or [""])[0][:300]
    if isinstance(exc, SyntaxError) and isinstance(exc.text, str) and exc.text.strip():
        line += f": {exc.text.strip()[:100]}"
    return f"{type(exc).__name__}: {line}".removesuffix(": ")
