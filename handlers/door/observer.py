"""Who is told of each request: the door asks for no more than this, and is told by whom when it is built."""

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from config import Config
    from handlers.door.errors import ApiError
    from handlers.door.lifetime import Request


class Observer(Protocol):
    """Who is told of each request."""

    def learn(self, config: "Config") -> None:
        """The models of new settings."""

    def began(self, request: "Request") -> None:
        """Its head is here."""

    def ended(self, request: "Request") -> None:
        """Its answer is out, or nobody is there any more; what it took has been given back."""

    def refused(self, id: str, error: ApiError, sent: int) -> None:
        """A head was refused, with so many bytes of an answer's body: no request began."""
