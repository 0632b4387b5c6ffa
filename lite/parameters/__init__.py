"""Parameter groups: each parameter's rule, settings and matrix views."""
