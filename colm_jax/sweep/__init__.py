"""`colm sweep`: many runs that differ in a few settings; stages that they share are computed once."""
