"""What a run writes down: run.json, history.jsonl, and what reads these while it goes on."""
