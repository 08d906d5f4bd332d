"""The loop that samples, recognises a call, runs the tool and feeds the observation."""
