"""Computes cells; the only package that calls plug-ins. One stage a module, put together in ``runner``."""

from bench.engine.erase import Erased
from bench.engine.folder import Matched, judge_images, plan_folder
from bench.engine.runner import Runner
from bench.engine.settings import Progress, Settings

__all__ = [
    "Erased",
    "Matched",
    "Progress",
    "Runner",
    "Settings",
    "judge_images",
    "plan_folder",
]
