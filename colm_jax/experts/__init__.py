"""Experts that read and write spans: guests, with a tokenizer of their own, and remote ones, behind an API."""
