"""What was seen: values, means, metrics, history, the best weights, and where the time went."""
