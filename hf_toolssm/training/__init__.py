"""Training on tool trajectories: guards against silent mistakes, and state passing."""
