"""What tests and benchmarks both need: a fake hub, a mirror, toy stages, synthetic grids."""
