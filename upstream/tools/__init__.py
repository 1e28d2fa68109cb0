"""Incremental parsers: a model's text, as it comes, to text and tool calls; one file per family of formats."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from upstream.tools.pieces import CallArguments, CallStart, Parser, Piece, Reasoning, Text

__all__ = ["FAMILIES", "CallArguments", "CallStart", "Parser", "Piece", "Reasoning", "Text", "parser"]

FAMILIES = ("hermes", "llama3_json", "mistral", "pythonic", "deepseek", "qwen3_coder", "harmony", "guided")


def parser(family: str, tools: Sequence[dict[str, Any]] | None = None) -> Parser:
    """A parser for one response of `family`.

    `tools` (OpenAI's list) gives the types of arguments that a format writes bare, and the names that tell a call
    from an answer where a format marks neither. Raises ValueError for an unknown family.

    Arguments are what the model wrote. A call cut short (max_tokens) keeps the arguments so far, as OpenAI does; cut
    before it is known to be a call it comes back as text, and so does a malformed one: nothing is lost.
    """
    if family not in FAMILIES:
        raise ValueError(f"There is no tool parser {family!r}; choose one of {', '.join(FAMILIES)}.")
    parameters = {}
    for tool in tools or ():
        function = tool.get("function", tool)  # the Responses API's tools have no inner object
        if isinstance(function, dict) and "name" in function:
            schema = function.get("parameters")
            parameters[str(function["name"])] = schema if isinstance(schema, dict) else {}
    made: Parser = import_module(f"upstream.tools.{family}").start(parameters)
    return made
