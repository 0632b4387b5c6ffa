"""Studies: simulations whose results the report shows."""
