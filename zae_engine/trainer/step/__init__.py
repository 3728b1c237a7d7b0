"""One optimizer step: what is prepared for it, forward, backward, update, and the shards."""
