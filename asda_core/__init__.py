"""Self-supervised audio spectrogram models: the model, its plugins and its training."""

__version__ = "0.1.0"
