"""Computes cells; alone calls plug-ins. One stage per module; ``runner`` puts them together."""
