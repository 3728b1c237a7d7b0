"""Who waits for whom, for how long, and what is said of it when nothing goes on."""
