"""The command line as an operator types it: what it prints for people and for programs, and how it refuses."""

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from app import build, serve
from handlers.door.admission import judge
from handlers.ops import commands, values
from scripts.triton import Triton
from store import open_store
from store.accounts import settle
from store.records import Closing, Units, Usage
from tests.gateway import ROOT, Conch

HELP_VERBS = (
    "serve", "check", "get", "migrate", "version", "models", "plans", "workspaces", "keys", "credits", "usage", "audit",
)  # fmt: skip


class Ended(NamedTuple):
    """How a command ended, and what it said."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """The same in this process, which saves starting one."""

    def run_here(*arguments: str) -> Ended:
        try:
            status: Any = commands.run(arguments, build, serve)
        except SystemExit as leaving:
            status = leaving.code
        return Ended(status, *capsys.readouterr())

    return run_here


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """`python app.py …` with these variables and no others."""
    command = [sys.executable, "app.py", *arguments]
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, triton: Triton) -> Conch:
    """A configuration and a store that no server has opened, with the workspace acme on pro."""
    shop = Conch(tmp_path_factory.mktemp("cli"), triton.url)
    shop.workspace("acme", "pro")
    return shop


@pytest.fixture(scope="module")
def key(shop: Conch) -> str:
    """A workspace key of acme."""
    return shop.key("acme")


def test_version_and_help() -> None:
    told = json.loads(run("version", "--json").stdout)
    assert (told["version"], told["built"]) == ("0.1.0", "unknown")
    assert re.match(r"[0-9a-f]{40}|unknown", told["commit"])
    assert run("version").stdout.startswith("version  0.1.0\ncommit   ")
    text = run("--help").stdout
    assert all(re.search(rf"^\s+{verb}\b", text, re.MULTILINE) for verb in HELP_VERBS)


def test_a_key_is_shown_once(shop: Conch) -> None:
    made = shop.command("keys", "create", "--workspace", "acme", "--name", "ci", "--limit", "600", "--expires", "30d")
    assert re.fullmatch(r"rp_live_[0-9a-f]{64}", made["key"])
    assert made["key"].startswith(made["prefix"])
    assert made["expires_at"] - made["created_at"] == pytest.approx(30 * 86_400e6, rel=1e-4)
    assert (made["workspace"], made["name"], made["limit"], made["pipeline"]) == ("acme", "ci", 600, None)
    listed = shop.command("keys", "list", "--workspace", "acme")
    assert {name: value for name, value in made.items() if name != "key"} in listed
    said = json.dumps([listed, shop.command("audit"), shop.command("workspaces", "list")])
    assert made["key"] not in said
    assert made["key"].encode() not in shop.store.read_bytes()


def test_the_audit_tells_every_change(shop: Conch) -> None:
    key = shop.command("keys", "create", "--workspace", "acme")["id"]
    new = shop.command("keys", "rotate", key, "--grace", "1h")["id"]
    shop.command("keys", "revoke", new)
    shop.command("workspaces", "set", "acme", "--ceiling", "700")
    events = shop.command("audit")[:4]
    assert [(event["action"], event["subject"]) for event in events] == [
        ("workspace.set", "acme"),
        ("key.revoke", new),
        ("key.rotate", key),
        ("key.create", key),
    ]
    assert all(event["by"].startswith("cli:") for event in events)
    assert events[0]["details"] == {"ceiling": 700}


def test_tables_for_people(shop: Conch) -> None:
    shop.workspace("zeta", "team", "--ceiling", "6000")
    lines = run("workspaces", "list", "--config", str(shop.config)).stdout.splitlines()
    columns = ["name", "plan", "ceiling", "spend_limit_usd", "credits_low_usd", "credits_usd", "created_at"]
    assert lines[0].split() == columns
    assert re.fullmatch(r"zeta +team +6000 +- +- +0\.00 +\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", lines[-1])
    assert run("keys", "list", "--workspace", "zeta", "--config", str(shop.config)).stdout == "none\n"


def test_credits_are_exact(shop: Conch) -> None:
    shop.workspace("rich")
    shop.command("credits", "grant", "rich", "25")
    shop.command("credits", "grant", "rich", "0.5")
    left = shop.command("credits", "grant", "rich", "0.000000001", "--note", "invoice 7")
    assert left == shop.command("credits", "show", "rich")
    assert (left["credits_usd"], left["held_usd"], left["spent_usd"]) == ("25.500000001", "0.00", "0.00")
    event = shop.command("audit", "--limit", "1")[0]
    assert (event["action"], event["subject"]) == ("credits.grant", "rich")
    assert event["details"] == {"amount_usd": "0.000000001", "note": "invoice 7"}


def test_a_spend_limit_is_set_and_taken_away(shop: Conch) -> None:
    shop.workspace("modest", "pro", "--spend-limit", "99.9")
    assert shop.command("credits", "show", "modest")["spend_limit_usd"] == "99.90"
    assert shop.command("workspaces", "set", "modest", "--spend-limit", "0")["spend_limit_usd"] == "0.00"
    assert shop.command("workspaces", "set", "modest", "--spend-limit", "none")["spend_limit_usd"] is None
    assert [event["details"] for event in shop.command("audit", "--limit", "2")] == [
        {"spend_limit_usd": None},
        {"spend_limit_usd": "0.00"},
    ]


def test_the_audit_by_page(shop: Conch) -> None:
    for name in ("page1", "page2", "page3"):
        shop.workspace(name)
    first = shop.command("audit", "--limit", "2")
    second = shop.command("audit", "--limit", "1", "--after", first[-1]["id"])
    assert [event["subject"] for event in first + second] == ["page3", "page2", "page1"]


async def test_usage_for_people_and_programs(shop: Conch, here: Callable[..., Ended]) -> None:
    store = open_store(f"sqlite:{shop.store}", judge({}))
    shop.workspace("busy")
    shop.command("credits", "grant", "busy", "1")
    for number, model in enumerate(("assistant", "assistant", "voice")):
        now = 1_700_000_000_000_000 + number * 86_400_000_000  # 2023-11-14
        usage = Usage(now, "busy", "key_1", model, Units(1000, 0, 20, 0, 0, 0), cost=1_500_000)
        await store.run(settle([Closing(f"req_{number}", usage=usage)], now))
    await store.close()
    asked = ("usage", "--workspace", "busy", "--config", str(shop.config))
    # In a thread: a command has a loop of its own.
    lines = (await asyncio.to_thread(here, *asked)).stdout.splitlines()
    assert [line.split()[:4] for line in lines[1:3]] == [
        ["busy", "assistant", "2", "0"],
        ["busy", "voice", "1", "0"],
    ]
    assert lines[3].split() == ["total", "3", "0", "3000", "0", "60", "0", "0", "0.0", "0.0045"]
    assert len({len(line) for line in lines}) == 1, "numbers end in line"
    days = shop.command("usage", "--workspace", "busy", "--by", "day", "--since", "2023-11-15", "--until", "2023-11-16")
    assert [(line["day"], line["requests"], line["cost_usd"]) for line in days] == [("2023-11-15", 1, "0.0015")]
    assert shop.command("usage", "--workspace", "busy", "--since", "1d") == []
    assert shop.command("usage", "--key", "key_1", "--model", "voice", "--by", "")[0]["requests"] == 1
    assert shop.command("credits", "show", "busy")["credits_usd"] == "0.9955"


def test_models_and_migrate(shop: Conch) -> None:
    rows = shop.command("models")
    assert [row["id"] for row in rows][:2] == ["assistant", "vllm"]
    assert rows[0]["aliases"] == ["gpt-4o-mini", "acme/assistant"]
    assert shop.command("migrate") == {"applied": []}


def test_check_binds_every_model_against_the_live_server(shop: Conch) -> None:
    done = run("check", "--json", "--config", str(shop.config))
    assert done.returncode == 1, "one model is not there"
    rows = {row["id"]: row for row in json.loads(done.stdout)}
    assert [id for id, row in rows.items() if not row["verified"]] == ["absent"]
    assert "not ready" in rows["absent"]["reason"]
    vllm = rows["vllm"]
    assert (vllm["task"], vllm["reason"], vllm["unknown"]) == ("chat", "", [])
    assert {"text_input", "sampling_parameters", "text_output"} <= set(vllm["bound"])
    assert "embedding_request" in vllm["unbound"]
    assert not set(vllm["bound"]) & set(vllm["unbound"])


def test_check_for_people(shop: Conch) -> None:
    done = run("check", "--config", str(shop.config))
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert any(line.split() == ["vllm", "chat", "verified"] for line in lines)
    place = next(at for at, line in enumerate(lines) if line.split() == ["absent", "chat", "NOT", "VERIFIED"])
    assert lines[place + 1].split()[0] == "why"


def test_check_without_a_server(shop: Conch) -> None:
    nowhere = {"CONCH_UPSTREAMS__LOCAL__URLS": "http://127.0.0.1:9"}
    done = run("check", "--json", "--config", str(shop.config), **nowhere)
    assert done.returncode == 1
    assert all("127.0.0.1:9" in row["reason"] for row in json.loads(done.stdout))
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("path", "status", "found"),
    [
        ("/healthz", 0, {"status": "ok"}),
        ("/readyz", 0, {"status": "ok"}),
        ("/v1/pipe_sales/models", 0, {"object": "list"}),
        ("/v1/models/acme%2Fassistant", 0, {"object": "model", "id": "assistant"}),
        ("v1/models", 0, {"object": "list"}),
        ("/v1/nothing", 1, {"error": {"code": "unknown_route"}}),
        ("/v1/models/nothing", 1, {"error": {"code": "model_not_found"}}),
    ],
)
def test_get_answers_as_the_gateway_would(
    shop: Conch,
    key: str,
    here: Callable[..., Ended],
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    status: int,
    found: dict[str, Any],
) -> None:
    monkeypatch.setenv("CONCH_API_KEY", key)
    done = here("get", path, "--config", str(shop.config))
    assert done.returncode == status, done.stderr
    answer = json.loads(done.stdout)
    for name, value in found.items():
        assert answer[name].items() >= value.items() if isinstance(value, dict) else answer[name] == value


def test_get_without_a_key(shop: Conch) -> None:
    done = run("get", "/v1/models", "--config", str(shop.config))
    assert (done.returncode, json.loads(done.stdout)["error"]["code"]) == (1, "invalid_api_key")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["workspaces", "create", "acme", "--plan", "pro"], "exists already"),
        (["workspaces", "create", "new", "--plan", "gold"], "no plan 'gold'; there are: enterprise, pro"),
        (["workspaces", "set", "acme"], "nothing to change: give a plan, a ceiling, a spend limit or a threshold"),
        (["workspaces", "set", "nobody", "--plan", "pro"], "no workspace 'nobody'"),
        (["keys", "create", "--workspace", "nobody"], "no workspace 'nobody'"),
        (["keys", "create", "--workspace", "acme", "--limit", "1001"], "over the ceiling"),
        (["keys", "create", "--workspace", "acme", "--pipeline", "pipe_other"], "no pipeline 'pipe_other'"),
        (["keys", "create", "--workspace", "acme", "--model", "nothing"], "no model 'nothing'"),
        (["keys", "list", "--workspace", "nobody"], "no workspace 'nobody'"),
        (["keys", "rotate", "key_nothing"], "no key 'key_nothing'"),
        (["keys", "revoke", "key_nothing"], "no key 'key_nothing'"),
        (["keys", "create", "--workspace", "acme", "--name", "a\x1b[31m"], "at most 200 printable characters"),
        (["credits", "grant", "nobody", "1"], "no workspace 'nobody'"),
        (["credits", "grant", "acme", "0.00"], "more than nothing"),
        (["credits", "show", "nobody"], "no workspace 'nobody'"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    shop: Conch, here: Callable[..., Ended], arguments: list[str], says: str
) -> None:
    done = here(*arguments, "--config", str(shop.config))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("conch: ")
    assert says in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "VERB"),
        (["dance"], "invalid choice: 'dance'"),
        (["keys", "create"], "--workspace"),
        (["keys", "create", "--workspace", "acme", "--limit", "0"], "'0' is not a whole number from 1"),
        (["keys", "create", "--workspace", "acme", "--expires", "soon"], "neither a span"),
        (["keys", "create", "--workspace", "acme", "--expires", "2020-01-01"], "in the past"),
        (["keys", "create", "--workspace", "acme", "--expires", "9999-12-31T23:59:59-12:00"], "after the year 2999"),
        (["keys", "create", "--workspace", "acme", "--expires", "0001-01-01T00:00:00+14:00"], "in the past"),
        (["keys", "create", "--workspace", "acme", "--expires", "999999999999d"], "longer than 36500d"),
        (["keys", "create", "--workspace", "acme", "--limit", "10000000001"], "more than 10000000000"),
        (["workspaces", "create", "new", "--plan", "pro", "--ceiling", "10000000001"], "more than 10000000000"),
        (["workspaces", "create", "a b", "--plan", "pro"], "begin with a letter or digit"),
        (["workspaces", "create", ".a", "--plan", "pro"], "begin with a letter or digit"),
        (["workspaces", "create", "a" * 65, "--plan", "pro"], "1 to 64"),
        (["keys", "rotate", "x", "--grace", "99999999999d"], "longer than 36500d"),
        (["keys", "rotate", "x", "--grace", "9999999d"], "longer than 36500d"),
        (["keys", "rotate", "x", "--grace", "1y"], "not a span"),
        (["credits", "grant", "acme", "ten"], "'ten' is not an amount of dollars"),
        (["credits", "grant", "acme", "0.0000000001"], "at most nine decimals"),
        (["credits", "grant", "acme", "10000001"], "more than 10000000 dollars"),
        (["workspaces", "set", "acme", "--spend-limit", "-1"], "not an amount of dollars"),
        (["usage", "--by", "day,hour"], "not some of day, workspace, key, model"),
        (["usage", "--since", "lately"], "neither a span"),
        (["audit", "--limit", "0"], "not a whole number from 1 to 100000"),
    ],
)
def test_what_is_not_understood_is_a_usage_error(here: Callable[..., Ended], arguments: list[str], says: str) -> None:
    done = here(*arguments)
    assert done.returncode == 2
    assert "usage: conch" in done.stderr
    assert says in done.stderr


def test_a_configuration_that_cannot_be_used(tmp_path: Path) -> None:
    for arguments in (["--config", str(tmp_path / "none.toml")], ["--env", "moon"]):
        done = run("serve", *arguments)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert done.stderr.startswith("conch: ")


@pytest.mark.parametrize("verb", [["serve"], ["keys", "list"], ["migrate"], ["get", "/healthz"]])
@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"CONCH_STORE__URL": "sqlite:app.py/x.db"}, "its folder is a file"),
        ({"CONCH_STORE__URL": "sqlite:/proc/x.db"}, "/proc/x.db cannot be made"),
        ({"CONCH_UPSTREAMS__LOCAL__URLS": "triton:8000"}, "'triton:8000' is no address such as http://host:8000"),
    ],
)
def test_a_place_that_cannot_be_used(verb: list[str], variables: dict[str, str], says: str) -> None:
    done = run(*verb, **{"CONCH_SERVER__PORT": "0", **variables})
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
    assert says in done.stderr


def test_a_port_that_is_taken(shop: Conch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = run("serve", "--config", str(shop.config), CONCH_SERVER__PORT=str(port))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert f"cannot listen on 127.0.0.1:{port} (Address already in use)" in done.stderr
    assert "CONCH_SERVER__PORT" in done.stderr


def test_a_time_beyond_the_calendar_can_still_be_listed(
    shop: Conch, here: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    beyond = 253_402_343_999_000_000  # 9999-12-31T23:59:59-12:00, which earlier versions took
    monkeypatch.setattr(values, "expiry", lambda text: beyond)
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    made = here("keys", "create", "--workspace", "acme", "--expires", "x", "--config", str(shop.config))
    assert (made.returncode, str(beyond) in made.stdout) == (0, True)
    listed = here("keys", "list", "--workspace", "acme", "--config", str(shop.config))
    assert (listed.returncode, str(beyond) in listed.stdout) == (0, True)
    assert shop.command("audit")[0]["by"] == "cli:uid 54321"
