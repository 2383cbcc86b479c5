"""Users of the method, not part of it: the emoji teacher and the two-dimensional toy."""
