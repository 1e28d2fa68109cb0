"""The two nginx configurations of a bench run: a static "Triton", and a proxy to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.models import (
    ANSWER,
    CHAT,
    COMPLETION_TOKENS,
    EVENTS,
    PACED,
    PROMPT_TOKENS,
    STATIC,
    WORD,
    Model,
    as_json,
    reply,
)

# Without a master it never switches user, so the folder may be private. Connections never end by count, and no body
# of a scenario goes through a file.
_FRAME = """
daemon off;
master_process off;
pid nginx.pid;
error_log stderr error;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  default_type application/json;
  keepalive_requests 1000000000;
  client_max_body_size 16m;
  client_body_buffer_size 4m;
  client_body_temp_path body;
  proxy_temp_path proxy;
  fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi;
  scgi_temp_path scgi;
{servers}
}}
"""


def triton(port: int, folder: Path) -> str:
    """nginx.conf of a Triton that is always ready and always gives the same answers; streams are chunked.

    What its models infer is written into `folder`.
    """
    # Events by variable: a parameter of nginx.conf holds 4 KiB. sub_filter only takes the length away.
    return _FRAME.format(
        servers=f"""
  open_file_cache max=16;
  sendfile on;
  tcp_nopush on;
  server {{
    listen 127.0.0.1:{port};
    root {folder};
    set $event '{_event(WORD, "None")}';
    set $last '{_event(WORD, "stop")}';
    location = /v2/health/live {{ return 200; }}
    location = /v2/health/ready {{ return 200; }}
{"".join(_model(model, folder) for model in STATIC)}
    location = {CHAT.path}/generate {{ return 200 '{reply(CHAT.name, ANSWER, "stop", COMPLETION_TOKENS)}'; }}
    location = {CHAT.path}/generate_stream {{
      default_type 'text/event-stream; charset=utf-8';
      sub_filter_types *;
      sub_filter '<never>' '';
      return 200 '{"$event" * (EVENTS - 1)}$last';
    }}
    location = /v1/chat/completions {{ return 200 '{_completion()}'; }}
    set $chunk '{_chunk({"content": WORD}, None)}';
    set $end '{_chunk({}, "stop")}data: [DONE]\n\n';
    location = /stream/v1/chat/completions {{
      default_type 'text/event-stream; charset=utf-8';
      sub_filter_types *;
      sub_filter '<never>' '';
      return 200 '{"$chunk" * EVENTS}$end';
    }}
  }}"""
    )


def proxy(port: int, upstream: int, replayer: int) -> str:
    """nginx.conf of the yardstick: passes all to the static Triton or the replayer, by port, connections kept."""
    return _FRAME.format(
        servers=f"""
  upstream triton {{ server 127.0.0.1:{upstream}; keepalive 128; keepalive_requests 1000000000; }}
  upstream replayer {{ server 127.0.0.1:{replayer}; keepalive 128; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port};
    proxy_http_version 1.1;
    proxy_set_header Connection '';
    location / {{ proxy_pass http://triton; }}
    location = {CHAT.path}/generate_stream {{ proxy_buffering off; proxy_pass http://triton; }}
    location {PACED.path}/ {{ proxy_buffering off; proxy_pass http://replayer; }}
  }}"""
    )


def _model(model: Model, folder: Path) -> str:
    """What every model answers, and the file that its /infer gives: a static file takes no POST, so it is an error."""
    said = f"""
    location = {model.path}/ready {{ return 200; }}
    location = {model.path} {{ return 200 '{model.metadata()}'; }}
    location = {model.path}/config {{ return 200 '{model.config()}'; }}"""
    if model.answer is None:
        return said
    length, body = model.infer()
    (folder / model.name).write_bytes(body)
    return f"""{said}
    location = {model.path}/infer {{ error_page 405 =200 /{model.name}; return 405; }}
    location = /{model.name} {{
      internal;
      default_type application/octet-stream;
      add_header Inference-Header-Content-Length {length};
    }}"""


def _event(text: str, finish: str) -> str:
    return f"data: {reply(CHAT.name, text, finish, 1)}\\n\\n"


def _completion() -> str:
    """OpenAI's answer, for gateways that stand in front of OpenAI."""
    choice = {"index": 0, "message": {"role": "assistant", "content": ANSWER}, "finish_reason": "stop"}
    total = PROMPT_TOKENS + COMPLETION_TOKENS
    usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": COMPLETION_TOKENS, "total_tokens": total}
    return _openai("chat.completion", choice, usage=usage)


def _chunk(delta: dict[str, str], finish: str | None) -> str:
    chunk = _openai("chat.completion.chunk", {"index": 0, "delta": delta, "finish_reason": finish})
    return f"data: {chunk}\\n\\n"


def _openai(object: str, choice: dict[str, Any], **more: Any) -> str:
    return as_json(id="chatcmpl-1", object=object, created=1, model=CHAT.name, choices=[choice], **more)
