"""Parts of `asda_core.checkpoint`: storage and provenance of weights."""
