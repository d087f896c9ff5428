"""Computes cells; the only package that calls plug-ins. One stage a module, put together in ``runner``."""

from bench.run.erase import Erased
from bench.run.folder import Matched, judge_images, plan_folder
from bench.run.runner import Runner
from bench.run.settings import Progress, Settings

__all__ = [
    "Erased",
    "Matched",
    "Progress",
    "Runner",
    "Settings",
    "judge_images",
    "plan_folder",
]
