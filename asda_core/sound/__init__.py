"""Behind `asda_core.audio`: decoders, files of hours, and what follows the end of short clips."""
