"""Parameters of judges: every number has bounds, and what is beyond them is refused in words."""

from __future__ import annotations

from dataclasses import fields
from typing import get_type_hints

import pytest
from test_methods import numbers

from bench.errors import ParamError
from bench.registry import Ref, create, load, names

NUMERIC = [
    pytest.param(name, field.name, kind, bounds, id=f"{name}:{field.name}")
    for name in names("evaluators")
    for cls in [load("evaluators", name)]
    for field in fields(cls)
    for kind, bounds in numbers(get_type_hints(cls, include_extras=True)[field.name])
]


@pytest.mark.parametrize(("name", "field", "kind", "bounds"), NUMERIC)
def test_every_number_has_bounds_and_nothing_beyond_them_is_taken(
    name: str, field: str, kind: type, bounds: dict[str, float]
) -> None:
    assert {"ge", "gt"} & set(bounds), "give the field a lower bound"
    step = 1 if kind is int else 1e-6
    outside = {"gt": 0, "lt": 0, "ge": -step, "le": step}
    beyond: list[object] = [-1, -0.5, *(bound + outside[n] for n, bound in bounds.items())]
    beyond += ["nan", "inf", "-inf", "many", float("nan"), float("inf"), *([1.5] * (kind is int))]
    for value in beyond:
        for given in (value, str(value)):  # as a number, and as the command line has it
            with pytest.raises(ParamError, match=f"^{name}: {field}="):
                create("evaluators", Ref(name, {field: given}))


@pytest.mark.parametrize("name", names("evaluators"))
def test_defaults_are_within_bounds(name: str) -> None:
    judge = create("evaluators", Ref(name))
    assert (
        create("evaluators", Ref(name, {f.name: getattr(judge, f.name) for f in fields(judge)}))
        == judge
    )


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        ("nudenet:threshold=0.1", "greater than or equal to 0.25"),
        ("nudenet:threshold=nan", "threshold=nan"),
        ("nudenet:profile=unlearndifatk", "Did you mean 'unlearndiffatk'?"),
        ("nudenet:weights=nudenet-best.onnx", "Did you mean 'nudenet-best'?"),
        ("imagenet:top_k=0", "top_k=0: Input should be greater than or equal to 1"),
        ("imagenet:top_k=1001", "less than or equal to 1000"),
        ("emoji-body:threshold=1.5", "less than 1"),
        ("emoji-body:treshold=0.5", "no parameter treshold"),
        ("nudnet", "Did you mean 'nudenet'?"),
    ],
)  # fmt: skip
def test_a_plan_refuses_a_judge_out_of_range(cli, judge: str, message: str) -> None:
    said = cli("plan", "--method", "none", "--attack", "none", "--task", "church", "--judge", judge)
    assert said.code == 2, said.err
    assert said.err.startswith("error: ") and said.err.count("\n") == 1
    assert message in said.err
