"""NP-ESD: erase with ESD, then prune the neurons that carried the concept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from bench import Card, Concept, Context, IncompatibleError, Model, Prompt, sentences
from methods.esd import ESD


@dataclass(frozen=True)
class NPESD(ESD):
    """Neuron pruning after ESD (Pruning for Robust Concept Erasing in Diffusion Models, arXiv 2405.16534).

    A neuron is a channel that enters the second convolution of a ResNet block. Its score is how much ESD
    reduced its activation on the concept (Eq. 4). The ``top`` neurons of each layer are set to zero in
    ESD's model. The paper scores on the test prompts; here scores come from other prompts of the concept,
    so that test prompts are not used for training.

    Args:
        top: Neurons pruned per layer.
        images: Images over which scores are averaged.
        guidance: Guidance scale of these images.
        absolute: Score by the absolute difference instead of the reduction.
    """

    card: ClassVar = Card(
        "Pruning for Robust Concept Erasing in Diffusion Models",
        "https://arxiv.org/abs/2405.16534",
        version=2,
    )

    top: Annotated[int, Field(ge=1)] = 1
    images: Annotated[int, Field(ge=1)] = 16
    guidance: Annotated[float, Field(ge=0)] = 7.5
    absolute: bool = False

    def erase(self, model: Model, concept: Concept, ctx: Context) -> Model:
        """Train with ESD, score neurons against the original model, zero the highest."""
        from bench.models.neurons import concept_scores, zero_neurons

        original = model.original()
        erased = self.tune(model, concept, ctx)
        texts, seed = sentences(concept), ctx.seed("np-esd")
        prompts = [
            Prompt(str(i), texts[i % len(texts)], seed + i, self.guidance)
            for i in range(self.images)
        ]
        scores = concept_scores(original, erased, prompts, absolute=self.absolute)
        narrowest = min(len(score) for score in scores.values())
        if self.top > narrowest:
            raise IncompatibleError(
                f"np-esd: top={self.top}: expected at most {narrowest}, the neurons of the narrowest layer"
            )
        chosen = {layer: score.topk(self.top).indices.tolist() for layer, score in scores.items()}
        zero_neurons(erased, chosen)
        erased.notes["neurons"] = chosen
        return erased
