"""Rankings of a whole pool, which people use in place of online selection. One file a ranking."""
