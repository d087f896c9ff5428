"""Attention in float32 on a CPU, whatever the type of the weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode


class WideAttention(TorchFunctionMode):
    """While it is entered, attention casts queries, keys, values and mask to float32, and its result back.

    Torch's kernels for bfloat16 on a CPU are slow where a head is narrow: both passes together take 4 to 12
    times as long as in float32 (torch 2.14, heads of 16 and 32 numbers, no AMX).
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call one function of torch."""
        kwargs = kwargs or {}
        if func is not scaled_dot_product_attention:
            return func(*args, **kwargs)
        wide = {name: _float(value) for name, value in kwargs.items()}
        out: Tensor = func(*map(_float, args), **wide)
        return out.to(args[0].dtype)


def wide_attention(weight: Tensor) -> AbstractContextManager[Any]:
    """Return the context in which a network with such weights computes."""
    half = weight.dtype in (torch.bfloat16, torch.float16)
    return WideAttention() if half and weight.device.type == "cpu" else nullcontext()


def _float(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
