"""Text and tokens: the text that tokens stand for, read token by token, and the strings that end it."""
