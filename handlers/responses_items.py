"""A conversation in the items of Responses, as the messages of chat, and as it is stored."""

import re
import secrets

from msgspec.structs import replace

from handlers.door import stored
from handlers.door.errors import ApiError, InvalidRequest, NotFound
from handlers.door.ids import fresh
from handlers.door.lifetime import Request
from handlers.door.schemas import chat
from handlers.door.schemas.responses import (
    FunctionCall,
    FunctionCallOutput,
    InputImage,
    InputPart,
    InputText,
    Item,
    ItemReference,
    Message,
    MessagePart,
    OutputText,
    Reasoning,
    Refusal,
    ResponseRequest,
)

# What chat calls a field that Responses calls otherwise.
NAMES = {
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "reasoning_effort": "reasoning.effort",
    "response_format": "text.format",
    "json_schema": "text.format",
    "logprobs": "include",
    "messages": "input",
}
_PLACE = re.compile(r"\bmessages\[(\d+)\]")
_QUOTED = re.compile(r"'(\w+)'")


class Conversation:
    """Messages as chat takes them, and for each the place that it came from, for errors."""

    def __init__(self) -> None:
        self.messages: list[chat.Message] = []
        self._places: list[str] = []
        self._calls: set[str] = set()
        self._thought = ""

    def instruct(self, instructions: str) -> None:
        """What the model is told before anything else."""
        self._say(chat.SystemMessage(instructions), "instructions")

    def add(self, items: list[Item], place: str | None = None) -> None:
        """Items in their order; without a `place` that of each is its index. Raises 400 for what no message can say."""
        for index, item in enumerate(items):
            self._add(item, place or f"input[{index}]")

    def renamed(self, error: ApiError, formatted_by: str) -> ApiError:
        """An error about a chat request, in the names of Responses; `formatted_by` is the field that set the format."""
        if error.code == "unknown_parameter":  # it is in the client's own words
            return error
        names = {**NAMES, "response_format": formatted_by, "json_schema": formatted_by}
        param = error.param
        if param is not None:
            error.param = _PLACE.sub(self._place, names.get(param, param))
        quoted = _QUOTED.sub(lambda found: f"'{names.get(found[1], found[1])}'", error.message)
        error.message = _PLACE.sub(self._place, quoted)
        return error

    def _place(self, found: re.Match[str]) -> str:
        return self._places[int(found[1])]

    def _add(self, item: Item, place: str) -> None:
        if isinstance(item, Message):
            self._say(self._message(item, place), place)
        elif isinstance(item, FunctionCall):
            self._call(item, place)
        elif isinstance(item, FunctionCallOutput):
            if item.call_id not in self._calls:
                raise InvalidRequest(
                    f"There is no function call with call_id {item.call_id!r} before its output.",
                    param=place,
                    code="invalid_value",
                )
            self._say(chat.ToolMessage(_text(item.output, f"{place}.output"), item.call_id), place)
        else:
            if item.encrypted_content:
                raise InvalidRequest(
                    "Encrypted reasoning of another service cannot be read; leave it out.",
                    param=f"{place}.encrypted_content",
                    code="unsupported_parameter",
                )
            self._thought = "".join(part.text for part in item.content or item.summary)

    def _say(self, message: chat.Message, place: str) -> None:
        self.messages.append(message)
        self._places.append(place)
        self._thought = ""

    def _message(self, item: Message, place: str) -> chat.Message:
        if item.role == "user":
            content = item.content
            return chat.UserMessage(
                content
                if isinstance(content, str)
                else [_part(part, f"{place}.content[{at}]") for at, part in enumerate(content)]
            )
        text = _text(item.content, f"{place}.content")
        if item.role == "assistant":
            said: str | list[chat.TextPart | chat.RefusalPart] = text if isinstance(text, str) else [*text]
            return chat.AssistantMessage(said, reasoning_content=self._thought or None)
        return chat.SystemMessage(text) if item.role == "system" else chat.DeveloperMessage(text)

    def _call(self, item: FunctionCall, place: str) -> None:
        """Calls belong to the message before them, as chat has it, if the assistant has just said one."""
        self._calls.add(item.call_id)
        call = chat.ToolCall(item.call_id, chat.FunctionCall(item.name, item.arguments))
        last = self.messages[-1] if self.messages else None
        if not isinstance(last, chat.AssistantMessage) or self._thought:
            last = chat.AssistantMessage(reasoning_content=self._thought or None)
            self._say(last, place)
        last.tool_calls = [*(last.tool_calls or ()), call]


def _part(part: MessagePart, place: str) -> chat.Part:
    if isinstance(part, InputImage):
        return chat.ImagePart(chat.ImageUrl(part.image_url, part.detail))
    return _words(part, place)


def _words(part: MessagePart, place: str) -> chat.TextPart:
    if isinstance(part, InputImage):
        raise InvalidRequest("Images are taken in the messages of the user.", param=place, code="unsupported_parameter")
    return chat.TextPart(part.refusal if isinstance(part, Refusal) else part.text)


def _text(content: str | list[MessagePart] | list[InputPart], place: str) -> chat.Text:
    if isinstance(content, str):
        return content
    return [_words(part, f"{place}[{at}]") for at, part in enumerate(content)]


def response_id() -> str:
    """The id of a new response, not to be guessed from another."""
    return f"resp_{secrets.token_hex(24)}"


def item_id(response: str, index: int) -> str:
    """The id of a response's output, without its prefix: who refers to the item has named the response."""
    return f"{response.removeprefix('resp_')}{index:04x}"


_ITEM = re.compile(r"(?:msg|rs|fc)_([0-9a-f]{48})[0-9a-f]{4}")


async def own_items(request: Request, body: ResponseRequest) -> list[Item]:
    """The items of the request's own turn, each with an id; a reference is the item it names. Raises 400 and 404."""
    if isinstance(body.input, str):
        return [_identified(Message("user", body.input))]
    named = [item.id for item in body.input if isinstance(item, ItemReference)]
    found = await stored.outputs(request, {f"resp_{match[1]}" for id in named if (match := _ITEM.fullmatch(id))})
    items: list[Item] = []
    for place, item in enumerate(body.input):
        if not isinstance(item, ItemReference):
            items.append(_identified(item))
        elif item.id not in found:
            raise NotFound(
                f"There is no item {item.id!r} to refer to; it was never stored, or named before, or its response is "
                "deleted or has expired. Send the item itself.",
                param=f"input[{place}]",
                code="item_not_found",
            )
        else:
            items.append(found.pop(item.id))  # once each: what is stored bounds what a request can become
    return items


_PREFIXES: dict[type, str] = {Message: "msg_", FunctionCall: "fc_", FunctionCallOutput: "fco_", Reasoning: "rs_"}


def _identified(item: Item) -> Item:
    """As it is stored: with an id, and the content of a message in parts."""
    id = item.id or fresh(_PREFIXES[type(item)])
    if isinstance(item, Message) and isinstance(item.content, str):
        part = OutputText(item.content) if item.role == "assistant" else InputText(item.content)
        return replace(item, id=id, content=[part])
    return replace(item, id=id)
