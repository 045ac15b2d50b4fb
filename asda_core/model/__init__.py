"""The model: patches, blocks, encoder. It knows nothing of plugins."""
