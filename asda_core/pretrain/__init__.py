"""Self-supervised training: masking, teacher, decoder, objective, data, loop."""
