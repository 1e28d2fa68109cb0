"""What clients send and get, as Structs: decoding, encoding and the OpenAPI document all read them."""
