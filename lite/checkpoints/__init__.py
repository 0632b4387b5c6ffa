"""Loading of checkpoints: parameters matched by name, state checked, old versions converted."""
