"""What a trajectory is, how it is recorded, and how it becomes tokens."""
