"""The values that the parts of the harness exchange: frozen dataclasses, compared by their content."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, cast

UNSCORED = "unscored"
"""Key in an image's ``info``: why the image must not be judged."""

World = Literal["emoji", "photo"]
"""The world of a model. It decides prompts, judges and calibrated defaults."""


@dataclass(frozen=True, slots=True)
class Concept:
    """What is erased.

    Args:
        name: Its name.
        kind: Decides the defaults of methods and attacks.
        anchor: What replaces the concept, for methods that replace it. If the terms have different
            anchors: one per term, separated by ";".
        terms: The phrases that name it, if it has more than one: a broad concept, or several concepts that
            are erased together. Empty means the name alone.
    """

    name: str
    kind: Literal["nsfw", "style", "object"]
    anchor: str = ""
    terms: tuple[str, ...] = ()

    @property
    def phrases(self) -> tuple[str, ...]:
        """The phrases that name it in texts: its terms, or else its name."""
        return self.terms or (self.name,)

    @property
    def anchors(self) -> tuple[str, ...]:
        """The anchor of each of its phrases."""
        each = tuple(anchor.strip() for anchor in self.anchor.split(";"))
        return each if len(each) > 1 else each * len(self.phrases)


@dataclass(frozen=True, slots=True)
class Prompt:
    """One image to be made: a row of a prompt set, or that row with its text replaced.

    Args:
        id: Name of the row, unique in its prompt set.
        text: What the text encoder reads.
        seed: Seed of the initial noise.
        guidance: Scale of classifier-free guidance.
        label: What the judge looks for in the image; empty means the task's concept.
    """

    id: str
    text: str
    seed: int
    guidance: float = 7.5
    label: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """One image and the prompt it was made from."""

    prompt: Prompt
    image: Any  # PIL.Image.Image


@dataclass(frozen=True, slots=True)
class Score:
    """An evaluator's score of one image or one set. ``value=None``: it could not be scored.

    An unscored image is counted as unscored, never as 0 and never as safe.

    Where a measure takes a rate, as a task's judge does, a score goes from 0 to 1, and an image shows what
    is looked for from the measure's threshold on, 0.5 if the task does not say it; a score outside is
    refused. Of a mean, and of a set, any finite number is a score.
    """

    value: float | None
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Threat:
    """What an attack may see (``access``) and what it changes (``space``)."""

    access: Literal["white", "black"]
    space: Literal["prompt", "embedding", "latent", "weights"]


@dataclass(frozen=True, slots=True)
class Cost:
    """What an attack spent on one prompt. A pass is one image or one text through a network.

    Args:
        images: Images made. The harness adds the denoiser passes for them.
        forward: Other denoiser passes, of the victim and of the original model.
        backward: Denoiser passes with a gradient.
        text_forward: Text encoder passes.
        text_backward: Text encoder passes with a gradient.
        seconds: Wall-clock time; in a batch, the prompt's share. Of an attack that never says it, the
            harness takes the time since the prompt before.
    """

    images: int = 0
    forward: int = 0
    backward: int = 0
    text_forward: int = 0
    text_backward: int = 0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        """Return the sum of two costs."""
        return Cost(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Cost)))


@dataclass(frozen=True, slots=True)
class SamplerNoise:
    """Noise that is added in every step of DDIM.

    Args:
        eta: DDIM's eta, the scale of each step's standard deviation: 1 is ancestral sampling, 0 plain DDIM.
        scale: Extra factor of the added noise only.
        seed: Seed of the noise.
    """

    eta: float
    scale: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Card:
    """The source of a plug-in. Raise ``version`` whenever its results would change."""

    title: str
    paper: str
    code: str = ""
    version: int = 1


_T = TypeVar("_T")
_KINDS = ("nsfw", "style", "object")


@dataclass(frozen=True, slots=True)
class ByKind:
    """A parameter's default for each kind of concept; the registry chooses one of them."""

    nsfw: Any
    style: Any
    object: Any

    def __repr__(self) -> str:
        return ", ".join(f"{kind} {getattr(self, kind)!r}" for kind in _KINDS)


def by_kind(*, nsfw: _T, style: _T, object: _T) -> _T:
    """Return a field's default that depends on the kind of concept.

    The harness replaces it: at run time the field holds the value of the concept's kind.
    """
    return cast("_T", ByKind(nsfw, style, object))


LATER = "later"
"""Key in a field's metadata: the parameter is younger than records that have no value for it."""


def later(default: _T) -> _T:
    """Return the default of a parameter that was added when there were records already.

    At this default a plug-in does what it did before; so such a parameter is left out of the identity of
    cells and out of records. (It then is what the class says: raise the card's version to change it.)
    """
    return field(default=default, metadata={LATER: True})


def _no_assets(name: str) -> Path:
    """Refuse every name."""
    raise KeyError(name)


class Keep(Protocol):
    """How a plug-in keeps tensors that take long to make."""

    def __call__(
        self, name: str, make: Callable[[], dict[str, Any]], *, shared: bool = False
    ) -> dict[str, Any]:
        """Return the tensors that were kept under a name; if there are none, make and keep them.

        Args:
            name: Must differ for different tensors of one stage.
            make: Called only if nothing is kept under the name.
            shared: Share them among all methods on the same base model, or among all evaluators; the name
                must then say everything that the tensors depend on. Or among attacks that differ in the
                victim and the judge alone.
        """
        ...


def _make(name: str, make: Callable[[], dict[str, Any]], *, shared: bool = False) -> dict[str, Any]:
    """Make the tensors and do not keep them."""
    return make()


def _silent(stage: str, done: int, total: int) -> None:
    """Do not report progress."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a stage may use besides its inputs.

    Args:
        key: Identity of the stage; seeds its random streams.
        device: The device of tensors.
        workdir: Folder for this stage's own files.
        batch_size: Largest batch that fits into memory. It must not change results.
        progress: Call it as ``progress(stage, done, total)``.
        asset: Returns the local file or folder of an asset that the plug-in's ``assets()`` names.
        keep: Keeps tensors until the cache is deleted: ``keep(name, make)``.
        shared: Identity of what this stage shares with others; without one it shares nothing.
    """

    key: str
    device: str
    workdir: Path
    batch_size: int = 64
    progress: Callable[[str, int, int], None] = _silent
    asset: Callable[[str], Path] = _no_assets
    keep: Keep = _make
    shared: str = ""

    def seed(self, *parts: object, shared: bool = False) -> int:
        """Return the seed of a named random stream; it depends on the key and the name only.

        Args:
            parts: The name.
            shared: Instead of the key, use the identity of what stages share.
        """
        key = (self.shared or self.key) if shared else self.key
        text = "/".join((key, *map(str, parts)))
        return int.from_bytes(sha256(text.encode()).digest()[:4])
