"""Formats, inits and the searches of ranges and scales."""
