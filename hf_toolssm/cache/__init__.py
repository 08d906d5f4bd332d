"""What a model remembers, as a value: recurrent states, the cache of any other model, and rows of either."""
