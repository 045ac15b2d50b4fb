"""Parts of `asda_core.audio`: decoders, hours-long files, and the padding of short clips."""
