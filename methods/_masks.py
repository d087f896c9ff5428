"""Learning which weights to prune: soft masks on frozen weights, for any erasing objective.

Pruning for Robust Concept Erasing in Diffusion Models (arXiv 2405.16534), Eq. 6: the weights do not
change; a mask ``sigmoid(gamma * m)`` on each weight is trained, and weights whose mask ends below one
half are pruned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from bench import IncompatibleError, Model, ParameterGroup, fused


@dataclass(frozen=True, match_args=False)
class Settings(Protocol):
    """The parameters of the method that are read here; frozen, as they are there."""

    lr: float
    gamma: float
    threshold: float
    m0: float
    eps: float
    weight_decay: float


def prunable(model: Model, group: ParameterGroup) -> dict[str, Parameter]:
    """Return the weights and biases of Linear and Conv2d modules in a group; norms are never pruned.

    Here ``esd-u`` is everything outside cross-attention, as in the paper: it includes the time embedding
    and the output layer, which ESD does not train. (SD v1.4: 388 tensors, 815,358,084 values.)

    Raises:
        IncompatibleError: The group has no such module.
    """
    scope = set(model.parameters("full" if group == "esd-u" else group))
    if group == "esd-u":
        scope -= set(model.parameters("esd-x"))
    chosen = {
        f"{name}.{kind}": parameter
        for name, module in model.pipe.unet.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
        for kind, parameter in module.named_parameters(recurse=False)
        if f"{name}.{kind}" in scope
    }
    if not chosen:
        raise IncompatibleError(f"the model has no Linear or Conv2d module in group {group!r}")
    return chosen


class SoftMasks:
    """Masks on some of a model's parameters, trained by AdamW; used like an optimiser.

    During training the parameters hold ``w * sigmoid(gamma * m)``. Their gradient is turned into the mask's
    by ``dL/dm = dL/dw_eff * w * gamma * s * (1 - s)``, so no graph of sigmoids is kept.

    A step needs four float32 numbers per entry beside the model and its original: the logit, two moments,
    one gradient (the weight's becomes the logit's); where AdamW is not fused, on a CPU, two temporary
    values more. For SD v1.4 outside cross-attention that is 13.0 GB on a GPU.

    Args:
        parameters: What may be pruned, by name; edited in place. Their gradients must be on.
        settings: Slope, initial value and learning rate of the masks.
        frozen: The same weights of a model that does not change.
    """

    def __init__(
        self,
        parameters: Mapping[str, Parameter],
        settings: Settings,
        frozen: Mapping[str, Tensor],
    ) -> None:
        self.parameters, self.gamma = dict(parameters), settings.gamma
        self.threshold = settings.threshold
        self.weights = {name: frozen[name].detach() for name in self.parameters}
        self.logits = {
            name: torch.full_like(w, settings.m0, dtype=torch.promote_types(w.dtype, torch.float32))
            for name, w in self.weights.items()
        }
        self.optimizer = torch.optim.AdamW(
            self.logits.values(),
            settings.lr,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            **(fused(self.logits.values()) or {"foreach": True}),
        )
        self.apply()

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """AdamW's parameter groups, as an optimiser has them."""
        return self.optimizer.param_groups

    def zero_grad(self) -> None:
        """Drop gradients that no step took, of a batch that is taken again."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def apply(self) -> None:
        """Put the softly masked weights into the model."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(self.weights[name] * torch.sigmoid(self.gamma * self.logits[name]))

    def step(self) -> None:
        """Turn the parameters' gradients into one AdamW step of the logits."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                soft = torch.sigmoid(self.gamma * self.logits[name])
                slope = self.gamma * soft * (1 - soft)
                grad = torch.zeros_like(soft) if parameter.grad is None else parameter.grad
                self.logits[name].grad = grad * self.weights[name] * slope
                parameter.grad = None
        self.optimizer.step()
        self.optimizer.zero_grad()  # frees memory until the next step
        self.apply()

    def harden(self) -> dict[str, Any]:
        """Set pruned weights to zero and all others back to their values; return the record's notes."""
        pruned, bins = 0, torch.zeros(10, dtype=torch.long)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                soft = torch.sigmoid(self.gamma * self.logits[name])
                keep = soft >= self.threshold
                parameter.copy_(torch.where(keep, self.weights[name], 0))
                pruned += int((~keep).sum())
                bins += torch.histc(soft.cpu(), 10, 0, 1).long()
        in_scope = sum(w.numel() for w in self.weights.values())
        return {
            "pruned": pruned,
            "in_scope": in_scope,
            "share": pruned / in_scope,
            "mask_histogram": bins.tolist(),
        }


def prune_smallest(model: Model, share: float) -> dict[str, Tensor]:
    """Set the smallest weights of the denoiser to zero; all Linear and Conv2d weights are ranked together.

    Args:
        model: Edited in place.
        share: Share of the weights that is pruned; biases and norms do not change.

    Returns:
        Which entries are kept, by parameter name.
    """
    weights = {n: p for n, p in prunable(model, "full").items() if n.endswith(".weight")}
    sizes = torch.cat([p.detach().abs().flatten() for p in weights.values()])
    gone = torch.topk(sizes, round(share * len(sizes)), largest=False).indices
    flat = torch.ones_like(sizes, dtype=torch.bool)
    flat[gone] = False
    parts = flat.split([p.numel() for p in weights.values()])
    keep = {n: part.view(p.shape) for (n, p), part in zip(weights.items(), parts, strict=True)}
    with torch.no_grad():
        for name, parameter in weights.items():
            parameter.mul_(keep[name])
    return keep
