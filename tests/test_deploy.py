"""What deploy/ tells Docker, Compose, Kubernetes, Fly and systemd, held against what the gateway really is."""

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
import yaml
from openai import OpenAI

import config
from config.sections import Duration, read
from handlers.ops.version import OURS
from handlers.seeing.families import FAMILIES
from scripts.triton import Triton
from tests import image
from tests.gateway import ROOT, Conch
from tests.raw import Wire

DEPLOY = ROOT / "deploy"
PORT = config.Server().port
SECRETS = {"CONCH_ADMIN_TOKEN", "CONCH_METRICS_TOKEN", "CONCH_CONFIG", "CONCH_ENV"}


def documents(name: str) -> list[Any]:
    """The YAML documents of a file in deploy/."""
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def check_variables(variables: dict[str, str]) -> None:
    """Each that is Conch's is one that it reads; raises ConfigError for a setting that does not exist."""
    ours = {name: value for name, value in variables.items() if name.startswith("CONCH_")}
    assert {name for name in ours if "__" not in name} <= SECRETS
    config.load(ROOT / "config" / "conch.toml", variables={name: ours[name] for name in ours if "__" in name})


def verified(triton: Triton, folder: Path, text: str) -> None:
    """A conch.toml for Triton's vLLM backend, against a model with the tensors that are published for that."""
    text = re.sub(r'^model = "qwen"', 'model = "vllm"', text, flags=re.MULTILINE)
    (folder / "conch.toml").write_text(text)
    command = [sys.executable, str(ROOT / "app.py"), "check", "--config", str(folder / "conch.toml")]
    upstream = {"CONCH_UPSTREAMS__GPU__URLS": triton.url, "CONCH_UPSTREAMS__GPU__GRPC": triton.grpc_url}
    done = subprocess.run(command, env=upstream, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verified" in done.stdout


def seconds(text: str) -> float:
    return float(read(Duration, text))


# The image ----------------------------------------------------------------------------------------


def test_the_image_runs_as_nobody_and_takes_its_signals_itself() -> None:
    *_, final = image.stages()
    user, group = final.one("USER").split(":")
    assert int(user) > 999
    assert int(group) > 999
    assert final.command("ENTRYPOINT") == ["python", "app.py"]
    assert final.command("CMD") == ["serve"]
    assert final.one("EXPOSE") == str(PORT)
    assert f"{PORT}" in final.command("HEALTHCHECK")[-1]
    assert final.one("VOLUME") == "/var/lib/conch"
    check_variables(final.environment())
    assert final.environment()["CONCH_STORE__URL"].startswith(f"sqlite:{final.one('VOLUME')}/")
    compiled = next(rest for rest in image.stages()[0].all("RUN") if "compileall" in rest)
    assert set(OURS) <= set(compiled.split()), "nothing can be compiled later: the root is read-only"


def test_the_image_has_all_of_conch_and_the_context_little_else() -> None:
    packages, final = image.stages()
    assert packages.base == final.base, "an environment goes from one to the other"
    copied = [source for source, _ in image.sources(packages)]
    assert set(OURS) < set(copied)
    assert not image.sources(final), "all of it comes from the stage before"
    for source in copied:
        assert (ROOT / source).exists()
        assert not image.ignored(source), source
    for name in ("var/conch.db", ".venv/bin/python", "tests/image.py", ".git/HEAD", "README.md"):
        assert image.ignored(name), name


@pytest.fixture(scope="module")
def built(triton: Triton, tmp_path_factory: pytest.TempPathFactory) -> image.Image:
    """The image's root, with a configuration before the session's Triton."""
    made = image.Image(tmp_path_factory.mktemp("image"))
    if refused := made.refused():
        pytest.skip(f"this user may make no mount namespace here: {refused}")
    shutil.copy(ROOT / "models/assistant/chat_template.jinja", made.root / "etc/conch/assistant.jinja")
    (made.root / "etc/conch/conch.toml").write_text(f"""
        [upstreams.gpu]
        urls = ["{triton.url}"]
        grpc = ["{triton.grpc_url}"]
        [[models]]
        id = "assistant"
        upstream = "gpu"
        model = "assistant"
        preset = "vllm"
        chat.template = "assistant.jinja"
        [[models]]
        id = "voice"
        task = "speech"
        upstream = "gpu"
        model = "voice"
        transport = "grpc"
        in = {{ text = "text", voice = "voice.name" }}
        out.audio = {{ tensor = "waveform", rate = 22050 }}
    """)
    return made


@pytest.fixture(scope="module")
def served(built: image.Image) -> Iterator[tuple[str, OpenAI]]:
    """It runs on any free port: the address, and the SDK with a key that was made within."""
    log: list[str] = []
    assert built.conch("workspaces", "create", "acme", "--plan", "pro").returncode == 0
    made = built.conch("keys", "create", "--workspace", "acme", "--json")
    key = re.findall(r"rp_live_[0-9a-f]{64}", made.stdout)
    assert key, made.stderr
    with (
        built.serving(log, CONCH_SERVER__PORT="0") as address,
        OpenAI(base_url=f"{address.replace('0.0.0.0', '127.0.0.1')}/v1", api_key=key[0], max_retries=0) as client,
    ):
        yield address.replace("0.0.0.0", "127.0.0.1"), client
    assert "Traceback" not in "".join(log)


def test_the_image_serves_from_a_root_that_it_cannot_write(built: image.Image, served: tuple[str, OpenAI]) -> None:
    _, client = served
    messages: Any = [{"role": "user", "content": "What does the teller do?"}]
    assert client.chat.completions.create(model="assistant", messages=messages).choices[0].message.content
    sound = client.audio.speech.create(model="voice", voice="alloy", input="Good morning.", response_format="mp3")
    assert len(sound.read()) > 1000, "the codecs are in it"
    for place in ("/srv/conch/x", "/etc/conch/x", "/x", "/srv/conch/.venv/x", "/usr/x"):
        done = built.run("python", "-c", f"open({place!r}, 'w')")
        assert "Read-only file system" in done.stderr or "Permission denied" in done.stderr, place
    assert {path.name for path in built.volume.iterdir()} == {"conch.db", "conch.db-wal", "conch.db-shm"}
    assert {path.name for path in (built.root / "tmp").iterdir()} == set()


def test_the_images_health_check_asks_the_gateway(built: image.Image, served: tuple[str, OpenAI]) -> None:
    *start, program = built.final.command("HEALTHCHECK")
    port = urlsplit(served[0]).port
    assert built.run(*start, program.replace(str(PORT), str(port))).returncode == 0
    assert built.run(*start, program.replace(str(PORT), "1")).returncode == 1


# Compose ------------------------------------------------------------------------------------------


def test_compose_runs_the_image_before_triton(triton: Triton, tmp_path: Path) -> None:
    (compose,) = documents("compose/compose.yaml")
    conch, server = compose["services"]["conch"], compose["services"]["triton"]
    where = DEPLOY / "compose"
    assert (where / conch["build"]["context"]).resolve() == ROOT
    assert ROOT / conch["build"]["dockerfile"] == image.FILE
    assert conch["ports"] == [f"127.0.0.1:{PORT}:{PORT}"]
    check_variables(conch["environment"])
    drain = config.Server().drain
    assert seconds(conch["stop_grace_period"]) > drain
    *_, final = image.stages()
    volumes = dict(reversed(mount.removesuffix(":ro").split(":")) for mount in conch["volumes"])
    assert final.environment()["CONCH_CONFIG"] in volumes
    assert volumes[final.one("VOLUME")] in compose["volumes"], "the ledger outlives the container"
    assert conch["read_only"] is True
    assert conch["cap_drop"] == ["ALL"]

    assert "--disable-auto-complete-config" not in server["command"], "the vLLM backend adds its tensors by that"
    (check,) = [part for part in server["healthcheck"]["test"] if part.startswith("http")]
    assert urlopen(check.replace("http://127.0.0.1:8000", triton.url)).status == 200
    (device,) = server["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    for model in tomllib.loads((where / "conch.toml").read_text())["models"]:
        assert (where / "models" / model["model"] / "config.pbtxt").exists()
        assert model["chat"]["template"].startswith("templates/")
    settings = config.load(where / "conch.toml", variables={})
    hosts = {urlsplit(url).hostname for url in settings.upstreams["gpu"].urls}
    assert hosts <= compose["services"].keys()
    (tmp_path / "templates").mkdir()
    shutil.copy(ROOT / "models/assistant/tokenizer_config.json", tmp_path / "templates")
    shutil.copy(ROOT / "models/assistant/chat_template.jinja", tmp_path / "templates")
    verified(triton, tmp_path, (where / "conch.toml").read_text())


# Kubernetes ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    """The manifests by their kind."""
    return {document["kind"]: document for document in documents("kubernetes/conch.yaml")}


@pytest.fixture(scope="module")
def container(cluster: dict[str, Any]) -> Any:
    (only,) = cluster["Deployment"]["spec"]["template"]["spec"]["containers"]
    return only


def test_the_probes_are_answered(conch: Conch, container: Any) -> None:
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container[probe]["httpGet"]
        assert asked["port"] in [port["name"] for port in container["ports"]]
        with Wire(conch.url) as wire:
            wire.request("GET", asked["path"])
            assert wire.answer().status == 200, probe
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz", "a lost Triton is not mended by a restart"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_a_pod_is_unready_before_it_drains_and_drains_before_it_is_killed(
    cluster: dict[str, Any], container: Any, triton: Triton, tmp_path: Path
) -> None:
    for name, text in cluster["ConfigMap"]["data"].items():
        (tmp_path / name).write_text(text)
    settings = config.load(tmp_path / "conch.toml", variables={})
    probe = container["readinessProbe"]
    assert settings.server.drain_delay > probe["periodSeconds"] * probe["failureThreshold"]
    grace = cluster["Deployment"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace >= settings.server.drain_delay + settings.server.drain + 10
    verified(triton, tmp_path, cluster["ConfigMap"]["data"]["conch.toml"])


def test_a_pod_is_what_the_image_is(cluster: dict[str, Any], container: Any) -> None:
    *_, final = image.stages()
    pod = cluster["Deployment"]["spec"]["template"]["spec"]
    user, group = map(int, final.one("USER").split(":"))
    assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsGroup"]) == (user, group)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["args"] == final.command("CMD")
    (port,) = container["ports"]
    assert port["containerPort"] == PORT
    places = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert places == {str(Path(final.environment()["CONCH_CONFIG"]).parent), "/tmp"}
    assert {volume["name"] for volume in pod["volumes"]} == {mount["name"] for mount in container["volumeMounts"]}
    (secret,) = documents("kubernetes/secret.yaml")
    assert container["envFrom"] == [{"secretRef": {"name": secret["metadata"]["name"]}}]
    check_variables(secret["stringData"])
    assert secret["stringData"]["CONCH_STORE__URL"].startswith("postgresql://"), "there are several pods"


def test_everything_selects_the_pods(cluster: dict[str, Any]) -> None:
    labels = cluster["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert cluster["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert cluster["Service"]["spec"]["selector"] == labels
    assert cluster["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert cluster["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels
    (monitor,) = documents("kubernetes/podmonitor.yaml")
    assert monitor["spec"]["selector"]["matchLabels"] == labels
    (service,) = cluster["Service"]["spec"]["ports"]
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert {service["targetPort"], endpoint["port"]} == {"http"}
    (secret,) = documents("kubernetes/secret.yaml")
    assert endpoint["authorization"]["credentials"]["key"] in secret["stringData"]
    (rule,) = cluster["NetworkPolicy"]["spec"]["ingress"]
    assert rule["ports"] == [{"port": PORT}]


def test_it_scales_by_a_metric_that_there_is(cluster: dict[str, Any]) -> None:
    scaler = cluster["HorizontalPodAutoscaler"]["spec"]
    assert scaler["scaleTargetRef"]["name"] == cluster["Deployment"]["metadata"]["name"]
    (metric,) = scaler["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert FAMILIES[name].kind == "gauge"
    (values,) = documents("kubernetes/prometheus-adapter.yaml")
    (rule,) = values["rules"]["custom"]
    assert rule["name"]["as"] == name
    assert rule["seriesQuery"].partition("{")[0] == name


# Elsewhere ----------------------------------------------------------------------------------------


def test_fly_has_the_port_the_probe_and_the_volume(conch: Conch) -> None:
    fly = tomllib.loads((DEPLOY / "fly.toml").read_text())
    *_, final = image.stages()
    assert fly["http_service"]["internal_port"] == PORT
    assert DEPLOY / fly["build"]["dockerfile"] == image.FILE
    assert [mount["destination"] for mount in fly["mounts"]] == [final.one("VOLUME")]
    assert [file["guest_path"] for file in fly["files"]] == [final.environment()["CONCH_CONFIG"]]
    assert seconds(fly["kill_timeout"]) > config.Server().drain
    assert fly["kill_signal"] == "SIGTERM"
    check_variables(fly["env"])
    for check in fly["http_service"]["checks"]:
        with Wire(conch.url) as wire:
            wire.request("GET", check["path"])
            assert wire.answer().status == 200


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd itself says whether its units are right")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    service = (DEPLOY / "conch.service").read_text()
    check_variables(dict(re.findall(r"^Environment=(\w+)=(.*)$", service, re.MULTILINE)))
    here = service.replace("/srv/conch/.venv/bin/python", sys.executable).replace("/srv/conch", str(ROOT))
    assert here.count(sys.executable) == 2
    (tmp_path / "conch.service").write_text(here)
    shutil.copy(DEPLOY / "conch.socket", tmp_path)
    done = subprocess.run(
        ["systemd-analyze", "verify", str(tmp_path / "conch.service"), str(tmp_path / "conch.socket")],
        capture_output=True,
        text=True,
        check=False,
    )
    said = [line for line in done.stderr.splitlines() if "conch" in line]
    assert (done.returncode, said) == (0, []), done.stderr
    (stop,) = re.findall(r"^TimeoutStopSec=(\d+)$", service, re.MULTILINE)
    assert int(stop) > config.Server().drain
