"""Plug-ins by name, and whether they are as they were released."""
