"""How a step runs: batches of tensors, kernels, compilation, and gradients that are not finite."""
