"""The exceptions of the harness, for scripts; they live in :mod:`bench.core.errors`."""

from bench.core.errors import *  # noqa: F403
