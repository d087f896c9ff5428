"""FMN: turn cross-attention away from the concept's tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from bench import (
    Batch,
    Card,
    Concept,
    Context,
    Model,
    PluginError,
    Prompt,
    check_length,
    fit,
    framed,
    fused,
    trainable,
)

if TYPE_CHECKING:
    from torch import Tensor


Pooler = Literal["official", "eos", "none"]


@dataclass(frozen=True)
class FMN:
    """Forget-Me-Not (Zhang et al., Learning to Forget in Text-to-Image Diffusion Models).

    It minimises the norm (neither squared nor averaged) of all cross-attention probabilities at the
    concept's tokens, over layers, heads and pixels. The images come from the original model. It is weak
    on nudity and on tokens that were not trained, also in papers that compare it. If a concept has
    several terms, each step draws one.

    The published code first inverts the concept into four new tokens ("use_ti") and turns attention away
    from these; the authors of AGE (arXiv 2501.18950), who could not replicate its results, use the
    concept's own tokens. Here new tokens start from random rows of the embedding table; in the published
    script from the words of two celebrities and two random rows.

    Args:
        params: Weights that are trained: "unet" is the whole denoiser, "attn2" its cross-attention.
        steps: Optimiser steps.
        lr: Learning rate of AdamW.
        images: Images of the concept.
        pooler: What else is penalised: "official" every end token, as published (SD 1.x pads with it, so
            almost all positions); "eos" the first end token; "none" nothing.
        weight_decay: AdamW's weight decay.
        inversion_steps: Steps of textual inversion at learning rate 1e-3; 0 uses the concept's own tokens.
    """

    card: ClassVar = Card(
        "Forget-Me-Not: Learning to Forget in Text-to-Image Diffusion Models",
        "https://arxiv.org/abs/2303.17591",
        "https://github.com/SHI-Labs/Forget-Me-Not",
        version=2,
    )

    params: Literal["unet", "attn2"] = "unet"
    steps: Annotated[int, Field(ge=1)] = 35
    lr: Annotated[float, Field(gt=0)] = 2e-6
    images: Annotated[int, Field(ge=1)] = 8
    pooler: Pooler = "official"
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.01
    inversion_steps: Annotated[int, Field(ge=0)] = 500

    def erase(self, model: Model, concept: Concept, ctx: Context) -> Model:
        """Minimise the attention to the concept's tokens."""
        import torch

        terms = [term.replace("-", " ") for term in concept.phrases]
        form = "a photo in the style of {}" if concept.kind == "style" else "a photo of {}"
        texts = [form.format(term) for term in terms]
        check_length(model, texts)
        cond = model.encode(texts)
        pairs = zip(texts, terms, strict=True)
        where = torch.stack([concept_positions(model, *pair, self.pooler) for pair in pairs])
        seed, n = ctx.seed("fmn"), max(self.images, len(texts))
        prompts = [Prompt(str(i), texts[i % len(texts)], seed + i) for i in range(n)]
        latents = model.encode_images(model.generate(prompts))
        if self.inversion_steps:
            start = form.format("").strip()
            shares = [latents[i :: len(texts)] for i in range(len(texts))]
            found = [
                invert(model, start, share, self.inversion_steps, seed + i, ctx, pooler=self.pooler)
                for i, share in enumerate(shares)
            ]
            cond, where = (torch.cat(parts) for parts in zip(*found, strict=True))
        clip = self.params == "attn2"  # the published code clips in this mode only
        rng = torch.Generator().manual_seed(seed)

        maps: dict[str, Tensor] = {}

        def draw() -> Batch:
            i = int(torch.randint(len(prompts), (1,), generator=rng))
            x0, row = latents[i : i + 1], slice(i % len(texts), i % len(texts) + 1)
            noise = torch.randn(x0.shape, generator=rng).to(x0.device)
            t = torch.randint(1000, (1,), generator=rng).to(x0.device)

            def error(_: slice) -> Tensor:
                model.predict_noise(model.add_noise(x0, noise, t), t, cond[row])
                return attention_norm(list(maps.values()), where[row])

            return Batch(1, error, partial(attention_maps, model, maps))

        with trainable(model.parameters("esd-x" if clip else "full").values()) as params:
            optimizer = torch.optim.AdamW(
                params, lr=self.lr, weight_decay=self.weight_decay, **fused(params)
            )
            clipped = (lambda: torch.nn.utils.clip_grad_norm_(params, 1.0)) if clip else None
            fit(draw, optimizer, self.steps, ctx, before_step=clipped)
        return model


def invert(
    model: Model,
    start: str,
    latents: Tensor,
    steps: int,
    seed: int,
    ctx: Context,
    *,
    pooler: Pooler,
    tokens: int = 4,
) -> tuple[Tensor, Tensor]:
    """Find new token embeddings that describe images (textual inversion, arXiv 2208.01618).

    Args:
        model: Frozen.
        start: The text before the new tokens.
        latents: The images, ``(n, c, h, w)``.
        steps: AdamW steps at learning rate 1e-3, batch 1; rows are pulled to the published norm, 0.4.
        seed: Seed of all draws.
        ctx: Gets the progress.
        pooler: See ``FMN.pooler``.
        tokens: Number of new tokens.

    Returns:
        The conditioning ``(1, tokens, width)``, and the mask ``(1, tokens)`` of new tokens and the
        pooler's.
    """
    import torch
    import torch.nn.functional as F

    rng, rate = torch.Generator().manual_seed(seed), 1e-3
    table = model.pipe.text_encoder.get_input_embeddings().weight.detach()
    words = table[torch.randint(len(table), (tokens,), generator=rng)].clone().requires_grad_(True)
    before = model.token_ids([start])[0]
    ids, first = framed(model.pipe.tokenizer, [*before, *[0] * tokens]), 1 + len(before)
    front, back = table[ids[:first]], table[ids[first + tokens :]]

    def loss() -> Tensor:
        i = int(torch.randint(len(latents), (1,), generator=rng))
        x0, t = latents[i : i + 1], torch.randint(1000, (1,), generator=rng).to(latents.device)
        noise = torch.randn(x0.shape, generator=rng).to(x0.device)
        cond = model.encode_embeddings(torch.cat([front, words, back])[None])
        return F.mse_loss(model.predict_noise(model.add_noise(x0, noise, t), t, cond), noise)

    def pull_to_norm() -> None:
        with torch.no_grad():
            norm = words.norm(dim=-1, keepdim=True)
            words.mul_((norm + min(1.0, 100 * rate) * (0.4 - norm)) / norm)

    optimizer = torch.optim.AdamW([words], lr=rate, weight_decay=0.1)
    fit(loss, optimizer, steps, ctx, stage="inversion", after_step=pull_to_norm)
    with torch.no_grad():
        cond = model.encode_embeddings(torch.cat([front, words, back])[None])
    where = pooled(model, ids, first + tokens, pooler)
    where[first : first + tokens] = True
    return cond, where[None]


@contextmanager
def attention_maps(model: Model, maps: dict[str, Tensor]) -> Iterator[None]:
    """Put the latest probabilities of each cross-attention into ``maps``, which is empty at the end.

    They are ``(batch * heads, pixels, tokens)``, by layer.
    """
    from diffusers.models.attention_processor import AttnProcessor

    layers = {n: m for n, m in model.pipe.unet.named_modules() if n.endswith("attn2")}
    before = {name: layer.processor for name, layer in layers.items()}

    def keep(name: str, scores: Any) -> Any:
        def recorded(*args: Any, **kwargs: Any) -> Tensor:
            maps[name] = scores(*args, **kwargs)
            return maps[name]

        return recorded

    for name, layer in layers.items():
        layer.set_processor(AttnProcessor())  # the one that computes probabilities
        layer.get_attention_scores = keep(name, layer.get_attention_scores)
    try:
        yield
    finally:
        maps.clear()
        for name, layer in layers.items():
            del layer.get_attention_scores
            layer.set_processor(before[name])


def attention_norm(maps: Sequence[Tensor], where: Tensor) -> Tensor:
    """Return the norm of the probabilities at chosen tokens, over all layers.

    Args:
        maps: Probabilities of each layer, ``(batch * heads, pixels, tokens)``.
        where: Mask of chosen tokens, ``(batch, tokens)``.
    """
    import torch

    squares = [
        (a.unflatten(0, (len(where), -1)).square() * where[:, None, None]).sum() for a in maps
    ]
    return torch.stack(squares).sum().sqrt()


def concept_positions(model: Model, text: str, term: str, pooler: Pooler) -> Tensor:
    """Return the mask ``(tokens,)`` of a text's tokens that belong to the term or to the pooler.

    Raises:
        PluginError: The text does not contain the term's tokens.
    """
    (ids, wanted) = model.token_ids([text, term])
    found = [i for i in range(len(ids) - len(wanted) + 1) if ids[i : i + len(wanted)] == wanted]
    if not found:
        raise PluginError(f"the tokens of {term!r} are not in {text!r}")
    where = pooled(model, framed(model.pipe.tokenizer, ids), 1 + len(ids), pooler)
    for start in found:
        where[1 + start : 1 + start + len(wanted)] = True
    return where


def pooled(model: Model, ids: Sequence[int], end: int, pooler: Pooler) -> Tensor:
    """Return the mask ``(tokens,)`` of what a pooler penalises; ``end`` is the first end token."""
    import torch

    chosen = {
        "official": torch.tensor(ids) == model.pipe.tokenizer.eos_token_id,
        "eos": torch.arange(len(ids)) == end,
        "none": torch.zeros(len(ids), dtype=torch.bool),
    }
    return chosen[pooler].to(model.device)
