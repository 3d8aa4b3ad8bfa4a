"""Training of any model that satisfies Trainable."""
