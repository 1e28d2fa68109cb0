"""Chat templates: each semantic of transformers' renderer with its exact prompt; loading; ways to fail."""

import copy
import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from upstream.template import LONGEST, ChatTemplate, TemplateError

USER = [{"role": "user", "content": "Hi"}]
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
CHAT = (
    "{{ bos_token }}{% for m in messages %}\n"
    "    {% if m.role == 'system' %}\n"
    "[{{ m.content }}]\n"
    "    {% else %}\n"
    "{{ m.role }}: {{ m.content }}\n"
    "    {% endif %}\n"
    "{% endfor %}\n"
    "{% if add_generation_prompt %}assistant: {% endif %}\n"
)
CALL = "{% for m in messages if m.tool_calls %}{{ m.tool_calls[0].function.arguments|tojson }}{% endfor %}"


def prompt(source: str, messages: list[dict[str, Any]] = USER, **options: Any) -> str:
    return ChatTemplate({"default": source}, {"bos_token": "<s>"}).render(messages, **options)


def call(arguments: str, content: object = None) -> list[dict[str, Any]]:
    function = {"name": "weather", "arguments": arguments}
    calls = [{"id": "call_1", "type": "function", "function": function}]
    return [*USER, {"role": "assistant", "content": content, "tool_calls": calls}]


SEMANTICS = {
    "trim and lstrip blocks": (CHAT, "<s>user: Hi\nassistant: "),
    "namespace": (
        "{% set ns = namespace(n=0) %}{% for i in range(3) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}",
        "3",
    ),
    "loop controls": (
        "{% for i in range(9) %}{{ i }}{% if i < 2 %}{% continue %}{% endif %}.{% break %}{% endfor %}",
        "012.",
    ),
    "tojson keeps unicode and HTML": ("{{ {'k': '<é&世>'}|tojson }}", '{"k": "<é&世>"}'),
    "tojson keeps key order": ("{{ {'b': 1, 'a': true}|tojson }}", '{"b": 1, "a": true}'),
    "tojson sort_keys": ("{{ {'b': 1, 'a': none}|tojson(sort_keys=true) }}", '{"a": null, "b": 1}'),
    "tojson indent": ("{{ {'a': [1]}|tojson(indent=2) }}", '{\n  "a": [\n    1\n  ]\n}'),
    "tojson separators": ("{{ {'a': [1, 2]}|tojson(separators=(',', ':')) }}", '{"a":[1,2]}'),
    "tojson ensure_ascii": ("{{ 'é'|tojson(ensure_ascii=true) }}", '"\\u00e9"'),
    "generation is only a scope": (
        "{% generation %}{% set x = 1 %}{{ messages[0].content }}{{ x }}{% endgeneration %}{{ x }}",
        "Hi1",
    ),
    "special tokens": ("{{ bos_token }}|{{ eos_token }}|{{ eos_token is defined }}", "<s>||False"),
    "tools and documents are none": ("{{ tools is none }}{{ documents is none }}", "TrueTrue"),
    "undefined prints nothing": ("a{{ nothing }}b{{ messages[0].nothing }}", "ab"),
    "Python's string methods": ("{{ '%s=%03d' % ('a', 7) }} {{ 'x,y'.split(',')[-1] }}", "a=007 y"),
    "macro": ("{% macro f(a, b='!') %}{{ a }}{{ b }}{% endmacro %}{{ f('x') }}", "x!"),
    "slices and negative indices": ("{{ messages[-1].content[::-1] }}", "iH"),
    "trailing newline is dropped once": ("{{ 1 }}\n\n", "1\n"),
    "whitespace control": ("a \n {{- 1 -}} \n b", "a1b"),
    "dict.fromkeys": ("{{ dict.fromkeys(['a'], 1) }}", "{'a': 1}"),
}


@pytest.mark.parametrize(("source", "expected"), SEMANTICS.values(), ids=SEMANTICS)
def test_semantics(source: str, expected: str) -> None:
    assert prompt(source) == expected


def test_a_conversation() -> None:
    messages = [
        {"role": "system", "content": "S {{ x }} ü"},
        *USER,
        {"role": "assistant", "content": "<b>"},
        *USER,
    ]
    assert prompt(CHAT, messages) == "<s>[S {{ x }} ü]\nuser: Hi\nassistant: <b>\nuser: Hi\nassistant: "


def test_strftime_now_is_local_time() -> None:
    before = datetime.now().strftime("%d %b %Y")  # noqa: DTZ005 - as templates read it
    assert prompt("{{ strftime_now('%d %b %Y') }}") in {before, datetime.now().strftime("%d %b %Y")}  # noqa: DTZ005


def test_variables_of_the_request() -> None:
    source = "{{ enable_thinking }} {{ documents[0].title }} {{ bos_token }} {{ add_generation_prompt }}"
    kwargs = {
        "enable_thinking": False,
        "documents": [{"title": "T"}],
        "bos_token": "B",
        "add_generation_prompt": False,
    }
    assert prompt(source, kwargs=kwargs) == "False T B False"


@pytest.mark.parametrize("name", ["messages", "tools"])
def test_variables_cannot_replace_the_conversation(name: str) -> None:
    with pytest.raises(TemplateError, match=f"must not set {name}"):
        prompt(CHAT, kwargs={name: []})


def test_named_templates() -> None:
    both = ChatTemplate({"default": "plain", "tool_use": "{{ tools[0].function.name }}"})
    assert both.render(USER) == "plain"
    assert both.render(USER, tools=[]) == "plain"
    assert both.render(USER, tools=TOOLS) == "weather"
    assert prompt("{{ tools|tojson }}", tools=TOOLS) == json.dumps(TOOLS)


def test_null_is_absent() -> None:
    source = "{{ messages[0].name is defined }}{{ messages[0].content is defined }}"
    assert prompt(source, [{"role": "user", "content": "", "name": None}]) == "FalseTrue"


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_under_each_of_its_names(name: str) -> None:
    messages = [*USER, {"role": "assistant", "content": "b", name: "why"}]
    assert prompt("{{ messages[1].thinking }} {{ messages[1].reasoning_content }}", messages) == "why why"


PARTS = [{"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}]
ITERATES = "{% for m in messages %}{% for p in m['content'] %}<{{ p.type }}:{{ p.text }}>{% endfor %}{% endfor %}"
MACRO = "{% macro f(content) %}{% for p in content %}{{ p.text }}{% endfor %}{% endmacro %}{{ f(messages[0].content) }}"
FORMATS = {
    "no loop": ("{% for m in messages %}{{ m.content }}{% endfor %}", "string", "one\ntwo"),
    "index": (ITERATES, "openai", "<text:one><text:two>"),
    "attribute and filter": (
        "{% for p in messages[0].content|selectattr('type', 'equalto', 'text') %}{{ p.text }}{% endfor %}",
        "openai",
        "onetwo",
    ),
    "slice": ("{% for p in messages[0].content[1:] %}{{ p.text }}{% endfor %}", "openai", "two"),
    "set": ("{% set c = messages[0].content %}{% for p in c %}{{ p.text }}{% endfor %}", "openai", "onetwo"),
    "macro": (MACRO, "openai", "onetwo"),
    "the words of a string": (
        "{% for w in messages[0].content.split('\\n') %}{{ w }},{% endfor %}",
        "string",
        "one,two,",
    ),
}


@pytest.mark.parametrize(("source", "expected", "rendered"), FORMATS.values(), ids=FORMATS)
def test_content_format(source: str, expected: str, rendered: str) -> None:
    template = ChatTemplate({"default": source})
    assert template.content_format == expected
    assert template.render(PARTS) == rendered


def test_text_for_a_template_that_only_iterates() -> None:
    assert prompt(ITERATES) == "<text:Hi>"
    assert prompt("{% if messages[0].content is string %}text{% else %}" + ITERATES + "{% endif %}") == "text"


def test_media_parts() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    messages = [{"role": "user", "content": [image, {"type": "text", "text": "what?"}]}]
    assert prompt(ITERATES, messages) == "<image:><text:what?>"
    with pytest.raises(TemplateError, match=r"messages\[0\].content: .* text only, no image_url part"):
        prompt(CHAT, messages)


def test_arguments_are_parsed_in_a_copy() -> None:
    messages = call('{"city": "Zürich", "n": [1, null]}')
    before = copy.deepcopy(messages)
    assert prompt(CALL, messages) == '{"city": "Zürich", "n": [1, null]}'
    assert prompt(CALL, call("")) == "{}"
    assert messages == before


@pytest.mark.parametrize("arguments", ['{"a": ', "nonsense", '{"a": "\\ud800"}', "[" * 100_000])
def test_arguments_that_are_not_json(arguments: str) -> None:
    with pytest.raises(TemplateError, match=r"messages\[1\]\.tool_calls\[0\]\.function\.arguments is not valid JSON"):
        prompt(CALL, call(arguments))


CALLS = (
    "{% for m in messages if m.tool_calls %}CONTENT"
    "{% for c in m.tool_calls %}{{ c.function.name ARGS }}{% endfor %}{% endfor %}"
)
SHAPES = {
    "arguments joined to text": ("", "+ c.function.arguments", 'weather{"a":1}'),
    "arguments printed": ("", "}}{{ c.function.arguments", 'weather{"a":1}'),
    "null content is tested": (
        "{% if m['content'] is not none %}{{ m.content + '' }}{% endif %}",
        "",
        "weather",
    ),
    "null content is joined": ("{{ '' + m.content }}", "", "weather"),
    "null content is absent": ("{{ m.content is defined }}", "", "Falseweather"),
}


@pytest.mark.parametrize(("content", "arguments", "expected"), SHAPES.values(), ids=SHAPES)
def test_calls_in_the_shape_that_the_template_writes(content: str, arguments: str, expected: str) -> None:
    source = CALLS.replace("CONTENT", content).replace("ARGS", arguments)
    assert prompt(source, call('{"a":1}')) == expected


def test_continue_final_message() -> None:
    kwargs = {"continue_final_message": True}
    plain = "{% for m in messages %}<{{ m.content }}>{% endfor %}{{ add_generation_prompt }}"
    answer = {"role": "assistant", "content": "Once upon "}
    assert prompt(plain, [*USER, answer], kwargs=kwargs) == "<Hi><Once upon "
    trimmed = plain.replace("m.content", "m.content|trim")
    assert prompt(trimmed, [*USER, answer], kwargs=kwargs) == "<Hi><Once upon"
    parts = [{"role": "assistant", "content": [{"type": "text", "text": "Once"}]}]
    assert prompt(ITERATES, parts, kwargs=kwargs) == "<text:Once"
    for messages, source in (([{"role": "assistant"}], plain), (USER, "nothing")):
        with pytest.raises(TemplateError, match="continue_final_message"):
            prompt(source, messages, kwargs=kwargs)
    with pytest.raises(TemplateError, match="exclude each other"):
        prompt(plain, kwargs=kwargs | {"add_generation_prompt": True})


FAILURES = {
    "raise_exception": ("{{ raise_exception('Roles must alternate.') }}", "^Roles must alternate.$"),
    "undefined attribute": ("{{ messages[0].a.b }}", "has no attribute 'a'"),
    "undefined is joined": ("{{ '' + nothing }}", "'nothing' is undefined"),
    "type error": ("{{ messages[0].content + 1 }}", "TypeError: can only concatenate str"),
    "division by zero": ("{{ 1 // (messages|length - 1) }}", "ZeroDivisionError"),
    "not JSON": ("{{ messages|map('upper')|tojson }}", "not JSON serializable"),
    "unsafe attribute": ("{{ ''.__class__.__mro__ }}", "unsafe"),
    "mutation": ("{{ messages.append(1) }}", "unsafe"),
    "underscored namespace": (
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "cannot be named '__class__'",
    ),
    "recursion": ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "recurses too deeply"),
    "long range": ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
    "long repetition": ("{{ 'a' * 10**9 }}", "more than"),
    "long repetition, the other way": ("{{ 10**9 * ('a',) }}", "more than"),
    "huge power": ("{{ 10 ** (10 ** 9) }}", "more than"),
    "no message": ("{{ raise_exception('') }}", "refuses these messages"),
}


@pytest.mark.parametrize(("source", "message"), FAILURES.values(), ids=FAILURES)
def test_a_failing_template_is_one_clear_sentence(source: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message) as caught:
        prompt(source)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


def test_endless_output_is_stopped() -> None:
    source = "{% if messages|length == 2 %}{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}{% endif %}"
    with pytest.raises(TemplateError, match=f"more than {LONGEST}"):
        prompt(source, USER * 2)


def test_empty_conversation() -> None:
    with pytest.raises(TemplateError, match="at least one message"):
        prompt(CHAT, [])


# Loading


def model(folder: Path, **files: object) -> Path:
    for name, content in files.items():
        file = folder / {"config": "tokenizer_config.json", "tokens": "special_tokens_map.json"}.get(name, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return folder


def test_tokenizer_config(tmp_path: Path) -> None:
    config = {
        "chat_template": "{{ bos_token }}{{ eos_token }}{{ image_token }}{{ pad_token }}{{ add_bos_token }}é",
        "bos_token": {"__type": "AddedToken", "content": "<b>", "lstrip": False},
        "eos_token": "<e>",
        "pad_token": None,
        "add_bos_token": True,
        "extra_special_tokens": {"image_token": "<i>"},
    }
    folder = model(tmp_path, config=config, tokens={"eos_token": "<other>", "pad_token": {"content": "<p>"}})
    assert ChatTemplate.load(folder).render(USER) == "<b><e><i>é"
    assert ChatTemplate.load(folder / "tokenizer_config.json").render(USER) == "<b><e><i>é"


def test_special_tokens_map(tmp_path: Path) -> None:
    folder = model(tmp_path, config={"chat_template": "{{ bos_token }}"}, tokens={"bos_token": {"content": "<b>"}})
    assert ChatTemplate.load(folder).render(USER) == "<b>"


def test_named_templates_of_a_tokenizer_config(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    template = ChatTemplate.load(model(tmp_path, config={"chat_template": named}))
    assert (template.render(USER), template.render(USER, tools=TOOLS)) == ("plain", "tools")


def test_jinja_file_goes_before_the_config(tmp_path: Path) -> None:
    files = {"chat_template.jinja": "{{ bos_token }}new", "chat_templates/tool_use.jinja": "tools"}
    folder = model(tmp_path, config={"chat_template": "old", "bos_token": "<b>"}, **files)
    template = ChatTemplate.load(folder)
    assert (template.render(USER), template.render(USER, tools=TOOLS)) == ("<b>new", "tools")
    assert ChatTemplate.load(folder / "chat_template.jinja").render(USER, tools=TOOLS) == "<b>new"


def test_config_without_a_template_points_to_the_file_beside_it(tmp_path: Path) -> None:
    folder = model(tmp_path, config={"bos_token": "<b>"}, **{"chat_template.jinja": "{{ bos_token }}beside"})
    assert ChatTemplate.load(folder / "tokenizer_config.json").render(USER) == "<b>beside"


def test_chat_template_json(tmp_path: Path) -> None:
    folder = model(
        tmp_path, config={"bos_token": "<b>"}, **{"chat_template.json": {"chat_template": "{{ bos_token }}!"}}
    )
    assert ChatTemplate.load(folder).render(USER) == "<b>!"
    assert ChatTemplate.load(folder / "chat_template.json").render(USER) == "<b>!"


def test_any_file(tmp_path: Path) -> None:
    folder = model(tmp_path, **{"mine.jinja": "mine", "yours.j2": "yours"})
    assert ChatTemplate.load(folder / "mine.jinja").render(USER) == "mine"
    assert ChatTemplate.load(folder / "yours.j2").render(USER) == "yours"


BROKEN: dict[str, tuple[dict[str, object], str]] = {
    "nothing": ({}, "No default chat template at .* name a .jinja file, or a folder"),
    "no template": ({"config": {"bos_token": "<s>"}}, r"No default chat template at .* \(none found\)"),
    "no default": ({"config": {"chat_template": [{"name": "rag", "template": ""}]}}, r"\(only rag found\)"),
    "not JSON": ({"config": "{"}, "Cannot read the chat template"),
    "no object": ({"config": "[]"}, "tokenizer_config.json holds no JSON object"),
    "a number": ({"config": {"chat_template": 7}}, "is a int, no string or list"),
    "an entry without a name": ({"config": {"chat_template": [{}]}}, "Cannot read the chat template .*name"),
    "syntax": (
        {"chat_template.jinja": "a\n{% if %}"},
        "does not compile: default, line 2: Expected an expression",
    ),
    "unknown tag": ({"chat_template.jinja": "{% nonsense %}"}, "unknown tag 'nonsense'"),
    "unknown filter": ({"chat_template.jinja": "{{ 1|nonsense }}"}, "No filter named 'nonsense'"),
}


@pytest.mark.parametrize(("files", "message"), BROKEN.values(), ids=BROKEN)
def test_what_cannot_be_loaded(tmp_path: Path, files: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        ChatTemplate.load(model(tmp_path, **files))
    assert str(tmp_path) in str(caught.value)


def test_a_path_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Cannot read .*gone: there is no such file or folder"):
        ChatTemplate.load(tmp_path / "gone")


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "x.jinja").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="Cannot read the chat template"):
        ChatTemplate.load(tmp_path / "x.jinja")


def test_jinja2_is_imported_only_when_a_template_is_compiled() -> None:
    code = "import sys, upstream.template; sys.exit('jinja2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=False).returncode == 0
