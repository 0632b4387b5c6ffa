"""Loading of checkpoints: matches parameters by name, checks state, converts old versions."""
