"""The engine of Bitgrid: stages, their store, grids, plans and runs. It never names a method."""
