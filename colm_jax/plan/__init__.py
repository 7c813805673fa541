"""`colm plan`: memory and cost of a run on TPU topologies without hardware, by ahead-of-time compilation."""
