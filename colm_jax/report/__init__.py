"""The report: what a run found, as HTML, Markdown, pictures and in the terminal. Plain data in, no models."""
