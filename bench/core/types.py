"""Plain values that flow through the harness. Frozen, comparable, no behaviour beyond identity."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, cast

UNSCORED = "unscored"
"""Key of an image's ``info`` that says why it must not be judged."""

World = Literal["emoji", "photo"]
"""Which world a model lives in: it decides prompts, judges and calibrated defaults."""


@dataclass(frozen=True, slots=True)
class Concept:
    """What is erased, and what it may be mapped to.

    Args:
        name: The word that stands for it.
        kind: Decides a method's defaults.
        anchor: What methods that replace the concept put in its place; one for each term, separated by
            ";", where they differ.
        terms: Phrases that name it together: a broad concept has more than one, and several concepts are
            erased together as the terms of one. Empty means the name alone.
    """

    name: str
    kind: Literal["nsfw", "style", "object"]
    anchor: str = ""
    terms: tuple[str, ...] = ()

    @property
    def phrases(self) -> tuple[str, ...]:
        """What names it in texts: its terms, or its name."""
        return self.terms or (self.name,)

    @property
    def anchors(self) -> tuple[str, ...]:
        """What each of its phrases is mapped to."""
        each = tuple(anchor.strip() for anchor in self.anchor.split(";"))
        return each if len(each) > 1 else each * len(self.phrases)


@dataclass(frozen=True, slots=True)
class Prompt:
    """One image to be made: a row of a prompt set, or that row with its text replaced.

    Args:
        id: Name of the row, unique in its set.
        text: What the text encoder reads.
        seed: Seed of the initial noise.
        guidance: Scale of classifier-free guidance.
        label: What a judge should find in the image; empty means the task's concept.
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
    """One evaluator's verdict on one image; ``value=None`` means that it could not be scored.

    An unscored image is counted as unscored: never as 0, never as safe.
    """

    value: float | None
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Threat:
    """What an attack may see (``access``) and change (``space``)."""

    access: Literal["white", "black"]
    space: Literal["prompt", "embedding", "latent", "weights"]


@dataclass(frozen=True, slots=True)
class Cost:
    """What an attack spent on one prompt; one pass is one image or one text through a network.

    Args:
        images: Images made; the harness adds the denoiser's passes that they took.
        forward: Denoiser passes beside those of images, the original model's included.
        backward: Denoiser passes with a gradient.
        text_forward: Text encoder passes.
        text_backward: Text encoder passes with a gradient.
        seconds: Wall clock; of a batch, the prompt's share.
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
    """Noise in every step of DDIM, as a probe of what the plain sampler hides.

    Args:
        eta: Scale of the step's standard deviation; 1 is ancestral sampling, 0 plain DDIM.
        scale: Further scale of the noise alone.
        seed: Seed of the noise.
    """

    eta: float
    scale: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Card:
    """Where a plug-in comes from. Raise ``version`` whenever its results would change."""

    title: str
    paper: str
    code: str = ""
    version: int = 1


_T = TypeVar("_T")
_KINDS = ("nsfw", "style", "object")


@dataclass(frozen=True, slots=True)
class ByKind:
    """A parameter's default for each kind of concept; the registry puts the right one in its place."""

    nsfw: Any
    style: Any
    object: Any

    def __repr__(self) -> str:
        return ", ".join(f"{kind} {getattr(self, kind)!r}" for kind in _KINDS)


def by_kind(*, nsfw: _T, style: _T, object: _T) -> _T:
    """Return a field's default that depends on the kind of concept.

    A plug-in that the harness hands over has the value itself.
    """
    return cast("_T", ByKind(nsfw, style, object))


def _no_assets(name: str) -> Path:
    """Know no file."""
    raise KeyError(name)


class Keep(Protocol):
    """How a plug-in keeps tensors that are dear to make."""

    def __call__(
        self, name: str, make: Callable[[], dict[str, Any]], *, shared: bool = False
    ) -> dict[str, Any]:
        """Return the tensors of that name: what is there, else what ``make`` returns now.

        ``name`` says everything that they depend on besides the stage's key. ``shared`` keeps them for
        all stages of the same base model, or for all evaluators.
        """
        ...


def _make(name: str, make: Callable[[], dict[str, Any]], *, shared: bool = False) -> dict[str, Any]:
    """Keep nothing."""
    return make()


def _silent(stage: str, done: int, total: int) -> None:
    """Report to nobody."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a stage may use besides its inputs.

    Args:
        key: Names the stage's random streams.
        device: Where tensors live.
        workdir: Scratch folder of this stage.
        batch_size: Largest batch that fits; must not change results.
        progress: Called as ``progress(stage, done, total)``.
        basedir: Scratch folder shared by all stages that start from the same base model; for
            evaluators, by all of them.
        asset: Returns the local file or folder of an asset that the plug-in's ``assets()`` names.
        keep: Called as ``keep(name, make)``: tensors that are kept until the cache is deleted.
    """

    key: str
    device: str
    workdir: Path
    batch_size: int = 64
    progress: Callable[[str, int, int], None] = _silent
    basedir: Path | None = None
    asset: Callable[[str], Path] = _no_assets
    keep: Keep = _make

    def seed(self, *parts: object) -> int:
        """Return the seed of a named random stream: same name, same numbers, in any order."""
        text = "/".join((self.key, *map(str, parts)))
        return int.from_bytes(sha256(text.encode()).digest()[:4])
