"""The same server on a cluster: Ray Serve keeps the gateway and as many engines as are needed."""
