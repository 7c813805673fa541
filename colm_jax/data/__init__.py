"""Text to batches: tokenizers, records of every input form, padded batches."""
