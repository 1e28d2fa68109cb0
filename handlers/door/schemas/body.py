"""What every request body is made of."""

import msgspec


class Body(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A part of a request. An unknown field is an error: nothing is accepted and dropped."""


class FormBody(Body):
    """A body that comes as multipart/form-data: files, and fields whose text is read as what they should be."""
