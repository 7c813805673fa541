"""The report of a run as HTML, Markdown, images and terminal output. Its input is plain data, not models."""
