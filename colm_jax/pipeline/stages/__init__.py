"""What each stage of a run reads, what decides its result, and its work. `pipeline.graph` puts them in order."""
