"""Which device is used, and what is said of it. No device but the CPU is needed."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from bench import double
from bench.cli.options import Request
from bench.core import devices
from bench.engine.runner import Runner
from bench.engine.settings import Settings
from bench.errors import SpecError
from bench.models import delta, load_model
from bench.models.diffusers import DTYPES
from bench.plan.asked import options
from bench.plan.plan import plan
from bench.plan.spec import Spec
from bench.plugins.registry import Ref
from bench.store.artifacts import Artifacts


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
    assert name != "nonsense" or "no such device. Known: auto, cpu, cuda, mps" in str(info.value)


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
    assert devices.facts("cuda") == expected | {"layout": "channels last"}
    assert devices.described("cuda:0") == "cuda:0 (NVIDIA H200, float32 products in TF32)"


def test_a_gpu_is_known_by_its_name_and_torch_waits_for_a_driver(monkeypatch) -> None:
    monkeypatch.setattr(devices, "_first", lambda: "cuda")
    assert [devices.is_gpu(name) for name in ("cuda", "cuda:1", "cpu", "mps")] == [True] * 2 + [
        False
    ] * 2
    monkeypatch.setattr(devices, "_DRIVERS", ("/", "/nowhere"))
    assert devices.is_gpu("auto")
    monkeypatch.setattr(devices, "_DRIVERS", ("/nowhere",))
    monkeypatch.setattr(devices, "_first", lambda: pytest.fail("torch was asked"))
    monkeypatch.setattr("sys.platform", "linux")
    assert not devices.is_gpu("auto")


@pytest.mark.parametrize(
    ("model", "device", "asked", "drawn"),
    [
        ("sd14", "cuda", "auto", "bf16"),
        ("sd14", "cuda:1", "fp32", "fp32"),
        ("sd14", "cpu", "auto", "fp32"),
        ("emoji-sd", "cuda", "auto", "fp32"),
        ("emoji-sd", "cuda", "fp16", "fp16"),
    ],
)
def test_photographs_are_drawn_in_half_precision_on_a_gpu(model, device, asked, drawn) -> None:
    request = Request(["uce"], None, ["church"], model, dtype=asked)
    (spec,) = request.specs(device=device)
    assert spec.dtype == drawn
    assert options(spec)[options(spec).index("--dtype") + 1] == drawn
    paper = replace(request, protocol="paper").specs(device=device)[0]
    assert paper.dtype == ("fp32" if asked == "auto" else asked)


def test_a_matrix_says_its_type_itself() -> None:
    """It is the same experiment on every machine."""
    specs = Request(suite=["paper-style"]).specs(device="cuda")
    assert {spec.dtype for spec in specs} == {"fp32"}
    stated = Request(suite=["paper-style"], dtype="bf16").specs(["dtype"], "cuda")
    assert {spec.dtype for spec in stated} == {"bf16"}


def test_convolutions_read_channels_last_on_a_gpu_and_nothing_else_changes(monkeypatch) -> None:
    plain = load_model("tiny-random")
    monkeypatch.setattr(devices, "_is_cuda", lambda device: True)
    model = load_model("tiny-random")
    weight = model.pipe.unet.conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert model.cast("bf16").pipe.vae.decoder.conv_in.weight.stride() == (
        model.pipe.vae.decoder.conv_in.weight.stride()
    )
    assert delta.diff(plain, model) == {}
    for share in (0.001, 0.3):  # a mask of places, and one of bits
        changes = []
        for base in (plain, model):
            erased = base.copy()
            rng = torch.Generator().manual_seed(0)
            for i, p in enumerate(erased.parameters("full").values()):
                gone = torch.rand(p.shape, generator=rng) < share
                p.data[gone] = 0.5 if i == 3 else 0
            change = delta.from_bytes(delta.to_bytes(delta.diff(base, erased)))
            again = delta.apply(base, change)
            assert delta.diff(erased, again) == {}
            assert delta.diff(delta.revert(again, change, base), base) == {}
            changes.append(change)
        assert delta.to_bytes(changes[0]) == delta.to_bytes(changes[1])


@pytest.mark.slow
def test_half_precision_moves_no_verdict(tmp_path) -> None:
    """The trained model's pictures of a concept, and of others that it is not asked for."""
    runner = Runner(Settings(artifacts=Artifacts(tmp_path)))
    for task in ("church", "garbage-truck"):
        rows = []
        for dtype in ("fp32", "bf16"):
            none = (Ref("none"),)
            (job,) = plan(Spec("emoji-sd", none, none, (task,), limit=4, dtype=dtype))
            record = runner.run(job)
            assert record.protocol["draw"].endswith(dtype)
            rows.append(record.rows)
        exact, coarse = rows
        assert [r.success for r in coarse] == [r.success for r in exact]
        assert [r.own for r in coarse] == pytest.approx([r.own for r in exact], abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_compiled_denoiser_draws_the_same_and_is_in_the_record(
    monkeypatch, few_steps, tmp_path, dtype
) -> None:
    """Compiled for real, but by the backend that needs no compiler; only what draws is compiled."""
    real, compiled = torch.nn.Module.compile, []

    def compile_(self) -> None:
        compiled.append(next(self.parameters()).dtype)
        real(self, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", compile_)
    methods, none = (Ref("uce"), Ref("none")), (Ref("none"),)
    jobs = plan(Spec("tiny-random", methods, none, ("church",), limit=3, dtype=dtype)).jobs
    runners = [
        Runner(Settings(artifacts=Artifacts(tmp_path / str(on)), compiled=on))
        for on in (False, True)
    ]
    for job in jobs:  # the second erasure copies a base that is compiled by then
        first, second = (runner.run(job) for runner in runners)
        assert second.environment["denoiser"] == "compiled"
        assert "denoiser" not in first.environment
        assert [r.own for r in second.rows] == [pytest.approx(r.own, abs=1e-3) for r in first.rows]
    assert compiled == [DTYPES[dtype]] * 3  # both erased models, and the original


def test_float64_moves_to_the_cpu_where_a_device_lacks_it() -> None:
    third = torch.tensor([1 / 3])
    assert double(third).dtype == torch.float64
    assert double(third.to("meta")).device.type == "meta"  # which has it
    elsewhere = SimpleNamespace(device=torch.device("mps"), cpu=lambda: third)
    assert torch.equal(double(elsewhere), third.double())  # type: ignore[arg-type]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="what keeps memory is glibc's")
def test_on_a_cpu_freed_memory_is_kept_for_the_next_buffer() -> None:
    """Twenty buffers of 8 MB, ten times: their pages come from the system once, not each time."""
    code = (
        "import bench, resource, sys, torch\n"
        "from bench.core import devices\n"
        "device = devices.use('cpu') if sys.argv[1] == 'kept' else 'cpu'\n"
        "def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "before = faults()\n"
        "for _ in range(10): [torch.full((2**21,), 1.0, device=device) for _ in range(20)]\n"
        "print(faults() - before)"
    )

    def said(how: str) -> int:
        small_pages = os.environ | {"THP_MEM_ALLOC_ENABLE": "0"}
        done = subprocess.run(
            [sys.executable, "-c", code, how], capture_output=True, env=small_pages, check=True
        )
        return int(done.stdout)

    pages = 20 * 2**23 // resource.getpagesize()
    assert said("kept") < 2 * pages < said("given back")
