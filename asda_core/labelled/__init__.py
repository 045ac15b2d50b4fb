"""Labelled audio: examples, readers of the formats that people have, splits and folds."""
