"""Which device is used, and what is said of it. No device but the CPU is needed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from bench import double
from bench.core import devices
from bench.errors import SpecError


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_auto_is_the_first_device_that_is_there(monkeypatch, cuda, mps, expected) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    zeros = torch.zeros
    tried = []
    monkeypatch.setattr(torch, "zeros", lambda n, device: (tried.append(device), zeros(n))[1])
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda _: None)
    assert devices.use("auto") == expected == tried[0]


@pytest.mark.parametrize("name", ["meta", "nonsense", "cuda:99"])
def test_a_device_that_cannot_be_used_is_one_line(name: str) -> None:
    with pytest.raises(
        SpecError, match=rf"--device {name} cannot be used: .*try --device cpu"
    ) as info:
        devices.use(name)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(("override", "precision"), [(None, "high"), ("0", "highest")])
def test_a_gpu_multiplies_in_tf32_unless_the_user_says_no(monkeypatch, override, precision) -> None:
    zeros, found = torch.zeros, []
    monkeypatch.setattr(torch, "zeros", lambda n, device: zeros(n))
    monkeypatch.setattr(torch, "set_float32_matmul_precision", found.append)
    if override:
        monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", override)
    assert devices.use("cuda:1") == "cuda:1"
    assert found == [precision]


def test_the_cpu_keeps_its_precision_and_has_no_peak() -> None:
    before = torch.get_float32_matmul_precision()
    assert devices.use("cpu") == "cpu"
    assert torch.get_float32_matmul_precision() == before
    assert devices.facts("cpu") == {"device": "cpu"}
    assert devices.peak_bytes("cpu") is None
    devices.restart_peak("cpu")


def test_a_record_says_what_a_gpu_did(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 3 * 2**30)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    expected = {"device": "NVIDIA H200", "matmul": "TF32", "peak_device_memory_mb": "3072"}
    assert devices.facts("cuda") == expected
    assert devices.described("cuda:0") == "cuda:0 (NVIDIA H200, float32 products in TF32)"


def test_float64_moves_to_the_cpu_where_a_device_lacks_it() -> None:
    third = torch.tensor([1 / 3])
    assert double(third).dtype == torch.float64
    assert double(third.to("meta")).device.type == "meta"  # which has it
    elsewhere = SimpleNamespace(device=torch.device("mps"), cpu=lambda: third)
    assert torch.equal(double(elsewhere), third.double())  # type: ignore[arg-type]
