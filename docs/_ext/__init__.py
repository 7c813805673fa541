"""The site's extensions of Sphinx; `commands` and `public` are read by tests too and need no Sphinx."""
