"""Attention of weights in half precision on a CPU."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from bench.models.attention import wide_attention


class Types(TorchDispatchMode):
    """Counts attention's operations by the type of the first tensor, those of backward passes, too."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[torch.dtype] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "scaled_dot_product" in func.overloadpacket.__name__:
            self.seen[args[0].dtype] += 1
        return func(*args, **(kwargs or {}))


def formula(q: Any, k: Any, v: Any, mask: Any = None, *, causal: bool = False) -> torch.Tensor:
    """Attention in float64, one query after the other."""
    out = torch.empty(*q.shape[:-1], v.shape[-1], dtype=torch.float64)
    for *where, row in torch.cartesian_prod(*map(torch.arange, q.shape[:-1])).tolist():
        b, h = where
        scores = k[b, h].double() @ q[b, h, row].double() / math.sqrt(q.shape[-1])
        if mask is not None:
            scores = scores + mask[row].double()
        if causal:
            scores[row + 1 :] = -math.inf
        out[b, h, row] = scores.softmax(0) @ v[b, h].double()
    return out


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("of", ["plain", "mask", "causal"])
def test_attention_of_halves_is_the_formula_rounded_once(dtype: torch.dtype, of: str) -> None:
    draw = torch.Generator().manual_seed(3)
    q, k, v = (3 * torch.randn(2, 3, 7, 16, generator=draw).to(dtype) for _ in range(3))
    mask = torch.randn(7, 7, generator=draw).to(dtype) if of == "mask" else None
    with wide_attention(q):
        got = scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=of == "causal")
    wanted = formula(q, k, v, mask, causal=of == "causal")
    assert got.dtype == dtype
    assert torch.allclose(got.double(), wanted, rtol=torch.finfo(dtype).eps / 2 + 1e-5, atol=1e-5)


@pytest.mark.parametrize(("dtype", "half"), [("bf16", True), ("fp16", True), ("fp32", False)])
def test_a_model_attends_in_float32_forwards_and_backwards(tiny, dtype: str, half: bool) -> None:
    model = tiny.cast(dtype)
    assert (model.dtype != torch.float32) is half
    leaf = torch.randn(2, model.pipe.tokenizer.model_max_length, 32, requires_grad=True)
    with Types() as types:
        cond = model.encode_embeddings(leaf.to(model.dtype))
        out = model.predict(model.initial_noise([1, 2]), torch.tensor([5, 600]), cond)
        (grad,) = torch.autograd.grad(out.square().mean(), leaf)
        model.encode(["a church"])
    assert set(types.seen) == {torch.float32}
    assert types.seen[torch.float32] > 4
    assert grad.abs().max() > 0
