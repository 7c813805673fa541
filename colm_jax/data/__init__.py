"""Data files to batches: records of every input format, tokenised texts on disk, padded and packed batches."""
