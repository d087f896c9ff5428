"""Computes cells; the only package that calls plug-ins. One stage a module, put together in ``runner``."""

from bench.run.erase import Erased
from bench.run.runner import Runner
from bench.run.settings import Progress, Settings

__all__ = ["Erased", "Progress", "Runner", "Settings"]
