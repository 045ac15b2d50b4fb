"""The model: patches, blocks, encoder. It does not depend on plugins."""
