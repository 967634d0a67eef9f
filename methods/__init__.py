"""Methods: from a full-precision model to a quantised one. A file a method; add yours here.

A file defines a `harness.method.Method`, or takes a point of `recipe.Recipe`, and registers it
under the name that grids use. What the points of the space are made of lies in two rooms: formats
in `quantization.formats`, inits in `quantization.inits` and `quantization.awq`, objectives in
`training.objectives`, sources of data in `training.data`. CONTRIBUTING.md says what each needs.
"""
