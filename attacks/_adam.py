"""Adam's step for many variables at once, each with its own moments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import InitVar, dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@dataclass
class Adam:
    """Adam's state for one variable, as in ``torch.optim.Adam``, or ``AdamW`` if ``decoupled``."""

    variable: InitVar[Tensor]
    lr: float
    weight_decay: float
    decoupled: bool = False
    step: int = 0

    def __post_init__(self, variable: Tensor) -> None:
        self.m = self.v = torch.zeros_like(variable)


def adam_step(adams: Sequence[Adam], variables: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
    """Return the variables after one Adam step each.

    Args:
        adams: The state of each variable; it is updated. Learning rate and weight decay must be equal.
        variables: ``(tokens, width)`` each; the number of tokens may differ.
        grad: ``(variables, most tokens, width)``; rows after a variable's own tokens are not read.
    """
    own = adams[0]
    x, m, v = (
        pad_sequence(list(rows), batch_first=True)
        for rows in (variables, [a.m for a in adams], [a.v for a in adams])
    )
    if own.decoupled:
        x = x * (1 - own.lr * own.weight_decay)
    else:
        grad = grad + own.weight_decay * x
    m = 0.9 * m + 0.1 * grad
    v = 0.999 * v + 0.001 * grad * grad
    for i, (adam, variable) in enumerate(zip(adams, variables, strict=True)):
        adam.step += 1
        adam.m, adam.v = m[i, : len(variable)], v[i, : len(variable)]
    m_share, v_share = (
        torch.tensor([1 - beta**a.step for a in adams])
        .to(x.device, non_blocking=True)
        .view(-1, 1, 1)
        for beta in (0.9, 0.999)
    )
    x = x - own.lr * (m / m_share) / ((v / v_share).sqrt() + 1e-8)
    return [row[: len(old)] for row, old in zip(x, variables, strict=True)]
