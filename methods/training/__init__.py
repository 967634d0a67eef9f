"""Objectives, data, the training loop and what it shares over processes."""
