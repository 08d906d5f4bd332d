"""What several tasks share, and the Turing machines, which are tasks by their tables."""
