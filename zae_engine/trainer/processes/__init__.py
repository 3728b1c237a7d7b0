"""Who trains: a device, the processes, what they tell each other, and when all of them stop."""
