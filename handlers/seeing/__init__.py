"""What an operator sees of requests: metrics, the access log, and traces."""
