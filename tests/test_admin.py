"""/admin as its operator calls it: every route, with the token and without, right and wrong, on a running gateway."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

import app
from handlers.door.admission import judge
from handlers.door.gateway import VERSION
from scripts.triton import Triton
from store import open_store
from store.accounts import settle
from store.records import Closing, Failure, Units, Usage
from tests.gateway import Conch
from tests.raw import Answer, Wire, await_true, bearer, quiet, script
from tests.stores import new_database, written

TOKEN = "operator's secret, with spaces and ü"
DAY = 86_400_000_000
START = 20_000 * DAY  # 2024-10-04

# Every route, with a body that it takes.
ROUTES: list[tuple[str, str, Any]] = [
    ("GET", "/workspaces", None),
    ("POST", "/workspaces", {"name": "beta", "plan": "pro"}),
    ("GET", "/workspaces/acme", None),
    ("PATCH", "/workspaces/acme", {"plan": "pro"}),
    ("GET", "/workspaces/acme/credits", None),
    ("POST", "/workspaces/acme/credits", {"amount_usd": "1"}),
    ("GET", "/workspaces/acme/grants", None),
    ("GET", "/keys", None),
    ("POST", "/keys", {"workspace": "acme"}),
    ("GET", "/keys/key_none", None),
    ("POST", "/keys/key_none/rotate", {}),
    ("POST", "/keys/key_none/revoke", None),
    ("GET", "/webhooks", None),
    ("POST", "/webhooks", {"url": "https://example.com/"}),
    ("GET", "/webhooks/wh_none", None),
    ("PATCH", "/webhooks/wh_none", {"enabled": True}),
    ("DELETE", "/webhooks/wh_none", None),
    ("POST", "/webhooks/wh_none/rotate", {}),
    ("POST", "/webhooks/wh_none/test", None),
    ("GET", "/deliveries", None),
    ("POST", "/deliveries/dlv_none/resend", None),
    ("GET", "/plans", None),
    ("GET", "/usage", None),
    ("GET", "/requests", None),
    ("GET", "/audit", None),
    ("GET", "/models", None),
    ("GET", "/deployments", None),
    ("GET", "/about", None),
]
LISTS = [path for method, path, _ in ROUTES if method == "GET" and path.count("/") == 1 and path != "/about"]


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> str:
    """The URL of the shop's database."""
    return new_database(request.param, request)


@pytest.fixture(scope="module")
def shop(triton: Triton, database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Conch]:
    """A gateway with an admin token, and the workspaces acme (pro) and free (starter)."""
    conch = Conch(tmp_path_factory.mktemp("admin"), triton.url, grpc=triton.grpc_url)
    conch.config.write_text(conch.config.read_text().replace(f"sqlite:{conch.store}", database))
    with conch.running(CONCH_ADMIN_TOKEN=TOKEN, CONCH_STORE__URL=database):
        for name, plan in (("acme", "pro"), ("free", "starter")):
            done(conch, "POST", "/workspaces", {"name": name, "plan": plan})
        yield conch
        quiet(conch, make_key(conch)["key"])


def ask(conch: Conch, method: str, path: str, body: Any = None, **headers: str) -> Answer:
    """One call under /admin, with the token unless `headers` say otherwise."""
    sent = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    with Wire(conch.url) as wire:
        token = TOKEN.encode().decode("latin-1")  # as it goes over the wire
        text = headers or {"authorization": f"Bearer {token}"}
        lines = "".join(f"{name}: {value}\r\n" for name, value in text.items() if value)
        head = f"{method} /admin{path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(sent)}\r\n{lines}\r\n"
        wire.send(head.encode("latin-1") + sent)
        return wire.answer(method)


def done(conch: Conch, method: str, path: str, body: Any = None) -> Any:
    """What a call answered that is to succeed."""
    answer = ask(conch, method, path, body)
    assert answer.status == 200, answer
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    assert not any(name.startswith("x-ratelimit") for name in answer.headers)
    return answer.json


def make_key(conch: Conch, **fields: Any) -> dict[str, Any]:
    key: dict[str, Any] = done(conch, "POST", "/keys", {"workspace": "acme", **fields})
    return key


def models(conch: Conch, key: str) -> int:
    """The status of GET /v1/models with a key."""
    with Wire(conch.url) as wire:
        wire.request("GET", "/v1/models", **bearer(key))
        return wire.answer().status


def pages(conch: Conch, path: str, limit: int) -> list[list[dict[str, Any]]]:
    """The whole list, page by page."""
    found = []
    cursor = ""
    while True:
        page = done(conch, "GET", f"{path}{'&' if '?' in path else '?'}limit={limit}{cursor}")
        assert page.keys() == {"object", "data", "has_more", "next"}
        assert page["object"] == "list"
        assert page["has_more"] == (page["next"] is not None)
        found.append(page["data"])
        if not page["has_more"]:
            return found
        cursor = f"&after={page['next']}"


# The door


def test_the_table_is_complete() -> None:
    def shape(path: str) -> tuple[str, int]:
        return path.split("/")[1], path.count("/")

    assert [(method, shape(path)) for method, path, _ in app.ADMIN] == [
        (method, shape(path)) for method, path, _ in ROUTES
    ]


@pytest.mark.parametrize(("method", "path", "body"), ROUTES)
def test_nobody_passes_without_the_token(shop: Conch, method: str, path: str, body: Any) -> None:
    key = "rp_live_" + "0" * 64
    for header in (
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        f"Bearer {key}",
        f"Basic {TOKEN}",
        TOKEN,
        f"Bearer {TOKEN}x",
    ):
        answer = ask(shop, method, path, body, authorization=header.replace("ü", "u"))
        error = answer.error(401)
        assert (error["type"], error["code"]) == ("authentication_error", "invalid_admin_token")
        assert answer.headers["www-authenticate"] == 'Bearer realm="admin"'
        assert not any(name.startswith("x-ratelimit") for name in answer.headers)


def test_a_key_is_no_admin_token_and_the_token_no_key(shop: Conch) -> None:
    key = make_key(shop)["key"]
    ask(shop, "GET", "/keys", authorization=f"Bearer {key}").error(401)
    assert models(shop, "operator") == 401


def test_a_strangers_body_is_not_waited_for(shop: Conch) -> None:
    with Wire(shop.url) as wire:
        wire.send(b"POST /admin/workspaces HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n")
        wire.answer().error(401)


@pytest.mark.parametrize("variables", [{}, {"CONCH_ADMIN_TOKEN": ""}, {"CONCH_ADMIN_TOKEN": " "}])
def test_without_a_token_there_is_no_admin(tmp_path_factory: Any, triton: Triton, variables: dict[str, str]) -> None:
    conch = Conch(tmp_path_factory.mktemp("off"), triton.url)
    with conch.running(**variables):
        for header in ("", "Bearer ", "Bearer x"):
            for method, path, body in [*ROUTES, ("GET", "", None), ("GET", "/nothing", None)]:
                error = ask(conch, method, path, body, authorization=header).error(404)
                assert error["message"].startswith(f"There is nothing at {method} /admin{path};")
                assert error["code"] == "unknown_route"


# Workspaces, plans, credits


def test_a_workspace_from_first_to_last(shop: Conch) -> None:
    made = done(
        shop,
        "POST",
        "/workspaces",
        {"name": "delta", "plan": "team", "ceiling": 7000, "spend_limit_usd": "0.000000001"},
    )
    assert made.pop("created_at") / 1e6 == pytest.approx(time.time(), abs=60)
    assert made == {
        "name": "delta",
        "plan": "team",
        "ceiling": 7000,
        "spend_limit_usd": "0.000000001",
        "credits_low_usd": None,
        "credits_usd": "0.00",
    }
    changed = done(shop, "PATCH", "/workspaces/delta", {"plan": "pro", "ceiling": None, "spend_limit_usd": "12.5"})
    assert (changed["plan"], changed["ceiling"], changed["spend_limit_usd"]) == ("pro", None, "12.50")
    assert done(shop, "PATCH", "/workspaces/delta", {"spend_limit_usd": None})["spend_limit_usd"] is None
    assert done(shop, "PATCH", "/workspaces/delta", {"credits_low_usd": "2.5"})["credits_low_usd"] == "2.50"
    assert done(shop, "PATCH", "/workspaces/delta", {"credits_low_usd": None})["credits_low_usd"] is None
    shown = done(shop, "GET", "/workspaces/delta")
    assert (shown["plan"], shown["spend_limit_usd"]) == ("pro", None)
    assert shown in done(shop, "GET", "/workspaces?limit=1000")["data"]


def test_credits(shop: Conch) -> None:
    done(shop, "POST", "/workspaces", {"name": "gamma", "plan": "pro", "spend_limit_usd": "100"})
    done(shop, "POST", "/workspaces/gamma/credits", {"amount_usd": "24.999900000", "note": "first"})
    after = done(shop, "POST", "/workspaces/gamma/credits", {"amount_usd": "0.000000001"})
    assert after == {
        "workspace": "gamma",
        "credits_usd": "24.999900001",
        "held_usd": "0.00",
        "month": time.strftime("%Y-%m", time.gmtime()),
        "spent_usd": "0.00",
        "spend_limit_usd": "100.00",
    }
    assert done(shop, "GET", "/workspaces/gamma/credits") == after == shop.command("credits", "show", "gamma")
    assert done(shop, "GET", "/workspaces/gamma")["credits_usd"] == "24.999900001"


def test_plans(shop: Conch) -> None:
    plans = {plan["name"]: plan for plan in done(shop, "GET", "/plans")["data"]}
    assert plans["starter"]["keys"] is False
    assert plans["pro"] == {
        "name": "pro",
        "default": 500,
        "ceiling": 1000,
        "burst": None,
        "concurrency": None,
        "spend_limit_usd": None,
        "keys": True,
    }
    assert list(plans.values()) == shop.command("plans")


def test_grants_the_newest_first(shop: Conch) -> None:
    done(shop, "POST", "/workspaces", {"name": "granted", "plan": "pro"})
    assert done(shop, "GET", "/workspaces/granted/grants")["data"] == []
    for amount in ("1", "2.5", "0.000000001"):
        done(shop, "POST", "/workspaces/granted/credits", {"amount_usd": amount, "note": f"of {amount}"})
    found = [grant for page in pages(shop, "/workspaces/granted/grants", 2) for grant in page]
    assert [(grant["amount_usd"], grant["note"]) for grant in found] == [
        ("0.000000001", "of 0.000000001"),
        ("2.50", "of 2.5"),
        ("1.00", "of 1"),
    ]
    assert {grant["by"] for grant in found} == {"admin:127.0.0.1"}
    assert found[0]["at"] / 1e6 == pytest.approx(time.time(), abs=60)
    ask(shop, "GET", "/workspaces/nobody/grants").error(404, param="name")


def test_what_the_dashboard_has_to_know(shop: Conch) -> None:
    about = done(shop, "GET", "/about")
    assert (about["version"], about["api_url"]) == (VERSION, None)
    assert {"id": "pipe_sales", "workspace": "acme", "models": {"chat": "vllm"}} in about["pipelines"]
    known = {model["id"]: model for model in about["models"]}
    assert (known["private"]["task"], known["private"]["workspaces"]) == ("chat", ["other"])
    assert known["voice"]["voices"] == ["alloy", "nova", "onyx", "storyteller"]


# Keys


def test_a_key_works_at_once_until_it_is_revoked(shop: Conch) -> None:
    made = make_key(shop, name="ci", limit=600, models=["vllm"], pipeline="pipe_support", expires="30d")
    secret = made.pop("key")
    assert secret.startswith(made["prefix"])
    assert made["expires_at"] - made["created_at"] == pytest.approx(30 * DAY, rel=1e-4)
    assert (made["limit"], made["models"], made["pipeline"]) == (600, ["vllm"], "pipe_support")
    assert "bucket" not in made
    assert done(shop, "GET", f"/keys/{made['id']}") == made
    assert models(shop, secret) == 200
    revoked = done(shop, "POST", f"/keys/{made['id']}/revoke")
    assert revoked["revoked_at"] / 1e6 == pytest.approx(time.time(), abs=60)
    assert models(shop, secret) == 401
    assert done(shop, "POST", f"/keys/{made['id']}/revoke") == revoked


def test_rotation(shop: Conch) -> None:
    first = make_key(shop)
    second = done(shop, "POST", f"/keys/{first['id']}/rotate")  # no body: 24 hours of grace
    assert second["rotated_from_id"] == first["id"]
    assert [models(shop, key["key"]) for key in (first, second)] == [200, 200]
    old = done(shop, "GET", f"/keys/{first['id']}")
    assert old["expires_at"] / 1e6 - time.time() == pytest.approx(86_400, abs=60)
    third = done(shop, "POST", f"/keys/{second['id']}/rotate", {"grace": "0s"})
    assert [models(shop, key["key"]) for key in (first, second, third)] == [200, 401, 200]
    error = ask(shop, "POST", f"/keys/{second['id']}/rotate", {}).error(409, param="id")
    assert error["code"] == "conflict"


def test_no_key_without_a_plan_that_has_them(shop: Conch) -> None:
    error = ask(shop, "POST", "/keys", {"workspace": "free"}).error(403, param="workspace")
    assert (error["type"], error["code"]) == ("permission_denied", "plan_required")
    done(shop, "PATCH", "/workspaces/free", {"ceiling": 100})
    assert ask(shop, "POST", "/keys", {"workspace": "free"}).error(403, param="workspace") == error
    done(shop, "POST", "/workspaces", {"name": "fallen", "plan": "pro"})
    key = make_key(shop, workspace="fallen")
    done(shop, "PATCH", "/workspaces/fallen", {"plan": "starter"})
    assert models(shop, key["key"]) == 403
    error = ask(shop, "POST", f"/keys/{key['id']}/rotate", {}).error(403, param="workspace")
    assert error["code"] == "plan_required"


# What is wrong


@pytest.mark.parametrize(
    ("method", "path", "body", "param", "code"),
    [
        ("POST", "/workspaces", b"", None, "invalid_json"),
        ("POST", "/workspaces", b"{", None, "invalid_json"),
        ("POST", "/workspaces", [], None, "invalid_value"),
        ("POST", "/workspaces", {"plan": "pro"}, "name", "missing_required_parameter"),
        ("POST", "/workspaces", {"name": "x"}, "plan", "missing_required_parameter"),
        ("POST", "/workspaces", {"name": "a b", "plan": "pro"}, "name", "invalid_value"),
        ("POST", "/workspaces", {"name": "x", "plan": "gold"}, "plan", "plan_not_found"),
        ("POST", "/workspaces", {"name": "x", "plan": "pro", "ceiling": 0}, "ceiling", "invalid_value"),
        ("POST", "/workspaces", {"name": "x", "plan": "pro", "ceiling": 10**10 + 1}, "ceiling", "invalid_value"),
        (
            "POST",
            "/workspaces",
            {"name": "x", "plan": "pro", "spend_limit_usd": "-1"},
            "spend_limit_usd",
            "invalid_value",
        ),
        ("POST", "/workspaces", {"name": "x", "plan": "pro", "color": 1}, "color", "unknown_parameter"),
        ("PATCH", "/workspaces/acme", {}, None, "nothing_to_change"),
        ("PATCH", "/workspaces/acme", {"plan": None}, "plan", "invalid_value"),
        ("PATCH", "/workspaces/acme", {"plan": "gold"}, "plan", "plan_not_found"),
        ("PATCH", "/workspaces/acme", {"name": "new"}, "name", "unknown_parameter"),
        ("PATCH", "/workspaces/acme", {"spend_limit_usd": 5}, "spend_limit_usd", "invalid_value"),
        ("POST", "/workspaces/acme/credits", {}, "amount_usd", "missing_required_parameter"),
        ("POST", "/workspaces/acme/credits", {"amount_usd": 5}, "amount_usd", "invalid_value"),
        ("POST", "/workspaces/acme/credits", {"amount_usd": "0"}, "amount_usd", "invalid_value"),
        ("POST", "/workspaces/acme/credits", {"amount_usd": "-5"}, "amount_usd", "invalid_value"),
        ("POST", "/workspaces/acme/credits", {"amount_usd": "1e3"}, "amount_usd", "invalid_value"),
        ("POST", "/workspaces/acme/credits", {"amount_usd": "٣"}, "amount_usd", "invalid_value"),
        ("POST", "/workspaces/acme/credits", {"amount_usd": "0.0000000001"}, "amount_usd", "invalid_value"),
        ("POST", "/workspaces/acme/credits", {"amount_usd": "10000000.01"}, "amount_usd", "invalid_value"),
        ("POST", "/workspaces/acme/credits", {"amount_usd": "1", "note": "a\u0000"}, "note", "invalid_value"),
        ("POST", "/workspaces/acme/credits", {"amount_usd": "1", "note": "a" * 1001}, "note", "invalid_value"),
        ("POST", "/keys", {}, "workspace", "missing_required_parameter"),
        ("POST", "/keys", {"workspace": "nobody"}, "workspace", "workspace_not_found"),
        ("POST", "/keys", {"workspace": "a\u0000"}, "workspace", "invalid_value"),
        ("POST", "/keys", {"workspace": "a" * 9999}, "workspace", "invalid_value"),
        ("POST", "/keys", {"workspace": "acme", "pipeline": "a" * 9999}, "pipeline", "pipeline_not_found"),
        ("POST", "/keys", {"workspace": "acme", "models": ["a" * 9999]}, "models", "model_not_found"),
        ("POST", "/workspaces", {"name": "a" * 9999, "plan": "pro"}, "name", "invalid_value"),
        ("POST", "/workspaces", {"name": "x", "plan": "a" * 9999}, "plan", "plan_not_found"),
        ("POST", "/keys", {"workspace": "acme", "limit": 1001}, "limit", "over_ceiling"),
        ("POST", "/keys", {"workspace": "acme", "limit": 0}, "limit", "invalid_value"),
        ("POST", "/keys", {"workspace": "acme", "pipeline": "pipe_other"}, "pipeline", "pipeline_not_found"),
        ("POST", "/keys", {"workspace": "acme", "models": ["nothing"]}, "models", "model_not_found"),
        ("POST", "/keys", {"workspace": "acme", "models": "vllm"}, "models", "invalid_value"),
        ("POST", "/keys", {"workspace": "acme", "expires": "soon"}, "expires", "invalid_value"),
        ("POST", "/keys", {"workspace": "acme", "expires": "2020-01-01"}, "expires", "invalid_value"),
        ("POST", "/keys", {"workspace": "acme", "name": "a\nb"}, "name", "invalid_value"),
        ("POST", "/keys", {"workspace": "acme", "name": "a" * 201}, "name", "invalid_value"),
        ("POST", "/keys/key_none/rotate", {"grace": "1y"}, "grace", "invalid_value"),
        ("POST", "/keys/key_none/rotate", {"force": True}, "force", "unknown_parameter"),
        ("GET", "/keys?workspace=nobody", None, "workspace", "workspace_not_found"),
        ("GET", "/keys?workspace=%00", None, "workspace", "invalid_value"),
        ("GET", "/usage?by=colour", None, "by", "invalid_value"),
        ("GET", "/usage?by=day,day", None, "by", "invalid_value"),
        ("GET", "/usage?since=yesterday", None, "since", "invalid_value"),
        ("GET", "/usage?until=0000-01-01", None, "until", "invalid_value"),
        ("GET", "/usage?after=x", None, "after", "invalid_value"),
        ("GET", "/requests?after=WyJ4IiwieCJd", None, "after", "invalid_value"),
        ("GET", "/requests?after=WzFlOTksIngiXQ", None, "after", "invalid_value"),
        ("GET", "/requests?model=%00", None, "model", "invalid_value"),
        ("GET", "/models?after=nothing", None, "after", "invalid_value"),
        *[
            ("GET", f"{path}?limit={wrong}", None, "limit", "invalid_value")
            for path in LISTS
            for wrong in (0, 1001, "x")
        ],
        *[("GET", f"{path}?colour=red", None, "colour", "unknown_parameter") for path in LISTS],
        *[("GET", f"{path}?after=%00", None, "after", "invalid_value") for path in LISTS],
    ],
)
def test_what_is_wrong_is_named(shop: Conch, method: str, path: str, body: Any, param: str | None, code: str) -> None:
    error = ask(shop, method, path, body).error(400, param=param)
    assert (error["type"], error["code"]) == ("invalid_request_error", code)


@pytest.mark.parametrize(("method", "path", "body"), [route for route in ROUTES if route[1].count("/") > 1])
@pytest.mark.parametrize("name", ["nobody", "%00", "%F0%9F%90%9A", "a" * 3000])
def test_what_is_not_there(shop: Conch, method: str, path: str, body: Any, name: str) -> None:
    path = path.replace("acme", name).replace("key_none", name)
    error = ask(shop, method, path, body).error(404, param="name" if "workspaces" in path else "id")
    assert error["code"] == "not_found"


def test_a_name_is_taken_once(shop: Conch) -> None:
    error = ask(shop, "POST", "/workspaces", {"name": "acme", "plan": "team"}).error(409, param="name")
    assert error["code"] == "conflict"
    assert done(shop, "GET", "/workspaces/acme")["plan"] == "pro"


def test_a_wrong_method(shop: Conch) -> None:
    answer = ask(shop, "DELETE", "/workspaces/acme")
    answer.error(405)
    assert answer.headers["allow"] == "GET, HEAD, PATCH"
    assert ask(shop, "PATCH", "/workspaces/acme", {"plan": "pro"}).status == 200


# Lists


def test_25_keys_by_page(shop: Conch) -> None:
    done(shop, "POST", "/workspaces", {"name": "many", "plan": "pro"})
    make_key(shop)  # one of another workspace, whichever test runs alone
    made = [make_key(shop, workspace="many", name=str(number))["id"] for number in range(25)]
    found = pages(shop, "/keys?workspace=many", 10)
    assert [len(page) for page in found] == [10, 10, 5]
    assert [key["id"] for page in found for key in page] == made
    assert [len(page) for page in pages(shop, "/keys?workspace=many", 25)] == [25]
    everywhere = [key["id"] for page in pages(shop, "/keys", 7) for key in page]
    assert set(made) < set(everywhere)
    assert len(everywhere) == len(set(everywhere))
    assert all("key" not in key for page in found for key in page)


@pytest.mark.parametrize("path", LISTS)
def test_a_list_is_the_same_by_page_and_whole(shop: Conch, path: str) -> None:
    for number in range(3):  # something to list, whichever test runs alone
        done(shop, "POST", "/workspaces/acme/credits", {"amount_usd": "0.01", "note": str(number)})
    whole = done(shop, "GET", f"{path}?limit=1000")["data"]
    assert [each for page in pages(shop, path, 2) for each in page] == whole
    if path in ("/workspaces", "/plans"):
        assert [each["name"] for each in whole] == sorted(each["name"] for each in whole)


@pytest.fixture(scope="module")
async def sales(shop: Conch, database: str) -> list[tuple[int, str, str, str]]:
    """The day, workspace, key and model of 25 requests that ran: one a second on each of five days."""
    store = open_store(database, judge({}))
    done(shop, "POST", "/workspaces/free/credits", {"amount_usd": "1"})
    ran = []
    for number in range(25):
        day, second = divmod(number, 5)
        row = (day, ("acme", "free")[number % 2], f"key_{number % 3}", ("vllm", "voice")[number % 2])
        units = Units(10, 4, number, 1, 2, 1500)
        now = START + day * DAY + second * 1_000_000
        took = None if number == 0 else number * 1000
        usage = Usage(now, row[1], row[2], row[3], units, cost=1_000_000 + number, whole=number != 7, duration=took)
        failure = Failure(now, row[1], row[2], row[3], 502) if number % 4 == 0 else None
        await store.run(settle([Closing(f"req_{number:02}", usage=usage, failure=failure)], now))
        ran.append(row)
    await store.close()
    return ran


async def test_requests_one_by_one(shop: Conch, sales: list[tuple[int, str, str, str]]) -> None:
    found = pages(shop, "/requests?until=2024-10-09", 10)
    assert [len(page) for page in found] == [10, 10, 5]
    rows = [row for page in found for row in page]
    assert [row["id"] for row in rows] == [f"req_{number:02}" for number in reversed(range(25))]
    assert rows[-1] == {
        "id": "req_00",
        "at": START,
        "workspace": "acme",
        "key": "key_0",
        "model": "vllm",
        "input_tokens": 10,
        "cached_tokens": 4,
        "output_tokens": 0,
        "images": 1,
        "characters": 2,
        "seconds": 1.5,
        "cost_usd": "0.001",
        "whole": True,
        "duration_ms": None,
    }
    assert rows[0]["duration_ms"] == 24.0
    assert [row["id"] for row in rows if not row["whole"]] == ["req_07"]
    narrow = "/requests?workspace=free&key=key_1&model=voice&since=2024-10-05T00:00:02Z&until=2024-10-07T00:00:04Z"
    assert [row["id"] for row in done(shop, "GET", narrow)["data"]] == ["req_13", "req_07"]


@pytest.mark.parametrize("by", ["day", "workspace", "key", "model", "day,key", "model,day,workspace,key", ""])
async def test_usage_summed_up(shop: Conch, sales: list[tuple[int, str, str, str]], by: str) -> None:
    names = [name for name in by.split(",") if name]
    expected: dict[tuple[str, ...], list[int]] = {}
    for number, (day, workspace, key, model) in enumerate(sales):
        values = {"day": f"2024-10-{4 + day:02}", "workspace": workspace, "key": key, "model": model}
        expected.setdefault(tuple(values[name] for name in names), []).append(number)
    lines = [line for page in pages(shop, f"/usage?until=2024-10-09&by={by}", 3) for line in page]
    assert [tuple(line[name] for name in names) for line in lines] == sorted(expected)
    for line, numbers in zip(lines, (expected[group] for group in sorted(expected)), strict=True):
        assert line["requests"] == len(numbers)
        assert line["errors"] == sum(number % 4 == 0 for number in numbers)
        assert line["output_tokens"] == sum(numbers)
        assert (line["input_tokens"], line["cached_tokens"]) == (10 * len(numbers), 4 * len(numbers))
        assert (line["images"], line["characters"], line["seconds"]) == (
            len(numbers), 2 * len(numbers), 1.5 * len(numbers),
        )  # fmt: skip
        cost = sum(1_000_000 + number for number in numbers)
        assert float(line["cost_usd"]) == pytest.approx(cost / 1e9, abs=1e-12)
    assert lines == shop.command("usage", "--until", "2024-10-09", "--by", by)
    timed = [line for page in pages(shop, f"/usage?until=2024-10-09&latency=true&by={by}", 3) for line in page]
    for line, plain, numbers in zip(timed, lines, (expected[group] for group in sorted(expected)), strict=True):
        took = sorted(number for number in numbers if number)  # in ms; of the first one nobody knows
        quantiles = {"p50": took[(len(took) - 1) // 2], "p95": took[-(-len(took) * 19 // 20) - 1]} if took else None
        assert line.pop("latency_ms") == quantiles
        assert line == plain


def test_a_request_that_fails_is_counted(shop: Conch) -> None:
    key = make_key(shop, name="unlucky")
    before = time.time()
    with Wire(shop.url) as wire:
        for message, status in (('script: {"pieces": ["a"], "fail_after": 0}', 502), ("hello", 200)):
            body = {"model": "vllm", "messages": [{"role": "user", "content": message}]}
            wire.request(
                "POST",
                "/v1/chat/completions",
                json.dumps(body).encode(),
                content_type="application/json",
                **bearer(key["key"]),
            )
            assert wire.answer("POST").status == status

    def line() -> dict[str, Any]:
        (found,) = done(shop, "GET", f"/usage?by=model&latency=true&key={key['id']}")["data"]
        return dict(found)

    await_true(lambda: line()["errors"] == 1)  # it is written behind the answer
    found = line()
    assert found["requests"] == 1
    assert 0 < found["latency_ms"]["p50"] == found["latency_ms"]["p95"] < (time.time() - before) * 1000


def test_a_group_whose_times_are_unknown(shop: Conch, sales: list[tuple[int, str, str, str]]) -> None:
    query = "/usage?by=key&latency=true&until=2024-10-04T00:00:01Z"
    (line,) = done(shop, "GET", query)["data"]
    assert (line["requests"], line["errors"], line["latency_ms"]) == (1, 1, None)
    (nothing,) = done(shop, "GET", "/usage?by=&latency=true&workspace=nobody")["data"]
    assert (nothing["requests"], nothing["errors"], nothing["latency_ms"]) == (0, 0, None)


# Audit and models


def test_every_change_is_in_the_audit(shop: Conch, database: str, request: pytest.FixtureRequest) -> None:
    done(shop, "POST", "/workspaces", {"name": "told", "plan": "pro", "spend_limit_usd": "5"})
    done(shop, "PATCH", "/workspaces/told", {"ceiling": 700})
    done(shop, "POST", "/workspaces/told/credits", {"amount_usd": "25", "note": "invoice 7"})
    first = make_key(shop, workspace="told", name="ci")
    second = done(shop, "POST", f"/keys/{first['id']}/rotate", {"grace": "1h"})
    done(shop, "POST", f"/keys/{second['id']}/revoke")
    events = done(shop, "GET", "/audit?limit=7")["data"][::-1]
    assert [(event["action"], event["subject"]) for event in events] == [
        ("workspace.create", "told"),
        ("workspace.set", "told"),
        ("workspace.set", "told"),
        ("credits.grant", "told"),
        ("key.create", first["id"]),
        ("key.rotate", first["id"]),
        ("key.revoke", second["id"]),
    ]
    assert {event["by"] for event in events} == {"admin:127.0.0.1"}
    assert all(event["at"] / 1e6 == pytest.approx(time.time(), abs=60) for event in events)
    assert events[1]["details"] == {"spend_limit_usd": "5.00"}
    assert events[3]["details"] == {"amount_usd": "25.00", "note": "invoice 7"}
    said = json.dumps([events, done(shop, "GET", "/keys?limit=1000"), shop.command("audit"), shop.log])
    kept = said.encode() + written(database, request)
    for secret in (first["key"], second["key"], TOKEN):
        assert secret[16:].encode() not in kept
    assert kept.count(first["prefix"].encode()) > said.count(first["prefix"]) > 0


def test_models_as_they_stand(shop: Conch, triton: Triton) -> None:
    def look() -> dict[str, Any]:
        return {model["id"]: model for model in done(shop, "GET", "/models")["data"]}

    await_true(lambda: all(model["reason"] != "not checked yet" for model in look().values()))
    found = look()
    assert [id for id, model in found.items() if not model["verified"]] == ["absent"]
    assert "not ready" in found["absent"]["reason"]
    assert found["vllm"]["servers"] == [{"url": triton.url, "verified": True, "reason": ""}]
    assert {"text_input", "text_output"} <= set(found["vllm"]["bound"])
    assert list(found.values()) == json.loads(json.dumps(done(shop, "GET", "/models?limit=1000")["data"]))


def test_deployments_as_they_stand(shop: Conch, triton: Triton) -> None:
    key = make_key(shop)["key"]

    def vllm() -> Any:
        return next(each for each in done(shop, "GET", "/deployments")["data"] if each["id"] == "vllm")

    await_true(lambda: vllm()["state"] == "serving")
    before = vllm()["servers"][0]
    with Wire(shop.url) as wire:
        wire.request("POST", "/v1/chat/completions", script(*"ab" * 500, stream=True, pace_ms=5), **bearer(key))
        wire.answer_head()
        wire.chunk()
        found = vllm()
        assert (found["outstanding"], found["queued"], found["refused"], found["max_queue"]) == (1, 0, 0, None)
        server = found["servers"][0]
        assert (server["url"], server["state"], server["reason"]) == (triton.url, "serving", "")
        assert server["requests"] == before["requests"] + 1
    await_true(lambda: vllm()["outstanding"] == 0)
    with Wire(shop.url) as wire:
        wire.request("POST", "/v1/chat/completions", script("a", fail_after=0), **bearer(key))
        wire.answer().error(502)
    assert vllm()["servers"][0]["errors"] == before["errors"] + 1
    absent = next(each for each in done(shop, "GET", "/deployments")["data"] if each["id"] == "absent")
    assert (absent["state"], absent["servers"][0]["state"]) == ("unavailable", "unverified")
    assert "not ready" in absent["reason"]
    ask(shop, "GET", "/deployments?after=nothing").error(400, param="after")


def test_a_grant_that_is_sent_again_is_granted_once(shop: Conch) -> None:
    again = {
        "authorization": f"Bearer {TOKEN.encode().decode('latin-1')}",
        "content-type": "application/json",
        "idempotency-key": "invoice 9",
    }
    first, second = (ask(shop, "POST", "/workspaces/free/credits", {"amount_usd": "3"}, **again) for _ in range(2))
    assert first.status == second.status == 200
    assert first.json == second.json == done(shop, "GET", "/workspaces/free/credits")
    assert second.headers["x-runinfra-idempotent-replay"] == "true"
    ask(shop, "POST", "/keys", {"workspace": "acme"}, **again).error(400, param="Idempotency-Key")
