"""What a run goes on from: its position, its whole state, and the checkpoints of its folder."""
