"""HTTP/1.1 at the edge: requests are parsed and checked, and each goes to a provider."""
