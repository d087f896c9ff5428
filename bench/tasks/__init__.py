"""Prompt files, who is never drawn, tasks."""
