"""What HTTP sees: a file per URL segment of the API, the door that every request passes, and what the operator uses."""
