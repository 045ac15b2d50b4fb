"""Inspect a model: attention maps on a stretch of audio, and the share of attention on added noise or silence."""
