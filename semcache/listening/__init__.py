"""The proxy's own HTTP server: from a connection's first byte to a request, and from a response to its last byte."""
