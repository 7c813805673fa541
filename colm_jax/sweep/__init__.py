"""`colm sweep`: many runs that differ in a few settings; what they have in common is computed once."""
