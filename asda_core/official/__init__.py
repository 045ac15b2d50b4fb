"""Checkpoints of the released codes, read without fairseq and without running anything in them."""
