"""Inference with a trained model: encode whole clips, embed files, classify them."""
