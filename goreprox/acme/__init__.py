"""Certificates by ACME (RFC 8555): what is kept of them, when to ask for which, and who asks."""
