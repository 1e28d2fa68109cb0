"""Webhooks: events that are signed and sent to who asked for them."""
