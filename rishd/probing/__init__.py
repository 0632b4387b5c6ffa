"""Curvature of trained models: Hessian blocks, what updates and masks see of them (C14), what C9 allows (C9)."""
