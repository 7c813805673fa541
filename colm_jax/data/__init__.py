"""Text to batches: tokenizers, records of every input form, tokens on disk, padded and packed batches."""
