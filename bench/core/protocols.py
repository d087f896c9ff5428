"""The contracts a plug-in fulfils. Structural: nothing to inherit from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from bench.core.types import (
    Card,
    Concept,
    Context,
    Cost,
    Prompt,
    Sample,
    SamplerNoise,
    Score,
    Threat,
    World,
)

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor
    from torch.nn import Parameter

Criterion = Callable[[Sequence[Sample]], Sequence[bool]]
"""Says for each image whether the erased concept is back; an image it cannot judge is ``False``."""

ParameterGroup = Literal["esd-x", "esd-u", "esd-x-strict", "selfattn", "attn", "full"]
"""Parameters of the denoiser that published code trains, by the names of ESD (arXiv 2303.07345) and AC
(arXiv 2303.13516).

- ``esd-x``: cross-attention (``attn2``; "xattn" in ESD's first code).
- ``esd-u``: all but cross-attention, the time embedding and the output layer, norms included ("noxattn" in
  ESD's first code; the rewrite of 2025 leaves out norms and takes the others).
- ``esd-x-strict``: keys and values of cross-attention (AC's "cross-attn", UCE).
- ``selfattn``: self-attention (``attn1``).
- ``attn``: both attentions (AC's for nudity).
- ``full``: all, norms included (AC's "full-weight").
"""

Combine = Callable[["Sequence[Tensor]", "Tensor", "Tensor"], "Tensor"]
"""Makes one prediction of those beside the prompt's, the prompt's own, and the guidance scale.

They are what the denoiser itself predicts, noise or velocities, as in the library's pipelines."""


def classifier_free(beside: Sequence[Tensor], conditional: Tensor, scale: Tensor) -> Tensor:
    """Return classifier-free guidance away from the first text beside the prompt."""
    return beside[0] + scale * (conditional - beside[0])


@dataclass(frozen=True, slots=True)
class Guidance:
    """How predictions are combined while sampling; a sampler-time method replaces it.

    Args:
        texts: Texts whose predictions stand beside the prompt's.
        start: Called at the start of each trajectory; what it returns may keep state along it.
    """

    texts: tuple[str, ...] = ("",)
    start: Callable[[], Combine] = lambda: classifier_free


class QueryModel(Protocol):
    """The black-box surface of a text-to-image model."""

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        embeddings: Tensor | None = None,
        noise: Sequence[SamplerNoise] | None = None,
    ) -> Sequence[Image]:
        """Return one image per prompt.

        ``embeddings`` ``(batch, tokens, width)`` replace the encoded texts; ``noise`` replaces the
        model's sampler with DDIM and noise in every step.
        """
        ...


class Model(QueryModel, Protocol):
    """The white-box surface: a diffusers pipeline plus the operations every paper rewrites."""

    pipe: Any
    world: World
    notes: dict[str, Any]
    guidance: Guidance
    screen: Callable[[list[Image]], list[Image]] | None

    @property
    def device(self) -> Any:
        """Where the weights are."""
        ...

    @property
    def dtype(self) -> Any:
        """Type of the denoiser's weights, torch's."""
        ...

    @property
    def alphas(self) -> Tensor:
        """Cumulative signal levels of the 1000 training timesteps."""
        ...

    def copy(self) -> Model:
        """Return an independent copy of the weights, gradients off."""
        ...

    def cast(self, dtype: str) -> Model:
        """Return a copy whose weights are of another type: "fp32", "bf16" or "fp16"."""
        ...

    def resampled(self, sampler: str, steps: int) -> Model:
        """Return the same weights drawn with another sampler."""
        ...

    def parameters(self, group: ParameterGroup) -> dict[str, Parameter]:
        """Return the denoiser's parameters of one group by name, norms included, gradients as they are."""
        ...

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return the text conditioning, ``(batch, tokens, width)``."""
        ...

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return latents ``(batch, c, h, w)`` with noise as at training timesteps ``t`` ``(batch,)``."""
        ...

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return each text's token ids without start, end and padding."""
        ...

    def encode_embeddings(self, token_embeddings: Tensor) -> Tensor:
        """Run the text encoder on token embeddings ``(batch, tokens, width)``, with gradients."""
        ...

    def predict_noise(self, latents: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """Return the noise that the denoiser sees at timesteps ``t`` ``(batch,)``, without guidance."""
        ...

    def denoise(
        self,
        latents: Tensor,
        cond: Tensor,
        guidance: Tensor | float,
        *,
        steps: int | None = None,
        sampler: str | None = None,
        skip: int = 0,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield ``(t, latents)`` before each denoiser call and ``(-1, final latents)`` at the end."""
        ...

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """Return initial noise, one image per seed, the same on every device."""
        ...

    def encode_images(self, images: Sequence[Image]) -> Tensor:
        """Return scaled latent means of images, ``(batch, channels, height, width)``."""
        ...


@dataclass(frozen=True, slots=True)
class Target:
    """What an attack is pointed at.

    Args:
        victim: The erased model, reduced to :class:`QueryModel` for a black-box attack.
        original: The public model before erasure, reduced likewise for an attack in weight space.
        concept: What was erased.
        criterion: Whether the concept is back; the attack's own use, never the result.
    """

    victim: Model
    original: Model
    concept: Concept
    criterion: Criterion


@dataclass(frozen=True, slots=True)
class Adversarial:
    """What an attack found for one prompt; enough to make the image again without the attack.

    Args:
        prompt: The row with its text replaced; the string is what counts.
        embedding: For embedding-space attacks, the conditioning ``(tokens, width)``.
        model: For weight-space attacks, the victim with its weights changed; one object for all prompts.
        noise: For sampler attacks, the noise in every step.
        cost: What it took.
        trace: What the attack wants to record: losses, token ids, the round of success.
    """

    prompt: Prompt
    embedding: Tensor | None = None
    model: Model | None = None
    noise: SamplerNoise | None = None
    cost: Cost = field(default_factory=Cost)
    trace: Mapping[str, Any] = field(default_factory=dict)


class Method(Protocol):
    """Erases a concept from a model.

    One that is not the paper's without files that are not shipped says so in a method
    ``deviations(self, concept) -> tuple[str, ...]``, which is asked on the photo world: what differs, and
    which parameter takes the file.
    """

    card: ClassVar[Card]

    def erase(self, model: Model, concept: Concept, ctx: Context) -> Model:
        """Edit ``model`` (the caller's private copy) and return it."""
        ...


class Attack(Protocol):
    """Tries to bring an erased concept back.

    One that does not fit every task or model has a method ``check_plan(self, concept, world, prompts,
    context)`` that raises SpecError; it is called before the first step of a run. ``context`` is how many
    tokens the model's text encoder reads, ``None`` where its files are not here to tell.
    """

    card: ClassVar[Card]
    threat: ClassVar[Threat]

    def prepare(
        self, target: Target, ctx: Context
    ) -> Callable[[Sequence[Prompt]], Iterator[Adversarial]]:
        """Do the work shared by all prompts; return the function that attacks prompts.

        It yields one :class:`Adversarial` per prompt, as they are found, in any order.
        """
        ...


class Evaluator(Protocol):
    """Scores images.

    One that needs weights names them in a method ``assets(self) -> tuple[str, ...]``; ``ctx.asset(name)``
    then returns the local path. The names are those of :mod:`bench.sources.assets`;
    "a|b" is one of the two.
    One that cannot judge every prompt has a method ``check(self, prompts, asset)`` that raises SpecError or
    AssetError; it is called with a task's prompts and ``ctx.asset`` before the first step of a run.
    ``ctx.basedir`` is shared by all evaluators. A judge whose rates must not stand beside those of a
    task's own judge has a class variable ``metric``, such as "asr-clip".
    """

    card: ClassVar[Card]
    scope: ClassVar[Literal["image", "set"]]

    def prepare(self, ctx: Context) -> Callable[[Sequence[Sample]], Sequence[Score]] | SetScorer:
        """Load what is needed.

        Return with scope "image" a function that gives one score per sample, with scope "set" a
        :class:`SetScorer`.
        """
        ...


class SetScorer(Protocol):
    """Scores all images of a task together without ever holding them together.

    The harness makes images a shard at a time, has them turned into features, keeps those on disk and
    drops the images. How many images a shard has must not change the score. Scorers whose ``key`` is
    equal share features: they are extracted once.
    """

    @property
    def key(self) -> str:
        """Name of the features: tells apart whatever would change them, weights included."""
        ...

    def features(self, samples: Sequence[Sample]) -> Tensor:
        """Return ``(len(samples), width)``; a row of NaN for an image that cannot be read."""
        ...

    def score(self, shards: Iterable[Tensor], prompts: Sequence[Prompt]) -> Score:
        """Return the score of the features of all images that could be read.

        Args:
            shards: Features, a shard at a time, each ``(some, width)``; can be gone through once.
            prompts: The whole prompt set, also if images were made for its first prompts only.

        Returns:
            The score; its detail says what it rests on.
        """
        ...
