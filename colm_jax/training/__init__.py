"""Training: the gate's first fit on weak labels, then gate (and base) by one of the objectives."""
