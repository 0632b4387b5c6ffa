"""Parameter groups: which rule each parameter runs, its settings, and the matrices that it is viewed as."""
