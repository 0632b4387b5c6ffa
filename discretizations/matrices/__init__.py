"""Kernels on batches of matrices: polar factors, subspaces, eigenbases and sharp masks, and C++ programs for CPUs."""
