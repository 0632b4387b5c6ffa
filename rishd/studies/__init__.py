"""Studies: simulations whose data the report draws."""
