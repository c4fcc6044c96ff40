"""Real tasks small enough to run anywhere: data, a network, and how to train and judge it."""
