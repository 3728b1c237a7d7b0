"""One call of run: what is due between steps and epochs, validation, and its end."""
