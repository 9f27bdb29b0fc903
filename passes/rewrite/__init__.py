"""Graph rewrites: the only modules that change a graph."""
