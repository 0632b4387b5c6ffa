"""Several pre-training runs from one file: which are due, how they are run and recorded, and what they say."""
