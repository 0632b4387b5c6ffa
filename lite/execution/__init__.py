"""Execution of steps: batches of tensors, kernels, compilation, and non-finite gradients."""
