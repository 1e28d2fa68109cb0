"""What every request body is made of."""

import msgspec


class Body(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A part of a request. An unknown field is an error: nothing is accepted and dropped."""
