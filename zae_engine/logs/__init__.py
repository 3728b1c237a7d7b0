"""What a run writes down, and everything that reads it: loggers, pictures, reports. Knows no trainer and no torch."""
