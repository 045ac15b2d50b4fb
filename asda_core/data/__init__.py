"""Audio for training: batches of clips, streams of shards, packing, statistics."""
