"""The embedded testbed: an invented world, its corpus, tasks and reference model."""
