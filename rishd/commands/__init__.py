"""The commands of ``rishd``, one module per subject; :mod:`rishd.cli` registers them."""
