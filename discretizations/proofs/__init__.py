"""Symbolic proofs; each function returns residuals that vanish if the claim is true."""
