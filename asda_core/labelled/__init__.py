"""Labelled audio: examples, readers of common formats, splits and folds."""
