"""Whether a step, or a resume, is what it should be: found by experiment."""
