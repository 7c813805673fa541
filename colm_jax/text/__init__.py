"""Text and tokens: detokenisation, token by token, and stop strings."""
