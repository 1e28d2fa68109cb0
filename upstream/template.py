"""Chat templates: messages to the prompt a model was trained on, byte for byte as transformers writes it."""

import json
from collections.abc import Mapping
from datetime import datetime
from functools import cache, cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn, Self

if TYPE_CHECKING:
    from jinja2 import Environment, nodes
    from jinja2.parser import Parser

ContentFormat = Literal["string", "openai"]
Message = dict[str, Any]

REASONING = ("reasoning_content", "thinking", "reasoning")  # one thing; templates read the first two names
PART_TYPES = {
    "image_url": "image",
    "input_audio": "audio",
    "video_url": "video",
}  # OpenAI's to the templates'
LONGEST = 64 << 20  # characters; beyond any context window, so only a runaway template gets there
BLOCK = 64  # pieces of a template, each a part of the messages: a call for each would be what a prompt costs
TOO_LONG = f"The chat template writes more than {LONGEST} characters."
CONTINUES = "CONTINUES_HERE "  # ends in a space: its loss shows that the template trims


class TemplateError(ValueError):
    """A conversation that the chat template refuses, or a template that fails on it; one clear sentence."""


class ChatTemplate:
    """A model's chat template(s), compiled once, with the model's special tokens."""

    def __init__(self, sources: Mapping[str, str], special_tokens: Mapping[str, str] | None = None) -> None:
        """Compile `sources`: template text by name, "default" and perhaps "tool_use" (for tools).

        Raises TemplateError where a template does not parse.
        """
        self._compiled = {name: _Compiled(name, source) for name, source in sources.items()}
        self._special_tokens = dict(special_tokens or {})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a model's folder, a .jinja file, a chat_template.json or a tokenizer_config.json.

        A folder is searched in transformers' order: chat_template.jinja (with chat_templates/NAME.jinja),
        chat_template.json, tokenizer_config.json. Special tokens come from tokenizer_config.json and
        special_tokens_map.json beside it.
        Raises ValueError that names the file and says what to do.
        """
        try:
            sources = _sources(path)
            tokens = _special_tokens(path if path.is_dir() else path.parent)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ValueError(f"Cannot read the chat template {path}: {error}.") from error
        if "default" not in sources:
            found = f"only {', '.join(sorted(sources))}" if sources else "none"
            raise ValueError(
                f"No default chat template at {path} ({found} found): name a .jinja file, or a folder with "
                "chat_template.jinja or tokenizer_config.json."
            )
        try:
            return cls(sources, tokens)
        except TemplateError as error:
            raise ValueError(f"The chat template {path} does not compile: {error}") from error

    @property
    def variables(self) -> frozenset[str]:
        """What the templates read beside messages and tools: what a client may set (enable_thinking …)."""
        return frozenset[str]().union(*(template.variables for template in self._compiled.values()))

    @property
    def content_format(self) -> ContentFormat:
        """What the default template does with content: "openai" iterates parts, "string" takes text."""
        return self._compiled["default"].content_format

    def render(
        self,
        messages: list[Message],
        *,
        tools: list[dict[str, Any]] | None = None,
        kwargs: dict[str, Any] | None = None,
    ) -> str:
        """The prompt of `messages` (OpenAI's shape, never changed), with the assistant's turn opened.

        `kwargs` are further template variables (enable_thinking, documents …); add_generation_prompt and
        continue_final_message mean there what they mean to transformers. Raises TemplateError.
        """
        if not messages:
            raise TemplateError("A chat template needs at least one message.")
        kwargs = dict(kwargs or {})
        if taken := {"messages", "tools"} & kwargs.keys():
            raise TemplateError(f"chat_template_kwargs must not set {', '.join(sorted(taken))}.")
        continues = bool(kwargs.pop("continue_final_message", False))
        if continues and kwargs.get("add_generation_prompt"):
            raise TemplateError("continue_final_message and add_generation_prompt exclude each other.")
        defaults = {"documents": None, "add_generation_prompt": not continues}
        variables = {**self._special_tokens, **defaults, **kwargs, "tools": tools or None}
        template = self._compiled["tool_use" if tools and "tool_use" in self._compiled else "default"]
        variables["messages"] = template.prepare(messages)
        return _continued(template, variables) if continues else template.render(variables)


class _Compiled:
    """One compiled template, and what it expects of messages: found out once."""

    def __init__(self, name: str, source: str) -> None:
        from jinja2 import TemplateSyntaxError

        self._source = source
        environment = _environment()
        try:
            tree = environment.parse(source)
            iterates = _iterates_content(tree)
            self._parts_only = iterates and not _tests_for_string(tree)
            self._template = environment.from_string(tree)  # which changes the tree
        except TemplateSyntaxError as error:
            raise TemplateError(f"{name}, line {error.lineno}: {error.message}.") from error
        except Exception as error:  # jinja2 folds constants while it compiles: anything can be raised
            raise TemplateError(f"{name}: {error}.") from error
        self._globals = dict(self._template.globals)
        self._template.globals = {}  # jinja2 would walk their chain of maps at each render
        self.content_format: ContentFormat = "openai" if iterates else "string"
        self._calls = max(SHAPES, key=self._grade)

    @cached_property
    def variables(self) -> set[str]:
        """What it reads beside messages and tools. jinja2 compiles it once more for that: not before anybody asks."""
        from jinja2.meta import find_undeclared_variables

        return find_undeclared_variables(_environment().parse(self._source)) - {"messages", "tools"}

    def render(self, variables: dict[str, Any]) -> str:
        written: list[str] = []
        left = LONGEST
        try:
            context = self._template.new_context({**self._globals, **variables}, shared=True)
            pieces = self._template.root_render_func(context)
            while block := list(islice(pieces, BLOCK)):
                written.append("".join(block))
                left -= len(written[-1]) + len(block)  # which bounds a loop of empty pieces
                if left < 0:
                    raise TemplateError(TOO_LONG)
        except TemplateError:
            raise
        except Exception as error:  # a template is a program: anything can be raised
            raise TemplateError(_sentence(error)) from error
        return "".join(written)

    def prepare(self, messages: list[Message]) -> list[Message]:
        """Copies of `messages` as templates expect them; parts that need no change are shared."""
        return [self._prepare(f"messages[{index}]", message) for index, message in enumerate(messages)]

    def _prepare(self, where: str, message: Message) -> Message:
        # transformers drops None too: many templates would print it, most of them handle an absent key.
        present = {key: value for key, value in message.items() if value is not None}
        if not present.keys().isdisjoint(REASONING):
            reasoning = next(present[name] for name in REASONING if name in present)
            present = {"thinking": reasoning, **present, "reasoning_content": reasoning}
        content = present.get("content")
        if isinstance(content, list):
            openai = self.content_format == "openai"
            present["content"] = [_part(part) for part in content] if openai else _text(where, content)
        elif self._parts_only and isinstance(content, str):
            present["content"] = [{"type": "text", "text": content}]
        if calls := present.get("tool_calls"):
            if content is None:
                present |= self._calls.null
            if self._calls.parsed:
                where += ".tool_calls"
                present["tool_calls"] = [_call(f"{where}[{i}]", call) for i, call in enumerate(calls)]
        return present

    def _grade(self, shape: "CallShape") -> int:
        """2: the template writes such a call (not as Python prints a dict); 1: it renders; 0: it fails."""
        function = {"name": "probe", "arguments": {"key": ""} if shape.parsed else '{"key": ""}'}
        call = {"id": "call00000", "type": "function", "function": function}
        messages = [
            {"role": "user", "content": ""},
            {"role": "assistant", "tool_calls": [call], **shape.null},
            {"role": "tool", "tool_call_id": "call00000", "name": "", "content": ""},
        ]
        try:
            prompt = self.render({"messages": messages, "tools": None, "bos_token": "", "eos_token": ""})
        except TemplateError:
            return 0
        return 2 if "probe" in prompt and "{'key'" not in prompt else 1


class CallShape(NamedTuple):
    """What a template wants of an assistant's calls: what null content becomes; arguments parsed or text."""

    null: dict[str, str | None]
    parsed: bool


# transformers' own shape first; the others suit templates written for null, for "", for text (DeepSeek R1).
NULLS: tuple[dict[str, str | None], ...] = ({}, {"content": None}, {"content": ""})
SHAPES = [CallShape(null, parsed) for parsed in (True, False) for null in NULLS]


def _continued(template: _Compiled, variables: dict[str, Any]) -> str:
    """The prompt cut behind the last message's text, so that the model goes on with it."""
    *before, last = variables["messages"]
    content = last.get("content")
    if isinstance(content, str):
        marked: Any = content + CONTINUES
    elif isinstance(content, list) and content and isinstance(text := content[-1].get("text"), str):
        marked = [*content[:-1], {**content[-1], "text": text + CONTINUES}]
    else:
        raise TemplateError("continue_final_message needs a last message that ends in text.")
    prompt = template.render({**variables, "messages": [*before, {**last, "content": marked}]})
    end = prompt.rfind(CONTINUES.strip())
    if end < 0:
        raise TemplateError("continue_final_message: the chat template leaves the last message's text out.")
    return prompt[:end] if prompt.startswith(CONTINUES, end) else prompt[:end].rstrip()


def _part(part: Any) -> Any:
    """A media part without its bytes: the template writes a placeholder, the tensors carry the rest."""
    name = PART_TYPES.get(str(part.get("type"))) if isinstance(part, dict) else None
    return {"type": name} if name else part


def _text(where: str, content: list[Any]) -> str:
    """Text parts as one string, joined by a newline as vLLM joins them."""
    texts = []
    for part in content:
        text = part.get("text", part.get("refusal")) if isinstance(part, dict) else part
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise TemplateError(f"{where}.content: the chat template takes text only, no {kind} part.")
        texts.append(text)
    return "\n".join(texts)


def _call(where: str, call: Any) -> Any:
    """The call with its arguments parsed: templates write them as JSON, or item by item."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(text := function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(text) if text.strip() else {}
        json.dumps(arguments, ensure_ascii=False).encode()  # an escaped lone surrogate could not be sent on
    except (ValueError, RecursionError) as error:
        raise TemplateError(f"{where}.function.arguments is not valid JSON: {error}.") from error
    return {**call, "function": {**function, "arguments": arguments}}


@cache
def _environment() -> "Environment":
    """The sandbox that transformers compiles in. jinja2 is imported where used: it costs 70 ms at start."""
    from jinja2 import TemplateError as JinjaError
    from jinja2 import nodes
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(Extension):
        """{% generation %}: marks what the assistant wrote, for training; here only a scope."""

        tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

        def parse(self, parser: "Parser") -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    class PublicNamespace(Namespace):
        """A namespace without underscored attributes: they could reach Python's internals."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__()
            for name, value in dict(*args, **kwargs).items():
                self[name] = value

        def __setitem__(self, name: str, value: Any) -> None:
            if str(name).startswith("_"):
                raise SecurityError(f"a namespace attribute cannot be named {name!r}")
            super().__setitem__(name, value)

    methods = frozenset(dir(dict))

    class Sandbox(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset({"*", "**"})

        def getattr(self, obj: Any, attribute: str) -> Any:
            """message.role: jinja2 asks for the attribute first, and that a dict has none costs a raised exception."""
            if type(obj) is dict and attribute in obj and attribute not in methods:
                return obj[attribute]
            return super().getattr(obj, attribute)

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            _bound(operator, left, right)
            return super().call_binop(context, operator, left, right)

    def raise_exception(message: str) -> NoReturn:
        raise JinjaError(message)

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["namespace"] = PublicNamespace
    return environment


def _bound(operator: str, left: Any, right: Any) -> None:
    """Refuse what repeats a sequence or raises a power beyond any prompt, before it takes the memory."""
    if isinstance(left, int) and not isinstance(right, int):
        left, right = right, left
    if not isinstance(right, int):
        return
    size = len(left) if isinstance(left, str | list | tuple) else 0
    if operator == "**" and isinstance(left, int):
        size = left.bit_length()
    if size * right > LONGEST:
        raise TemplateError(TOO_LONG)


def _tojson(
    x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """transformers' filter and signature; jinja2's own would escape HTML."""
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)  # noqa: DTZ005 - templates expect local time, as from transformers


def _sentence(error: Exception) -> str:
    from jinja2 import TemplateError as JinjaError

    if type(error) is JinjaError:  # from raise_exception: the template's own words
        return error.message or "The chat template refuses these messages."
    if isinstance(error, RecursionError):
        return "The chat template recurses too deeply on these messages."
    kind = "" if isinstance(error, JinjaError) else f"{type(error).__name__}: "
    return f"The chat template fails on these messages: {kind}{str(error).rstrip('.')}."


def _iterates_content(tree: "nodes.Template") -> bool:
    """Whether the template loops over a message's content, or over a name set from one (or called so).

    The rule is vLLM's, without following the names of messages.
    """
    from jinja2 import nodes

    def is_content(node: nodes.Node | None) -> bool:
        match node:
            case nodes.Filter(node=inner) | nodes.Getitem(node=inner, arg=nodes.Slice()):
                return is_content(inner)
            case nodes.Getattr(attr=key) | nodes.Getitem(arg=nodes.Const(value=key)):
                return bool(key == "content")
            case nodes.Name(name=name):
                return name in names
            case _:
                return False

    names = {"content"}
    for assign in tree.find_all(nodes.Assign):
        if isinstance(assign.target, nodes.Name) and is_content(assign.node):
            names.add(assign.target.name)
    return any(is_content(loop.iter) for loop in tree.find_all(nodes.For))


def _tests_for_string(tree: "nodes.Template") -> bool:
    from jinja2 import nodes

    tests = {"string", "iterable", "mapping", "sequence"}
    return any(test.name in tests for test in tree.find_all(nodes.Test))


def _sources(path: Path) -> dict[str, str]:
    """Template text by name, from the first of transformers' places that has any."""
    if path.is_file():
        if path.suffix != ".json":
            return {"default": path.read_text("utf-8")}
        # A template saved as .jinja is no longer in the tokenizer_config.json beside it.
        return _named(path) or _sources(path.parent)
    if not path.is_dir():
        raise FileNotFoundError("there is no such file or folder")
    named = {file.stem: file.read_text("utf-8") for file in sorted(path.glob("chat_templates/*.jinja"))}
    if (file := path / "chat_template.jinja").is_file():
        named["default"] = file.read_text("utf-8")
    files = (path / "chat_template.json", path / "tokenizer_config.json")
    return named or next((found for file in files if (found := _named(file))), {})


def _named(file: Path) -> dict[str, str]:
    """The "chat_template" of a JSON file: one text, or a list of {"name", "template"}, or none."""
    match _object(file).get("chat_template"):
        case None:
            return {}
        case str(source):
            return {"default": source}
        case list(entries):
            return {str(entry["name"]): str(entry["template"]) for entry in entries}
        case other:
            raise TypeError(f"chat_template in {file.name} is a {type(other).__name__}, no string or list")


def _special_tokens(folder: Path) -> dict[str, str]:
    """Variables such as bos_token: strings, or the "content" of AddedToken objects."""
    settings = _object(folder / "special_tokens_map.json") | _object(folder / "tokenizer_config.json")
    extra = settings.get("extra_special_tokens")
    named = {name: token for name, token in settings.items() if name.endswith("_token")}
    named |= extra if isinstance(extra, dict) else {}
    texts = {name: token.get("content") if isinstance(token, dict) else token for name, token in named.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _object(file: Path) -> dict[str, Any]:
    """The JSON object in `file`; none if there is no such file."""
    if not file.is_file():
        return {}
    value = json.loads(file.read_bytes())
    if not isinstance(value, dict):
        raise TypeError(f"{file.name} holds no JSON object")
    return value
