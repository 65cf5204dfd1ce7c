"""Work of all ranks together: collectives, one rank that acts for all, once per node, stopping, ending."""
