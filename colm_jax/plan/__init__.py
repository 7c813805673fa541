"""`colm plan`: what a run would need on TPUs that are not there, by compiling its programs from shapes alone."""
