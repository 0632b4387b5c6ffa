"""Kernels on batches of matrices: polar factors, subspaces, eigenbases and sharp masks, and their CPU programs."""
