"""Real shapes with random weights on a GPU."""
