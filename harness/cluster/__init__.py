"""The same plan on SLURM; the only room that imports submitit."""
