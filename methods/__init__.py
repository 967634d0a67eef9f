"""Methods: from a full-precision model to a quantised one. A file a method; add yours here.

A file defines a `harness.method.Method`, or takes a point of `recipe.Recipe`, and registers it
under the name that grids use. `quantization` and `training` hold what the points of the space are
made of.
"""
