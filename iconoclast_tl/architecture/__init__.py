"""Where things are in an architecture: layers, sites, hook points, writers, parts, norms."""
