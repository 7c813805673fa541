"""The pipeline: stages with manifests in one run directory, and the whole run of them."""
