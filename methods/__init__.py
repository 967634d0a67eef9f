"""Everything that turns a full-precision model into a quantised one. One baseline a file."""
