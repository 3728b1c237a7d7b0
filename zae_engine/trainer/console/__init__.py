"""What a run shows: banner, bar and lines."""
