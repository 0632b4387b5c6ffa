"""Comparisons of pre-training runs from one file: which runs are due, running and recording them, statistics."""
