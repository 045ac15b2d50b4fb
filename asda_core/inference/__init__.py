"""What is done with a trained model: encode whole clips, embed files, classify them."""
