"""What the ranks of a program do together: collectives, one that acts for all, waiting, stopping, ending."""
