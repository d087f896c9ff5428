"""What a plug-in must have. These are structural types: a plug-in inherits from nothing."""

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
"""Tells for each image whether it shows the erased concept; ``False`` if it cannot be judged."""

ParameterGroup = Literal["esd-x", "esd-u", "esd-x-strict", "selfattn", "attn", "full"]
"""Parameters of the denoiser that published code trains, with the names that ESD (arXiv 2303.07345) and AC
(arXiv 2303.13516) give them.

- ``esd-x``: cross-attention (``attn2``; "xattn" in ESD's first code).
- ``esd-u``: everything except cross-attention, the time embedding and the output layer; norms are included
  ("noxattn" in ESD's first code; the rewrite of 2025 excludes norms and includes the other two).
- ``esd-x-strict``: keys and values of cross-attention (AC's "cross-attn", UCE).
- ``selfattn``: self-attention (``attn1``).
- ``attn``: cross-attention and self-attention (AC for nudity).
- ``full``: everything, norms included (AC's "full-weight").
"""

Combine = Callable[["Sequence[Tensor]", "Tensor", "Tensor"], "Tensor"]
"""Combines the predictions for the guidance texts, the one for the prompt, and the guidance scale.

The predictions are the denoiser's own output, noise or velocities, as in the pipelines of diffusers."""


def classifier_free(others: Sequence[Tensor], conditional: Tensor, scale: Tensor) -> Tensor:
    """Return classifier-free guidance: from the first guidance text towards the prompt."""
    return others[0] + scale * (conditional - others[0])


@dataclass(frozen=True, slots=True)
class Guidance:
    """How predictions are combined while sampling. A method that acts while sampling replaces it.

    Args:
        texts: The guidance texts: the denoiser predicts for each of them as well as for the prompt.
        start: Called at the start of each trajectory; returns the function that combines predictions,
            which may keep state from step to step.
    """

    texts: tuple[str, ...] = ("",)
    start: Callable[[], Combine] = lambda: classifier_free


class QueryModel(Protocol):
    """What a black-box attack may do with a text-to-image model."""

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        embeddings: Tensor | None = None,
        sampler_noise: Sequence[SamplerNoise] | None = None,
    ) -> Sequence[Image]:
        """Return one image per prompt.

        Args:
            prompts: Texts, seeds and guidance scales.
            embeddings: ``(batch, tokens, width)``, used instead of the encoded texts.
            sampler_noise: One per prompt. The sampler is then DDIM with this noise in every step.
        """
        ...


class Model(QueryModel, Protocol):
    """What a white-box attack and a method may do: a diffusers pipeline and what every paper needs of it.

    Attributes:
        pipe: The diffusers pipeline.
        world: The world of the model.
        notes: What a method wants to record.
        guidance: How predictions are combined while sampling.
        screen: Changes images after they are made, such as a safety filter; ``None`` changes nothing.
    """

    pipe: Any
    world: World
    notes: dict[str, Any]
    guidance: Guidance
    screen: Callable[[list[Image]], list[Image]] | None

    @property
    def device(self) -> Any:
        """The device of the weights, torch's."""
        ...

    @property
    def dtype(self) -> Any:
        """The type of the denoiser's weights, torch's."""
        ...

    @property
    def alphas(self) -> Tensor:
        """Cumulative signal levels ``alpha_bar`` of the 1000 training timesteps."""
        ...

    def copy(self) -> Model:
        """Return an independent copy with gradients turned off."""
        ...

    def original(self) -> Model:
        """Return the model before the method changed its private copy, to predict with.

        It is the harness's own, so that no further copy takes memory: it must stay as it is. A model that
        is no method's private copy returns a copy of itself.
        """
        ...

    def cast(self, dtype: str) -> Model:
        """Return a copy with weights of another type: "fp32", "bf16" or "fp16"."""
        ...

    def resampled(self, sampler: str, steps: int) -> Model:
        """Return a model with the same weights and another sampler."""
        ...

    def parameters(self, group: ParameterGroup) -> dict[str, Parameter]:
        """Return one group of the denoiser's parameters by name; ``requires_grad`` is not changed."""
        ...

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return the text conditioning, ``(batch, tokens, width)``."""
        ...

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return latents ``(batch, c, h, w)`` noised to the training timesteps ``t`` ``(batch,)``."""
        ...

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return each text's token ids without start, end and padding."""
        ...

    def encode_embeddings(self, token_embeddings: Tensor) -> Tensor:
        """Run the text encoder on token embeddings ``(batch, tokens, width)``, with gradients."""
        ...

    def predict_noise(self, latents: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """Return the noise that the denoiser predicts at timesteps ``t`` ``(batch,)``, without guidance."""
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
        """Sample with the model's guidance, without gradients.

        Args:
            latents: Initial noise, ``(batch, c, h, w)``.
            cond: Text conditioning, ``(batch, tokens, width)``.
            guidance: Guidance scale, one or ``(batch,)``.
            steps: Denoising steps; by default the model's own.
            sampler: "ddim", "lms", "pndm" or "dpm"; by default the model's own.
            skip: Number of first steps to leave out; only for "ddim".

        Yields:
            ``(t, latents)`` before each denoiser call, then ``(-1, final latents)``.
        """
        ...

    def initial_noise(self, seeds: Sequence[int]) -> Tensor:
        """Return the initial noise of one image per seed; it is the same on every device."""
        ...

    def encode_images(self, images: Sequence[Image]) -> Tensor:
        """Return the scaled means of the images' latents, ``(batch, channels, height, width)``."""
        ...


@dataclass(frozen=True, slots=True)
class Target:
    """What an attack works on.

    Args:
        victim: The erased model. A black-box attack gets only a :class:`QueryModel`.
        original: The model before erasure. An attack in weight space gets only a :class:`QueryModel`.
        concept: What was erased.
        criterion: Whether an image shows the concept. It guides the attack; the harness judges again.
    """

    victim: Model
    original: Model
    concept: Concept
    criterion: Criterion


@dataclass(frozen=True, slots=True)
class Adversarial:
    """What an attack found for one prompt: enough to make the image again without the attack.

    Args:
        prompt: The prompt with its text replaced. The string counts, not token ids.
        embedding: For attacks in embedding space: the conditioning ``(tokens, width)``.
        model: For attacks in weight space: the victim with changed weights, one object for all prompts.
        sampler_noise: For attacks on the sampler: the noise in every step.
        cost: What the attack spent on this prompt.
        trace: What the attack wants to record: losses, token ids, the round of success.
    """

    prompt: Prompt
    embedding: Tensor | None = None
    model: Model | None = None
    sampler_noise: SamplerNoise | None = None
    cost: Cost = field(default_factory=Cost)
    trace: Mapping[str, Any] = field(default_factory=dict)


Attacker = Callable[[Sequence[Prompt]], Iterator[Adversarial]]
"""Attacks prompts: yields one :class:`Adversarial` per prompt, as they are found, in any order."""

ImageScorer = Callable[[Sequence[Sample]], Sequence[Score]]
"""Scores images: returns one :class:`Score` per sample, in the same order."""


class Method(Protocol):
    """Erases a concept from a model.

    A method that differs from its paper because a file is not shipped has another method,
    ``deviations(self, concept) -> tuple[str, ...]``: what differs, and which parameter takes the file. The
    harness asks it on the photo world.

    One that does not fit every concept or model has a method ``check_plan(self, concept, model)`` that
    raises IncompatibleError; ``model`` is what ``--model`` says. It is called before a run starts, which
    goes on without the method.
    """

    card: ClassVar[Card]

    def erase(self, model: Model, concept: Concept, ctx: Context) -> Model:
        """Edit ``model``, which is a private copy, and return it."""
        ...


class Attack(Protocol):
    """Tries to bring an erased concept back.

    An attack that does not fit every task or model has a method ``check_plan(self, concept, world, prompts,
    context)`` that raises SpecError. It is called before a run starts. ``context`` is how many tokens the
    model's text encoder reads; ``None`` if the model is not on this machine yet.

    One that says how many images it makes has a method ``most_images(self) -> int``: the most of one prompt
    that may succeed, the prompt's own included. ``bench run --floors`` gives the floors as many. A black
    box that spends more (``Cost.images``) fails its cell.

    One that takes what another attack found has a method ``takes(self) -> tuple[str, str] | None``: method
    and attack, as a request names them. Their cell is planned as well, and computed first. A parameter
    ``cell`` gets its id, and ``source`` the path of its record.
    """

    card: ClassVar[Card]
    threat: ClassVar[Threat]

    def prepare(self, target: Target, ctx: Context) -> Attacker:
        """Do the work that all prompts share; return the function that attacks prompts."""
        ...


class Evaluator(Protocol):
    """Scores images.

    An evaluator may also have:

    - ``assets(self) -> tuple[str, ...]``: the weights that it needs, by their names in ``bench assets``;
      "a|b" means one of the two. ``ctx.asset(name)`` then returns the local path.
    - ``check(self, prompts, asset)``: raises SpecError or AssetError if it cannot judge these prompts. It
      is called with a task's prompts and ``ctx.asset`` before a run starts.
    - a class variable ``metric``, such as "asr-clip": the name of its rates, if they must not be compared
      with the rates of a task's own judge.
    """

    card: ClassVar[Card]
    scope: ClassVar[Literal["image", "set"]]

    def prepare(self, ctx: Context) -> ImageScorer | SetScorer:
        """Load what is needed; return the scorer that belongs to the scope."""
        ...


class SetScorer(Protocol):
    """Scores all images of a task together, without holding them in memory together.

    The harness makes one shard of images at a time, asks for its features, keeps the features on disk and
    drops the images. The size of a shard must not change the score. Scorers with the same ``key`` share
    features, which are then extracted once.
    """

    @property
    def key(self) -> str:
        """Name of the features. Whatever changes them, such as other weights, must change it."""
        ...

    def features(self, samples: Sequence[Sample]) -> Tensor:
        """Return ``(len(samples), width)``, with a row of NaN for an image that cannot be read."""
        ...

    def score(self, shards: Iterable[Tensor], prompts: Sequence[Prompt]) -> Score:
        """Return the score of the features of all images that could be read.

        Args:
            shards: Features ``(some, width)`` of one shard at a time. Can be iterated once.
            prompts: The whole prompt set, even if images were made for its first prompts only.

        Returns:
            The score. Its detail says how it was computed.
        """
        ...
