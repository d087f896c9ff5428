"""Learning which weights to prune: soft masks on frozen weights, for any erasing objective.

Pruning for Robust Concept Erasing in Diffusion Models (arXiv 2405.16534), Eq. 6: weights stay at
their values, a mask ``sigmoid(gamma * m)`` on each of them is trained, entries below one half are
pruned at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from bench import IncompatibleError, Model, ParameterGroup


@dataclass(frozen=True, slots=True)
class MaskReport:
    """What a finished mask did."""

    pruned: int
    in_scope: int
    histogram: tuple[int, ...]

    def notes(self) -> dict[str, Any]:
        """Return what the record shows of it."""
        return {
            "pruned": self.pruned,
            "in_scope": self.in_scope,
            "share": self.pruned / self.in_scope,
            "mask_histogram": list(self.histogram),
        }


def prunable(model: Model, group: ParameterGroup) -> dict[str, Parameter]:
    """Return the weights and biases of Linear and Conv2d modules in a group; norms are never pruned.

    ``esd-u`` is all of them outside cross-attention here, as the paper has it: the time embedding and the
    output layer, which ESD does not train, are in its scope. (SD v1.4: 388 tensors, 815,358,084 values.)

    Raises:
        IncompatibleError: The denoiser has none.
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
    """Masks on some of a model's parameters, trained by AdamW.

    The parameters hold ``w * sigmoid(gamma * m)`` while training. Their gradient is turned into the
    mask's by hand, ``dL/dm = dL/dw_eff * w * gamma * s * (1 - s)``, so no graph of sigmoids is kept.

    Args:
        parameters: What may be pruned, by name; edited in place. Their gradients must be on.
        gamma: Slope of the sigmoid.
        m0: Initial value of every mask logit; 1 is close to the identity for gamma 10.
        lr: AdamW's learning rate on the logits.
        eps: AdamW's epsilon. It decides how many weights are pruned: a weight whose mask gradient
            stays far below it never reaches zero.
        weight_decay: AdamW's, on the logits.
    """

    def __init__(
        self,
        parameters: Mapping[str, Parameter],
        *,
        gamma: float,
        m0: float,
        lr: float,
        eps: float,
        weight_decay: float,
    ) -> None:
        self.parameters, self.gamma = dict(parameters), gamma
        self.weights = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.logits = {
            name: torch.full_like(w, m0, dtype=torch.float32) for name, w in self.weights.items()
        }
        self.optimizer = torch.optim.AdamW(
            self.logits.values(), lr, eps=eps, weight_decay=weight_decay, foreach=True
        )
        self.apply()

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The settings of AdamW, as an optimiser shows them."""
        return self.optimizer.param_groups

    def zero_grad(self) -> None:
        """Do nothing: a step leaves no gradients behind."""

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
                grad = torch.zeros_like(soft) if parameter.grad is None else parameter.grad.float()
                self.logits[name].grad = grad * self.weights[name] * slope
                parameter.grad = None
        self.optimizer.step()
        self.optimizer.zero_grad()  # frees the gradients until the next step
        self.apply()

    def harden(self, threshold: float = 0.5) -> MaskReport:
        """Set pruned weights to zero and all others back to their values."""
        pruned, bins = 0, torch.zeros(10, dtype=torch.long)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                soft = torch.sigmoid(self.gamma * self.logits[name])
                keep = soft >= threshold
                parameter.copy_(torch.where(keep, self.weights[name], 0))
                pruned += int((~keep).sum())
                bins += torch.histc(soft.cpu(), 10, 0, 1).long()
        in_scope = sum(w.numel() for w in self.weights.values())
        return MaskReport(pruned, in_scope, tuple(bins.tolist()))

    @property
    def peak_bytes(self) -> int:
        """Memory a step needs beside the model: seven float32 for each entry in scope.

        The frozen weight, the logit, two moments, one gradient (the weight's becomes the logit's), and two
        temporaries of AdamW. On SD 1.4's 815 358 084 entries outside cross-attention: 22.8 GB.
        """
        return 7 * 4 * sum(w.numel() for w in self.weights.values())


def prune_smallest(model: Model, share: float) -> dict[str, Tensor]:
    """Zero the smallest weights of the denoiser, all Linear and Conv2d weights ranked together.

    Args:
        model: Edited in place.
        share: Share of the weights that goes; biases and norms are left alone.

    Returns:
        Which entries were kept, by parameter name.
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
