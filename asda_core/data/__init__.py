"""Audio for training: sources, tar shards and their index, streams, packing, statistics."""
