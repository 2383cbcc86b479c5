"""One file an architecture: what torch's exporter needs of it, besides its adapter."""
