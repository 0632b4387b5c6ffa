"""A module that fails when it is imported, for ``optimizer.name``."""

raise RuntimeError("nothing\nto see")
