"""Texts by name, data sets of the hub or of a mirror folder, and token blocks made of them."""
