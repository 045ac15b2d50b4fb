"""Parts of `asda_core.checkpoint`: paths, storage and provenance of weights, and runs that start from them."""
