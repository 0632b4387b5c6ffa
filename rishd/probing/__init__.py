"""Curvature of trained models: Hessian blocks, updates and masks in them (C14), and the steps that C9 allows."""
