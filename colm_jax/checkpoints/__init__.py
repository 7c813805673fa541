"""Weights on disk: Hugging Face directories both ways, team directories, training checkpoints."""
