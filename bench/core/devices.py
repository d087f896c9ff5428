"""Devices: which one is used, what it has, and what it lacks."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.core.errors import SpecError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

AUTO = "auto"
"""Stands for the first of cuda, mps and cpu that this machine has."""
_NAMES = (AUTO, "cpu", "cuda", "mps")
_LITTLE = 30 * 2**30
_DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # on Linux; the second is Windows' for Linux
_WITHOUT_FLOAT64 = {"mps"}


def use(name: str) -> str:
    """Return the device that a name stands for, ready: on cuda, float32 products are in TF32.

    ``NVIDIA_TF32_OVERRIDE=0`` in the environment keeps them in float32.

    Raises:
        SpecError: The device is not there, or holds no data.
    """
    import torch

    device = _first() if name == AUTO else name
    try:
        torch.zeros(1, device=device).tolist()  # "meta" holds no data
    except (RuntimeError, AssertionError) as exc:
        reason = str(exc).splitlines()[0]
        if reason.startswith("Expected one of"):  # and then all that torch has a word for
            reason = (
                f"no such device.{did_you_mean(name, _NAMES)} Known: {', '.join(_NAMES)}, cuda:1"
            )
        raise SpecError(f"--device {name} cannot be used: {reason}; try --device cpu") from exc
    if _is_cuda(device):
        torch.set_float32_matmul_precision("high" if _tf32() else "highest")
    if device == "cpu":
        keep_memory()
    return device


def keep_memory() -> bool:
    """Let the process keep the memory that it frees, and say whether it does (glibc).

    By default each large buffer comes from the system and goes back to it, so that every layer's output is
    zeroed by the kernel, page by page, which takes longer than some layers.
    """
    import ctypes
    import platform

    if platform.libc_ver()[0] != "glibc":
        return False
    mmap_threshold, trim_threshold, top_pad = -3, -1, -2  # malloc.h; the first at most 32 MB
    libc = ctypes.CDLL(None)
    wanted = ((mmap_threshold, 2**25), (trim_threshold, 2**31 - 1), (top_pad, 2**26))
    return min(libc.mallopt(*option) for option in wanted) == 1


def is_gpu(name: str) -> bool:
    """Say whether a device's name stands for a GPU that computes fast in half precision.

    Torch is not loaded where no driver is.
    """
    if name != AUTO:
        return _is_cuda(name)
    driver = sys.platform != "linux" or any(Path(node).exists() for node in _DRIVERS)
    return driver and _is_cuda(_first())


def laid_out(module: Any, device: str) -> None:
    """Put the weights of a module's convolutions in the order in which a device reads them fastest."""
    if _is_cuda(device):
        import torch

        module.to(memory_format=torch.channels_last)


def _first() -> str:
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _is_cuda(device: str) -> bool:
    return device.partition(":")[0] == "cuda"


def _tf32() -> bool:
    return os.environ.get("NVIDIA_TF32_OVERRIDE") != "0"


def facts(device: str) -> dict[str, str]:
    """Return what a record says of a device: its name, how it multiplies, and its memory at its fullest."""
    if not _is_cuda(device):
        return {"device": device}
    import torch

    return {
        "device": torch.cuda.get_device_name(device),
        "matmul": "TF32" if torch.get_float32_matmul_precision() == "high" else "fp32",
        "layout": "channels last",
        "peak_device_memory_mb": str((peak_bytes(device) or 0) // 2**20),
    }


def described(device: str) -> str:
    """Return a device in words, for the first line of a run."""
    known = facts(device)
    if not _is_cuda(device):
        return device
    return f"{device} ({known['device']}, float32 products in {known['matmul']})"


def wait(device: str) -> None:
    """Wait until a device has done all that it was given; a CPU has."""
    if _is_cuda(device):
        import torch

        torch.cuda.synchronize(device)


def peak_bytes(device: str) -> int | None:
    """Return the most memory that tensors took since :func:`restart_peak`; ``None`` if nobody counts it."""
    if not _is_cuda(device):
        return None
    import torch

    return torch.cuda.max_memory_allocated(device)


def free_bytes(device: str) -> int | None:
    """Return how much more memory tensors may take; ``None`` if nobody says."""
    if not _is_cuda(device):
        return None
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def is_short(device: str) -> bool:
    """Say whether a GPU has so little free memory that passes with gradients should keep little."""
    free = free_bytes(device)
    return free is not None and free < _LITTLE


def restart_peak(device: str) -> None:
    """Count the peak of memory from now on."""
    if _is_cuda(device):
        import torch

        torch.cuda.reset_peak_memory_stats(device)


def double(x: Tensor) -> Tensor:
    """Return a tensor in float64, on the CPU where its own device has no float64 (mps)."""
    return (x.cpu() if x.device.type in _WITHOUT_FLOAT64 else x).double()
