"""FMN: turn cross-attention away from the concept's tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from bench import Card, Concept, Context, Model, PluginError, Prompt, World, fill

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class FMN:
    """Forget-Me-Not (Zhang et al., Learning to Forget in Text-to-Image Diffusion Models).

    Minimises the norm, neither squared nor averaged, of all cross-attention probabilities that fall on
    the concept's tokens, over layers, heads and pixels. The images are the original model's. Weak on
    nudity and on tokens that were not trained, in the papers that compare it as well. One term is drawn
    a step if a concept has several. The published code inverts the concept into new tokens first
    ("use_ti"); here, as in other papers' runs of it, the concept's own tokens are used.

    Args:
        params: "unet" tunes all of the denoiser, norms included; "attn2" its cross-attention.
        steps: Optimiser steps.
        lr: Learning rate of AdamW.
        images: Images of the concept.
        pooler: What is penalised besides the concept: "eos" the first end token, "official-sd14" every
            end token (SD 1.x pads with it, so nearly all positions), "none".
        weight_decay: AdamW's.
    """

    card: ClassVar = Card(
        "Forget-Me-Not: Learning to Forget in Text-to-Image Diffusion Models",
        "https://arxiv.org/abs/2303.17591",
        "https://github.com/SHI-Labs/Forget-Me-Not",
    )

    params: Literal["unet", "attn2"] = "unet"
    steps: int | None = None
    lr: float | None = None
    images: int = 8
    pooler: Literal["eos", "official-sd14", "none"] = "eos"
    weight_decay: float = 0.01

    def resolve(self, concept: Concept, world: World) -> Self:
        """Return the method with steps and learning rate filled in."""
        return fill(self, steps=35, lr=2e-6 if world == "photo" else 1e-4)

    def erase(self, model: Model, concept: Concept, ctx: Context) -> Model:
        """Minimise the attention that the concept's tokens get."""
        import torch

        full: Any = self.resolve(concept, model.world)
        terms = concept.terms or (concept.name,)
        form = "a photo in the style of {}" if concept.kind == "style" else "a photo of {}"
        texts = [form.format(term.replace("-", " ")) for term in terms]
        cond = model.encode(texts)
        where = torch.stack(
            [
                concept_positions(model, text, term.replace("-", " "), self.pooler)
                for text, term in zip(texts, terms, strict=True)
            ]
        )
        seed = ctx.seed("fmn")
        prompts = [
            Prompt(str(i), texts[i % len(texts)], seed + i)
            for i in range(max(self.images, len(texts)))
        ]
        latents = model.encode_images(model.generate(prompts))
        params = [
            p
            for name, p in model.pipe.unet.named_parameters()
            if self.params == "unet" or "attn2" in name
        ]
        for p in params:
            p.requires_grad_(True)
        optimizer = torch.optim.AdamW(params, lr=full.lr, weight_decay=full.weight_decay)
        rng = torch.Generator().manual_seed(seed)
        for step in range(full.steps):
            i = int(torch.randint(len(prompts), (1,), generator=rng))
            x0, row = latents[i : i + 1], i % len(texts)
            noise = torch.randn(x0.shape, generator=rng).to(x0.device)
            t = torch.randint(1000, (1,), generator=rng).to(x0.device)
            alpha = model.alphas[t].view(-1, 1, 1, 1)
            with attention_maps(model) as maps:
                model.predict_noise(
                    alpha.sqrt() * x0 + (1 - alpha).sqrt() * noise, t, cond[row : row + 1]
                )
            loss = attention_norm(maps, where[row : row + 1])
            if not torch.isfinite(loss):
                raise PluginError(f"the loss is {loss.item()} at step {step}: lower lr ({full.lr})")
            optimizer.zero_grad()
            loss.backward()
            if self.params == "attn2":  # the published code clips in this mode only
                torch.nn.utils.clip_grad_norm_(params, 1.0)
            optimizer.step()
            ctx.progress("erase", step + 1, full.steps)
        for p in params:
            p.requires_grad_(False)
        return model


@contextmanager
def attention_maps(model: Model) -> Iterator[list[Tensor]]:
    """Collect every cross-attention's probabilities, ``(batch * heads, pixels, tokens)``."""
    from diffusers.models.attention_processor import AttnProcessor

    maps: list[Tensor] = []
    layers = [m for name, m in model.pipe.unet.named_modules() if name.endswith("attn2")]
    before = [layer.processor for layer in layers]

    def keep(scores: Any) -> Any:
        def recorded(*args: Any, **kwargs: Any) -> Tensor:
            maps.append(scores(*args, **kwargs))
            return maps[-1]

        return recorded

    for layer in layers:
        layer.set_processor(AttnProcessor())  # the one that computes probabilities
        layer.get_attention_scores = keep(layer.get_attention_scores)
    try:
        yield maps
    finally:
        for layer, processor in zip(layers, before, strict=True):
            del layer.get_attention_scores
            layer.set_processor(processor)


def attention_norm(maps: Sequence[Tensor], where: Tensor) -> Tensor:
    """Return the joint norm of the probabilities at chosen tokens.

    Args:
        maps: Per layer ``(batch * heads, pixels, tokens)``.
        where: Chosen tokens, ``(batch, tokens)``.
    """
    import torch

    squares = [
        (a.unflatten(0, (len(where), -1)).square() * where[:, None, None]).sum() for a in maps
    ]
    return torch.stack(squares).sum().sqrt()


def concept_positions(model: Model, text: str, term: str, pooler: str) -> Tensor:
    """Return which of the text's token positions hold the term, ``(tokens,)``; see ``FMN.pooler``.

    Raises:
        PluginError: The term's tokens are not in the text's.
    """
    import torch

    (ids, wanted) = model.token_ids([text, term])
    found = [i for i in range(len(ids) - len(wanted) + 1) if ids[i : i + len(wanted)] == wanted]
    if not found:
        raise PluginError(f"the tokens of {term!r} are not in {text!r}")
    where = torch.zeros(
        model.pipe.tokenizer.model_max_length, dtype=torch.bool, device=model.device
    )
    for start in found:
        where[1 + start : 1 + start + len(wanted)] = True
    end = 1 + len(ids)
    if pooler == "eos":
        where[end] = True
    elif pooler == "official-sd14":
        where[end:] = True
    return where
