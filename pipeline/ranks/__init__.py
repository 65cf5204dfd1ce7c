"""Work that ranks share: collectives, one rank that acts for all, waiting, stopping, ending."""
