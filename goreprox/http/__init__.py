"""HTTP/1.1 at the edge: requests are understood, checked, and each one is given to a provider."""
