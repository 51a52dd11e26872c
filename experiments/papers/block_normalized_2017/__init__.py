"""Yu et al., "Block-Normalized Gradient Method", 2017."""
