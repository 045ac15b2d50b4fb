"""Audio for training: where it lies, tar shards and their index, streams, packing, statistics."""
