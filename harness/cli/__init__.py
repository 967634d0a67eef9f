"""The `bitgrid` command: a file for each group of verbs."""

from harness.cli.main import main

__all__ = ["main"]
