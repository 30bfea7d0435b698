"""Non-smooth lower levels: the tables of the SPNBO text."""
