"""How fast the kernels are, beside what else does the same work: cases, peers, one timer, rows of results."""
