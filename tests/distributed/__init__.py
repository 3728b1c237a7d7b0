"""Real processes over gloo, started as a user starts them."""
