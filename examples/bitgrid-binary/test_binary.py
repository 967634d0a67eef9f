"""Run by pytest in this folder, once the package is installed."""

from harness.testing import check


def test_binary_does_what_every_method_must() -> None:
    check("binary")
