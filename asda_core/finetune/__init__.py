"""Classifiers on the encoder."""
