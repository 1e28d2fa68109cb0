"""Splits a server-sent event stream into the payloads of its events, however the bytes were cut."""

from upstream.errors import BadReply

EVENT_LIMIT = 16 * 1024 * 1024


class Events:
    """Incremental splitter of one stream; the work is linear in the bytes fed."""

    __slots__ = ("_buffer", "_data", "_limit", "_scanned", "_size")

    def __init__(self, limit: int = EVENT_LIMIT) -> None:
        """`limit` bounds one event, in bytes."""
        self._buffer = bytearray()  # the unfinished line
        self._scanned = 0  # how much of it holds no line end
        self._data: list[bytes] = []  # the `data:` lines of the unfinished event
        self._size = 0  # and their bytes
        self._limit = limit

    @property
    def partial(self) -> bool:
        """Whether an event has begun that is not complete: at a stream's end, a sign of a cut."""
        return bool(self._data or self._buffer)

    def feed(self, data: bytes) -> list[bytes]:
        """The `data:` payloads completed by these bytes; the data lines of one event are joined by a newline.

        Comments and other fields are skipped. Raises BadReply for an event over the limit.
        """
        if not self._buffer and not self._data and data.startswith(b"data: ") and data.endswith(b"\n\n"):
            # Triton's own form, whole events of one line: the count of newlines proves that nothing else is there.
            events = data[6:-2].split(b"\n\ndata: ")
            if data.count(b"\n") == 2 * len(events) and b"\r" not in data:
                return events
        return self._lines(data)

    def _lines(self, data: bytes) -> list[bytes]:
        events: list[bytes] = []
        buffer = self._buffer
        buffer += data
        start = 0
        while (end := buffer.find(b"\n", self._scanned)) >= 0:
            line = bytes(buffer[start : end - 1 if buffer[end - 1 : end] == b"\r" else end])
            start = self._scanned = end + 1
            if line.startswith(b"data:"):
                self._data.append(line[6:] if line.startswith(b"data: ") else line[5:])
                self._size += len(line)
            elif not line and self._data:
                events.append(b"\n".join(self._data))
                self._data, self._size = [], 0
            if self._size > self._limit:
                break
        del buffer[:start]
        self._scanned = len(buffer)
        if self._size + len(buffer) > self._limit:
            raise BadReply(f"an event of more than {self._limit} bytes")
        return events
