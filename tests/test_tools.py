"""Tool-call parsers: a corpus per family, fed whole, one character at a time and in random splits: the same result."""

import itertools
import json
import re
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upstream.tools import FAMILIES, CallArguments, CallStart, Piece, Reasoning, Text, parser
from upstream.tools.reasoning import ReasoningSplitter

PROPERTIES = {
    "s": {"type": "string"},
    "n": {"type": "integer"},
    "x": {"type": ["number", "null"]},
    "b": {"type": "boolean"},
    "o": {"type": "object"},
    "l": {"type": "array"},
    "e": {"enum": ["a", "1"]},
    "m": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    "r": {"$ref": "#/$defs/R"},
}
TOOLS = [
    {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": PROPERTIES}}},
    {"type": "function", "function": {"name": "g"}},
    {"type": "function", "name": "h", "parameters": {"properties": {"n": {"type": "integer"}}}},
]


class Thought(str):
    """Expected reasoning."""


Expected = list[str | tuple[str, str]]  # text, Thought, or a call's name and arguments
Corpus = dict[str, tuple[str, Expected]]


def gathered(pieces: Iterable[Piece]) -> Expected:
    """Neighbours joined: what a client puts together."""
    result: Expected = []
    calls = 0
    for piece in pieces:
        match piece:
            case CallStart(index=index, name=name):
                assert index == calls
                calls += 1
                result.append((name, ""))
            case CallArguments(index=index, fragment=fragment):
                assert fragment
                assert index == calls - 1
                call = result[-1]
                assert isinstance(call, tuple)
                result[-1] = (call[0], call[1] + fragment)
            case Text(text=text) | Reasoning(text=text):
                assert text
                kind = Thought if isinstance(piece, Reasoning) else str
                if result and type(result[-1]) is kind:
                    result[-1] = kind(str(result[-1]) + text)
                else:
                    result.append(kind(text))
    return result


def parsed(family: str, fragments: Iterable[str], tools: list[dict[str, Any]] | None = TOOLS) -> Expected:
    reader = parser(family, tools)
    pieces = [piece for fragment in fragments for piece in reader.feed(fragment)]
    return gathered([*pieces, *reader.finish()])


def split(text: str, cuts: Iterable[int]) -> list[str]:
    places = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(places)]


TRICKY = '{"s": "} ] {\\" \\\\", "o": {"l": [{}, [1.50, -2e9, true, null]]}, "u": "Zürich 🌍 \\u00e9"}'
PLAIN: Corpus = {
    "no call": ("Hello, <b>world</b> [1] {2}\n", ["Hello, <b>world</b> [1] {2}\n"]),
    "nothing": ("", []),
    "white space only": (" \n", [" \n"]),
}

HERMES: Corpus = PLAIN | {
    "one": ('<tool_call>\n{"name": "f", "arguments": {"n": 1}}\n</tool_call>', [("f", '{"n": 1}')]),
    "text around": (
        'Hi\n<tool_call>{"name": "f", "arguments": {}}</tool_call>\n\nbye',
        ["Hi\n", ("f", "{}"), "\n\nbye"],
    ),
    "two": (
        '<tool_call>\n{"name": "f", "arguments": {"n": 1}}\n</tool_call>\n<tool_call>{"name": "g"}</tool_call>\n',
        [("f", '{"n": 1}'), ("g", "{}")],
    ),
    "tricky": (f'<tool_call>{{"name": "f", "arguments": {TRICKY}}}</tool_call>', [("f", TRICKY)]),
    "tag in a string": (
        '<tool_call>{"name": "f", "arguments": {"s": "</tool_call><tool_call>"}}</tool_call>.',
        [("f", '{"s": "</tool_call><tool_call>"}'), "."],
    ),
    "arguments first": ('<tool_call>{"arguments": {"n": 1}, "name": "f"}</tool_call>', [("f", '{"n": 1}')]),
    "other members": (
        '<tool_call>{"type": "function", "id": {"a": [1]}, "name": "f", "arguments": {}, "x": 1}</tool_call>',
        [("f", "{}")],
    ),
    "no arguments": ('<tool_call>{"name": "f"}</tool_call>', [("f", "{}")]),
    "null arguments": ('<tool_call>{"name": "f", "arguments": null}</tool_call>', [("f", "{}")]),
    "arguments in a string": (
        '<tool_call>{"name": "f", "arguments": "{\\"s\\": \\"\\u00fc\\"}"}</tool_call>',
        [("f", '{"s": "ü"}')],
    ),
    "arguments in a string, cut": ('<tool_call>{"name": "f", "arguments": "{\\"s\\": \\u00', [("f", '{"s": ')]),
    "parameters": ('<tool_call>{"name": "f", "parameters": {"n": 1}}</tool_call>', [("f", '{"n": 1}')]),
    "a bracket too many": ('<tool_call>{"name": "f", "arguments": {}}}</tool_call>!', [("f", "{}"), "!"]),
    "a bracket too few": ('<tool_call>{"name": "f", "arguments": {"n": 1</tool_call>!', [("f", '{"n": 1'), "!"]),
    "no closing tag": ('<tool_call>{"name": "f", "arguments": {}}\nDone', [("f", "{}"), "Done"]),
    "cut in arguments": ('<tool_call>{"name": "f", "arguments": {"s": "Zü', [("f", '{"s": "Zü')]),
    "cut in an escape": ('<tool_call>{"name": "f", "arguments": {"s": "\\', [("f", '{"s": "\\')]),
    "cut in the name": ('a <tool_call>{"name": "f', ['a <tool_call>{"name": "f']),
    "cut in the tag": ("a <tool_ca", ["a <tool_ca"]),
    "no JSON": ("<tool_call>f(1)</tool_call> x", ["<tool_call>f(1)</tool_call> x"]),
    "no name": ('<tool_call>{"arguments": {}}</tool_call>', ['<tool_call>{"arguments": {}}</tool_call>']),
    "a number for a name": ('<tool_call>{"name": 5}</tool_call>', ['<tool_call>{"name": 5}</tool_call>']),
    "half a surrogate for a name": ('<tool_call>{"name": "\\ud800"}', ['<tool_call>{"name": "\\ud800"}']),
    "malformed, then right": (
        '<tool_call>x<tool_call>{"name": "f", "arguments": {}}</tool_call>',
        ["<tool_call>x", ("f", "{}")],
    ),
    "stray closing tag": ("a</tool_call>b", ["a</tool_call>b"]),
}

LLAMA: Corpus = PLAIN | {
    "one": ('{"name": "f", "parameters": {"n": 1}}', [("f", '{"n": 1}')]),
    "tagged": ('<|python_tag|>{"name": "f", "parameters": {"n": 1}}', [("f", '{"n": 1}')]),
    "two": ('{"name": "f", "parameters": {}}; {"name": "g", "parameters": {"a": 2}}', [("f", "{}"), ("g", '{"a": 2}')]),
    "two, on lines": (
        '\n{"name": "f", "parameters": {}}\n{"name": "g", "parameters": {}}\n',
        [("f", "{}"), ("g", "{}")],
    ),
    "two, tagged": (
        '<|python_tag|>{"name": "f", "parameters": {}}<|python_tag|>{"name": "g", "parameters": {}}',
        [("f", "{}"), ("g", "{}")],
    ),
    "tricky": (f'{{"name": "f", "parameters": {TRICKY}}}', [("f", TRICKY)]),
    "text around": ('Hi <|python_tag|>{"name": "f", "parameters": {}} bye', ["Hi ", ("f", "{}"), " bye"]),
    "arguments": ('{"type": "function", "name": "f", "arguments": {}}', [("f", "{}")]),
    "arguments first": ('{"parameters": {"n": 1}, "name": "f"}', [("f", '{"n": 1}')]),
    "an answer in JSON": ('{"name": "Bob", "age": 3}', ['{"name": "Bob", "age": 3}']),
    "an answer with a tool's name": ('{"name": "f", "age": 3}', ['{"name": "f", "age": 3}']),
    "no tool of ours": ('{"name": "zz", "parameters": {}}', ['{"name": "zz", "parameters": {}}']),
    "JSON behind text": ('So: {"name": "f", "parameters": {}}', ['So: {"name": "f", "parameters": {}}']),
    "a call, then an answer": (
        '{"name": "f", "parameters": {}}; {"name": "Bob"}',
        [("f", "{}"), '; {"name": "Bob"}'],
    ),
    "code behind the tag": ("<|python_tag|>print(1)", ["<|python_tag|>print(1)"]),
    "cut in arguments": ('{"name": "f", "parameters": {"s": "x', [("f", '{"s": "x')]),
    "cut in the name": ('{"name": "f', ['{"name": "f']),
    "cut in the tag": ("a<|python", ["a<|python"]),
    "no JSON": ("{not json}", ["{not json}"]),
}

MISTRAL: Corpus = PLAIN | {
    "list": ('[TOOL_CALLS][{"name": "f", "arguments": {"n": 1}}]', [("f", '{"n": 1}')]),
    "list of two": (
        '[TOOL_CALLS] [{"name": "f", "arguments": {}, "id": "abcdefghi"}, {"arguments": {}, "name": "g"}]',
        [("f", "{}"), ("g", "{}")],
    ),
    "list, tricky": (f'[TOOL_CALLS][{{"name": "f", "arguments": {TRICKY}}}]', [("f", TRICKY)]),
    "list, text around": ('Hi[TOOL_CALLS][{"name": "f", "arguments": {}}]\nbye', ["Hi", ("f", "{}"), "\nbye"]),
    "list not closed": ('[TOOL_CALLS][{"name": "f", "arguments": {}}', [("f", "{}")]),
    "list, second malformed": (
        '[TOOL_CALLS][{"name": "f", "arguments": {}}, {"nam": 1}]',
        [("f", "{}"), ', {"nam": 1}]'],
    ),
    "list, junk": ('[TOOL_CALLS][{"name": "f", "arguments": {}} oh', [("f", "{}"), " oh"]),
    "object": ('[TOOL_CALLS]{"name": "f", "arguments": {}}', [("f", "{}")]),
    "named": ('[TOOL_CALLS]f[ARGS]{"n": 1}', [("f", '{"n": 1}')]),
    "named, two": (
        'Hi [TOOL_CALLS]f[ARGS]{"n": 1}[TOOL_CALLS]g[ARGS]{} bye',
        ["Hi ", ("f", '{"n": 1}'), ("g", "{}"), " bye"],
    ),
    "named, tricky": (f"[TOOL_CALLS]f[ARGS]{TRICKY}", [("f", TRICKY)]),
    "named, with id": ('[TOOL_CALLS]my-tool.v2[CALL_ID]Ab3dEf9hI[ARGS]{"n": 1}', [("my-tool.v2", '{"n": 1}')]),
    "named, tag skipped": ('[TOOL_CALLS]f{"n": 1}', [("f", '{"n": 1}')]),
    "named, no arguments": ("[TOOL_CALLS]f[ARGS]", [("f", "{}")]),
    "cut in arguments": ('[TOOL_CALLS]f[ARGS]{"s": "x', [("f", '{"s": "x')]),
    "cut in the name": ("[TOOL_CALLS]f", ["[TOOL_CALLS]f"]),
    "cut in the tag": ("a [TOOL_CAL", ["a [TOOL_CAL"]),
    "no call": ("[TOOL_CALLS] is a tag", ["[TOOL_CALLS] is a tag"]),
}

PYTHONIC: Corpus = PLAIN | {
    "one": ("[f(n=1)]", [("f", '{"n": 1}')]),
    "two": ('[f(s="a"), g()]', [("f", '{"s": "a"}'), ("g", "{}")]),
    "every type": (
        "[f(a=-1.5, b=True, c=None, d=[(2,)], e={'k': {\"x\": 1}, 2: 3}, f='it\\'s', g=1e0)]",
        [
            (
                "f",
                '{"a": -1.5, "b": true, "c": null, "d": [[2]], "e": {"k": {"x": 1}, "2": 3}, "f": "it\'s", "g": 1.0}',
            )
        ],
    ),
    "JSON's words": ('[f(a=true, b={"k": null})]', [("f", '{"a": true, "b": {"k": null}}')]),
    "brackets in strings": ('[f(s="), (] [", n=1)]', [("f", '{"s": "), (] [", "n": 1}')]),
    "unicode": ("[f(s='Zürich 🌍 \\u00e9')]", [("f", '{"s": "Zürich 🌍 é"}')]),
    "lines": ("\n[\n  f(\n    n=1,\n  ),\n  g(),\n]\n", [("f", '{"n": 1}'), ("g", "{}")]),
    "text behind": ("[g()] so.", [("g", "{}"), " so."]),
    "Llama 4's tags": ("<|python_start|>[f(n=1)]<|python_end|>", [("f", '{"n": 1}')]),
    "OLMo's tags": (
        "Hi\n<function_calls>\nf(n=1)\ng(s='x')\n</function_calls> bye",
        ["Hi\n", ("f", '{"n": 1}'), ("g", '{"s": "x"}'), " bye"],
    ),
    "a word": ("[f(s=celsius)]", [("f", '{"s": "celsius"}')]),
    "half a surrogate": ("[f(s='\\ud800')]", [("f", '{"s": "\'\\\\ud800\'"}')]),
    "a link": ("[see](https://example.com)", ["[see](https://example.com)"]),
    "a list": ("[1, 2]", ["[1, 2]"]),
    "positional": ("[f(1)]", ["[f(1)]"]),
    "no tool of ours": ("[zz(n=1)]", ["[zz(n=1)]"]),
    "behind text": ("So [f(n=1)]", ["So [f(n=1)]"]),
    "cut in a string": ("[f(n=1, s='it\\'s \"x\" ", [("f", '{"n": 1, "s": "it\'s \\"x\\" ')]),
    "cut in an escape": ("[f(s='a\\u00e", [("f", '{"s": "a')]),
    "cut in a number": ("[f(n=12", [("f", '{"n": 12')]),
    "cut in the name": ("[f", ["[f"]),
    "cut between calls": ("[g(), ", [("g", "{}"), ", "]),
    "cut in the tag": ("a <|python_st", ["a <|python_st"]),
}

V3 = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{}\n```json\n{}\n```<｜tool▁call▁end｜>"
V31 = "<｜tool▁call▁begin｜>{}<｜tool▁sep｜>{}<｜tool▁call▁end｜>"
FRAMED = "<｜tool▁calls▁begin｜>{}<｜tool▁calls▁end｜>"
DSML = "\n\n<｜DSML｜function_calls>\n{}\n</｜DSML｜function_calls>"
INVOKE = '<｜DSML｜invoke name="{}">\n{}</｜DSML｜invoke>'
VALUE = '<｜DSML｜parameter name="{}" string="{}">{}</｜DSML｜parameter>\n'
DEEPSEEK: Corpus = PLAIN | {
    "V3": (FRAMED.format(V3.format("f", '{"n": 1}')), [("f", '{"n": 1}')]),
    "V3, two, text around": (
        "Hi" + FRAMED.format(V3.format("f", '{"n": 1}') + "\n" + V3.format("g", "{}")) + "bye",
        ["Hi", ("f", '{"n": 1}'), ("g", "{}"), "bye"],
    ),
    "V3, tricky": (FRAMED.format(V3.format("f", TRICKY)), [("f", TRICKY)]),
    "V3.1": (FRAMED.format(V31.format("f", '{"n": 1}')), [("f", '{"n": 1}')]),
    "V3.1, two": (FRAMED.format(V31.format("f", "{}") + V31.format("g", "{}")), [("f", "{}"), ("g", "{}")]),
    "V3.1, tricky": (FRAMED.format(V31.format("f", TRICKY)), [("f", TRICKY)]),
    "V3.1, a tool called function": (FRAMED.format(V31.format("function", "{}")), [("function", "{}")]),
    "DSML": (DSML.format(INVOKE.format("f", VALUE.format("s", "true", "a"))), [("f", '{"s": "a"}')]),
    "DSML, types": (
        DSML.format(INVOKE.format("f", VALUE.format("n", "false", "1") + VALUE.format("o", "false", '{"k": [1]}'))),
        [("f", '{"n": 1, "o": {"k": [1]}}')],
    ),
    "DSML, two, text around": (
        "Hi"
        + DSML.format(INVOKE.format("f", "") + "\n" + INVOKE.format("g", VALUE.format("s", "true", "1")))
        + "\nbye",
        ["Hi\n\n\n", ("f", "{}"), ("g", '{"s": "1"}'), "\n\nbye"],
    ),
    "DSML, tricky": (
        DSML.format(INVOKE.format("f", VALUE.format("s", "true", '\n"x" </b> \\ 🌍\n'))),
        [("f", '{"s": "\\n\\"x\\" </b> \\\\ 🌍\\n"}')],
    ),
    "DSML, cut": (
        '<｜DSML｜invoke name="f">\n<｜DSML｜parameter name="s" string="true">a</｜DSM',
        [("f", '{"s": "a</｜DSM')],
    ),
    "cut in arguments": ('<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{"s": "x', [("f", '{"s": "x')]),
    "cut in the name": ("<｜tool▁call▁begin｜>f", ["<｜tool▁call▁begin｜>f"]),
    "cut in the tag": ("a <｜tool▁ca", ["a <｜tool▁ca"]),
    "no arguments": ("<｜tool▁call▁begin｜>f<｜tool▁sep｜>oh no", ["<｜tool▁call▁begin｜>f<｜tool▁sep｜>oh no"]),
}


def element(name: str, **values: str) -> str:
    inner = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values.items())
    return f"<tool_call>\n<function={name}>\n{inner}</function>\n</tool_call>"


QWEN3_CODER: Corpus = PLAIN | {
    "one": (element("f", s="a"), [("f", '{"s": "a"}')]),
    "two, text around": (
        f"Hi\n{element('f', n='1')}\n{element('g')}\nbye",
        ["Hi\n", ("f", '{"n": 1}'), ("g", "{}"), "\nbye"],
    ),
    "every type": (
        element("f", n="1", x="1.50", b="true", o='{"k": [1]}', l="[1, 2]", e="1"),
        [("f", '{"n": 1, "x": 1.50, "b": true, "o": {"k": [1]}, "l": [1, 2], "e": "1"}')],
    ),
    "Python's words": (
        element("f", b="True", x="None", o="{'k': False}"),
        [("f", '{"b": true, "x": null, "o": {"k": false}}')],
    ),
    "not of its type": (element("f", n="many", b="maybe"), [("f", '{"n": "many", "b": "maybe"}')]),
    "null or text": (element("f", m="null", x="null", s="null"), [("f", '{"m": null, "x": null, "s": "null"}')]),
    "by reference": (element("f", r='{"k": 1}'), [("f", '{"r": {"k": 1}}')]),
    "by reference, a word": (element("f", r="red"), [("f", '{"r": "red"}')]),
    "no schema": (element("g", a="1", b="{}"), [("g", '{"a": "1", "b": "{}"}')]),
    "a tool of the Responses API": (element("h", n="7"), [("h", '{"n": 7}')]),
    "lines": (element("f", s='\nif a:\n\t"b" \\\n\n'), [("f", '{"s": "\\nif a:\\n\\t\\"b\\" \\\\\\n\\n"}')]),
    "markup and brackets": (element("f", s="<p>{[</p></function>"), [("f", '{"s": "<p>{[</p></function>"}')]),
    "unicode": (element("f", s="Zürich 🌍"), [("f", '{"s": "Zürich 🌍"}')]),
    "empty": (element("f", s=""), [("f", '{"s": ""}')]),
    "on one line": (
        "<tool_call><function=f><parameter=s>a</parameter><parameter=n>1</parameter></function></tool_call>",
        [("f", '{"s": "a", "n": 1}')],
    ),
    "no outer tag": ("<function=f>\n<parameter=n>\n1\n</parameter>\n</function>\n</tool_call>", [("f", '{"n": 1}')]),
    "function not closed": ("<tool_call><function=f><parameter=n>1</parameter></tool_call>!", [("f", '{"n": 1}'), "!"]),
    "cut in a string": ("<tool_call>\n<function=f>\n<parameter=s>\nab\n", [("f", '{"s": "ab')]),
    "cut in a number": ("<tool_call>\n<function=f>\n<parameter=n>\n12", [("f", '{"n": 12')]),
    "cut between": ("<tool_call><function=f><parameter=n>1</parameter>", [("f", '{"n": 1')]),
    "cut in the name": ("<tool_call>\n<function=f", ["<tool_call>\n<function=f"]),
    "cut in the tag": ("a <tool_", ["a <tool_"]),
    "JSON instead": ('<tool_call>{"name": "f"}</tool_call>', ['<tool_call>{"name": "f"}</tool_call>']),
    "stray closing tag": ("a</tool_call>b", ["a</tool_call>b"]),
}

ANALYSIS = "<|channel|>analysis<|message|>"
TO_F = "<|channel|>commentary to=functions.f <|constrain|>json<|message|>"
FINAL = "<|channel|>final<|message|>"
NEXT = "<|end|><|start|>assistant"
HARMONY: Corpus = PLAIN | {
    "final": (f"{FINAL}Hello<|return|>", ["Hello"]),
    "analysis, final": (f"{ANALYSIS}hm{NEXT}{FINAL}Hello", [Thought("hm"), "Hello"]),
    "call": (f'{TO_F}{{"n": 1}}<|call|>', [("f", '{"n": 1}')]),
    "analysis, call": (f'{ANALYSIS}hm{NEXT}{TO_F}{{"n": 1}}<|call|>', [Thought("hm"), ("f", '{"n": 1}')]),
    "tricky": (f"{TO_F}{TRICKY}<|call|>", [("f", TRICKY)]),
    "recipient first": (' to=functions.f<|channel|>commentary json<|message|>{"n": 1}<|call|>', [("f", '{"n": 1}')]),
    "two": (
        f"{TO_F}{{}}<|call|><|start|>assistant<|channel|>commentary to=functions.my-g<|message|>{{}}<|call|>",
        [("f", "{}"), ("my-g", "{}")],
    ),
    "preamble": (f"<|channel|>commentary<|message|>I look.{NEXT}{TO_F}{{}}<|call|>", ["I look.", ("f", "{}")]),
    "no arguments": (f"{TO_F}<|call|>", [("f", "{}")]),
    "a tool of the model's own": (
        f"<|channel|>analysis to=python code<|message|>1+1<|call|><|start|>assistant{FINAL}2",
        [Thought("1+1"), "2"],
    ),
    "end without a start": (f"{ANALYSIS}hm<|end|>{FINAL}Hello<|return|>", [Thought("hm"), "Hello"]),
    "markup": (f"{FINAL}<b>a</b> <|x|> to=functions.f", ["<b>a</b> <|x|> to=functions.f"]),
    "the whole header": (f"<|start|>assistant{FINAL}Hi", ["Hi"]),
    "cut in arguments": (f'{TO_F}{{"s": "x', [("f", '{"s": "x')]),
    "cut in the header": ("<|channel|>comm", ["<|channel|>comm"]),
    "cut in the tag": (f"{FINAL}a <|en", ["a <|en"]),
    "no message": ("<|channel|>final<|end|> oh", ["<|channel|>final<|end|> oh"]),
}

GUIDED: Corpus = PLAIN | {
    "one": ('[{"name": "f", "parameters": {"n": 1}}]', [("f", '{"n": 1}')]),
    "two": ('[{"name":"f","parameters":{"n":1}},{"name":"g","parameters":{}}]', [("f", '{"n":1}'), ("g", "{}")]),
    "spaced": (' [ {"name": "f", "parameters": {} } , {"name": "g", "parameters": {}} ] ', [("f", "{}"), ("g", "{}")]),
    "tricky": (f'[{{"name": "f", "parameters": {TRICKY}}}]', [("f", TRICKY)]),
    "parameters first": ('[{"parameters": {"n": 1}, "name": "f"}]', [("f", '{"n": 1}')]),
    "cut in parameters": ('[{"name": "f", "parameters": {"s": "x', [("f", '{"s": "x')]),
    "cut between": ('[{"name": "f", "parameters": {}},', [("f", "{}")]),
    "cut in the name": ('[{"name": "f', ['[{"name": "f']),
    "cut at the bracket": ("[", ["["]),
    "no calls": ("[]", ["[]"]),
    "numbers": ("[1, 2]", ["[1, 2]"]),
    "an object": ('{"name": "f", "parameters": {}}', ['{"name": "f", "parameters": {}}']),
    "calls or an answer": ('{"calls": [{"name": "f", "parameters": {"n": 1}}]}', [("f", '{"n": 1}')]),
    "two or an answer": (
        '{ "calls" : [{"name":"f","parameters":{"n":1}}, {"name":"g","parameters":{}}] }\n',
        [("f", '{"n":1}'), ("g", "{}")],
    ),
    "an answer": ('{"answer": {"calls": [1], "answer": "}"}}', ['{"calls": [1], "answer": "}"}']),
    "an answer as it is written": (f'{{"answer":\n {TRICKY}\n}}\n', [TRICKY]),
    "an answer that is a list": (
        '{"answer": [{"name": "f", "parameters": {}}]}',
        ['[{"name": "f", "parameters": {}}]'],
    ),
    "an answer that is a string": ('{"answer": "a \\" }"}', ['"a \\" }"']),
    "an answer that is a number": ('{"answer": -1.5e3}', ["-1.5e3"]),
    "an answer, cut": ('{"answer": {"s": "x\\', ['{"s": "x\\']),
    "a number, cut": ('{"answer": 12', ["12"]),
    "an answer and more": ('{"answer": {}} oh', ["{}oh"]),
    "either, cut before it is one": ('{"answer', ['{"answer']),
    "either, cut before the calls": ('{"calls": ', ['{"calls": ']),
    "either, cut in the first": ('{"calls": [{"name": "f', ['{"calls": [{"name": "f']),
    "either, cut between": ('{"calls": [{"name": "f", "parameters": {}},', [("f", "{}")]),
    "calls that are none": ('{"calls": {"name": "f"}}', ['{"calls": {"name": "f"}}']),
    "neither": ('{"reply": 1}', ['{"reply": 1}']),
    "words": ("I cannot [do] that", ["I cannot [do] that"]),
}

CORPORA = {
    "hermes": HERMES,
    "llama3_json": LLAMA,
    "mistral": MISTRAL,
    "pythonic": PYTHONIC,
    "deepseek": DEEPSEEK,
    "qwen3_coder": QWEN3_CODER,
    "harmony": HARMONY,
    "guided": GUIDED,
}
OUTPUTS = [(family, *entry) for family, corpus in CORPORA.items() for entry in corpus.values()]
IDS = [f"{family}: {name}" for family, corpus in CORPORA.items() for name in corpus]


def test_every_family_has_a_corpus() -> None:
    assert tuple(CORPORA) == FAMILIES
    assert all(len(corpus) >= 15 for corpus in CORPORA.values())


@pytest.mark.parametrize(("family", "output", "expected"), OUTPUTS, ids=IDS)
def test_corpus(family: str, output: str, expected: Expected) -> None:
    assert parsed(family, [output]) == expected
    assert parsed(family, output) == expected
    for size in range(2, 9):
        assert parsed(family, [output[at : at + size] for at in range(0, len(output), size)]) == expected
    assert [type(item) for item in parsed(family, output)] == [type(item) for item in expected]


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(OUTPUTS), st.lists(st.integers(0, 10_000), max_size=12))
def test_random_splits(entry: tuple[str, str, Expected], cuts: list[int]) -> None:
    family, output, expected = entry
    assert parsed(family, split(output, cuts)) == expected


def crumbs(family: str) -> list[str]:
    """What the outputs of a family are made of, to be put together anyhow."""
    texts = [output for output, _ in CORPORA[family].values()]
    return sorted({crumb for text in texts for crumb in re.findall(r"<[^<>]*>|\[[A-Z_]+\]|\w+|\s+|[^\w\s]", text)})


@pytest.mark.parametrize("family", FAMILIES)
@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_anything_at_all(family: str, data: st.DataObject) -> None:
    crumb = st.sampled_from(crumbs(family))
    output = "".join(data.draw(st.lists(st.one_of(crumb, crumb, st.text(max_size=3)), max_size=40)))
    cuts = data.draw(st.lists(st.integers(0, 500), max_size=8))
    whole = parsed(family, [output])
    assert parsed(family, output) == whole
    assert parsed(family, split(output, cuts)) == whole
    json.dumps(whole, ensure_ascii=False).encode()


def test_complete_arguments_are_json() -> None:
    complete = {(family, name) for family, corpus in CORPORA.items() for name in corpus if "cut" not in name}
    for family, name in complete - {("hermes", "a bracket too few")}:
        for item in CORPORA[family][name][1]:
            if isinstance(item, tuple):
                assert isinstance(json.loads(item[1]), dict)


@pytest.mark.parametrize("family", FAMILIES)
def test_ids(family: str) -> None:
    reader = parser(family, TOOLS)
    output = next(output for output, items in CORPORA[family].values() if [*map(type, items)].count(tuple) == 2)
    starts = [piece for piece in [*reader.feed(output), *reader.finish()] if isinstance(piece, CallStart)]
    pattern = r"[A-Za-z0-9]{9}" if family == "mistral" else r"call_[A-Za-z0-9]{24}"
    assert all(re.fullmatch(pattern, start.id) for start in starts)
    assert [start.index for start in starts] == [0, 1]
    assert len({start.id for start in starts}) == 2


HALVES = {
    "hermes": "<tool_cal",
    "llama3_json": "<|python_ta",
    "mistral": "[TOOL_CALLS",
    "pythonic": "<|python_star",
    "deepseek": "<｜tool▁call▁beg",
    "qwen3_coder": "<function",
    "harmony": "<|en",
}


@pytest.mark.parametrize(("family", "half"), HALVES.items())
def test_half_a_tag_is_held_and_text_is_not(family: str, half: str) -> None:
    reader = parser(family, TOOLS)
    assert gathered(reader.feed("Hello " + half)) == ["Hello "]
    assert gathered(reader.feed("?")) == [half + "?"]
    assert reader.finish() == []


STREAMED = {
    "hermes": ('<tool_call>{"name": "f", "arguments": {"s": "ab', '{"s": "ab'),
    "llama3_json": ('{"name": "f", "parameters": {"s": "ab', '{"s": "ab'),
    "mistral": ('[TOOL_CALLS]f[ARGS]{"s": "ab', '{"s": "ab'),
    "pythonic": ("[f(s='ab', n=", '{"s": "ab", "n": '),
    "deepseek": ('<｜tool▁call▁begin｜>f<｜tool▁sep｜>{"s": "ab', '{"s": "ab'),
    "qwen3_coder": ("<tool_call><function=f><parameter=s>ab", '{"s": "ab'),
    "harmony": (TO_F + '{"s": "ab', '{"s": "ab'),
}


@pytest.mark.parametrize(("family", "output", "arguments"), [(name, *pair) for name, pair in STREAMED.items()])
def test_arguments_leave_as_they_come(family: str, output: str, arguments: str) -> None:
    assert gathered(parser(family, TOOLS).feed(output)) == [("f", arguments)]


def test_without_tools_any_name_is_a_call() -> None:
    assert parsed("pythonic", "[zz(n=1)]", None) == [("zz", '{"n": 1}')]
    assert parsed("llama3_json", '{"name": "zz", "parameters": {}}', None) == [("zz", "{}")]
    assert parsed("qwen3_coder", element("f", n="1"), None) == [("f", '{"n": "1"}')]


def test_odd_schemas_do_no_harm() -> None:
    odd: list[object] = [None, [], {"properties": []}, {"properties": {"n": 5}}, {"properties": {"n": {"anyOf": 1}}}]
    for parameters in odd:
        tools = [{"function": {"name": "f", "parameters": parameters}}]
        assert parsed("qwen3_coder", element("f", n="1"), tools) == [("f", '{"n": "1"}')]


def test_unknown_family() -> None:
    with pytest.raises(ValueError, match="no tool parser 'nonsense'; choose one of hermes, llama3_json"):
        parser("nonsense")


# Reasoning

THOUGHTS: dict[str, tuple[str, bool, Expected]] = {
    "both tags": ("<think>\nhm\n\nso\n</think>\n\nHello", False, [Thought("hm\n\nso"), "Hello"]),
    "white space first": ("\n <think>hm</think>Hello\n", False, [Thought("hm"), "Hello\n"]),
    "closing tag only": ("hm\n</think>\n\nHello", True, [Thought("hm"), "Hello"]),
    "opening tag repeated": ("<think>\nhm</think>Hello", True, [Thought("hm"), "Hello"]),
    "no thought": ("<think>\n\n</think>\n\nHello", False, ["Hello"]),
    "none": ("Hello", False, ["Hello"]),
    "white space kept": ("\nHello \n", False, ["\nHello \n"]),
    "cut": ("<think>hm </thi", False, [Thought("hm </thi")]),
    "cut, opened": ("hm", True, [Thought("hm")]),
    "cut in the opening tag": ("<thi", False, ["<thi"]),
    "tags in the text": ("<think>a</think>Use <think>b</think>", False, [Thought("a"), "Use <think>b</think>"]),
    "a tag behind text": ("Use <think>b</think>", False, ["Use <think>b</think>"]),
    "markup in a thought": ("<think>a <b></ </think>c", False, [Thought("a <b></"), "c"]),
    "nothing": ("", False, []),
    "white space only": (" \n", False, [" \n"]),
    "unicode": ("<think>Zürich 🌍</think>é", False, [Thought("Zürich 🌍"), "é"]),
}


def thought(fragments: Iterable[str], **options: Any) -> Expected:
    splitter = ReasoningSplitter(**options)
    pieces = [piece for fragment in fragments for piece in splitter.feed(fragment)]
    return gathered([*pieces, *splitter.finish()])


@pytest.mark.parametrize(("output", "opened", "expected"), THOUGHTS.values(), ids=THOUGHTS)
def test_reasoning(output: str, opened: bool, expected: Expected) -> None:
    for size in range(1, len(output) + 2):
        fragments = [output[at : at + size] for at in range(0, len(output), size)]
        result = thought(fragments, opened=opened)
        assert result == expected
        assert [*map(type, result)] == [*map(type, expected)]


@settings(deadline=None)
@given(st.sampled_from([*THOUGHTS.values()]), st.lists(st.integers(0, 100), max_size=6))
def test_reasoning_in_random_splits(entry: tuple[str, bool, Expected], cuts: list[int]) -> None:
    output, opened, expected = entry
    assert thought(split(output, cuts), opened=opened) == expected


def test_other_reasoning_tags() -> None:
    assert thought("[THINK]a[/THINK]b", begin="[THINK]", end="[/THINK]") == [Thought("a"), "b"]


def test_reasoning_leaves_as_it_comes() -> None:
    splitter = ReasoningSplitter()
    assert splitter.feed("<think>a ") == [Reasoning("a")]
    assert splitter.feed("b</th") == [Reasoning(" b")]
    assert splitter.feed("ink>") == []
    assert splitter.feed("\nc ") == [Text("c ")]
