"""Symbolic proofs: each function returns residuals that are zero where the claim is true."""
