"""What every request passes: protocol, lifetime, admission, wire, errors, schemas."""
