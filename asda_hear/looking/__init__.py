"""Inspect a model: attention maps on an excerpt of audio, and the share of attention on added noise or silence."""
