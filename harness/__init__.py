"""The engine of Bitgrid: stages, their store, grids, plans and runs. It never names a method."""

__version__ = "0.1.0"  # the one place: pyproject reads it from here
