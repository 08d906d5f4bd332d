"""What the models compute: the definition, the CPU's kernels and the GPU's, and compiled decode steps."""
