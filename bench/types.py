"""The values that plug-ins and scripts share; they live in :mod:`bench.core.types`."""

from bench.core.types import *  # noqa: F403
