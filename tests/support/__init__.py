"""What tests and benchmarks both need: a SLURM, a fake hub, a mirror, toy stages, grids."""
