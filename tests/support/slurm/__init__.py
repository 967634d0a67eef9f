"""A real SLURM on this host, and a folder with a grid in which a user gives commands."""
