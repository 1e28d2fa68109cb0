"""Every metric: its name, its kind, what it tells, and a histogram's buckets.

Names and buckets that begin with gen_ai are those of OpenTelemetry's semantic conventions for generative AI, as
Prometheus writes them (docs/gen-ai/gen-ai-metrics.md of open-telemetry/semantic-conventions).
"""

from typing import Literal, NamedTuple


class Family(NamedTuple):
    """A metric. `bounds` are the upper ends of a histogram's buckets, without the last, which has none."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    bounds: tuple[float, ...] = ()

    @property
    def cells(self) -> int:
        """Of a series: one; of a histogram's, one for each bucket, and the sum."""
        return len(self.bounds) + 2 if self.bounds else 1


def series(family: Family, **labels: str) -> str:
    """The name of a series: `name{label="value",…}`; a label with nothing to say is left out, as it means the same."""
    pairs = ",".join(f'{label}="{_escaped(value)}"' for label, value in labels.items() if value)
    return f"{family.name}{{{pairs}}}" if pairs else family.name


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


# fmt: off
LONG = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
EACH = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
SHORT = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
LOAD = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
COUNTS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864)
# fmt: on

REQUESTS = Family("conch_requests_total", "counter", "Requests that have ended; 499 where the client left first.")
IN_FLIGHT = Family("conch_requests_in_flight", "gauge", "Requests under way.")
DURATION = Family(
    "gen_ai_server_request_duration_seconds", "histogram", "From a request's head to the end of its answer.", LONG
)
FIRST_TOKEN = Family(
    "gen_ai_server_time_to_first_token_seconds",
    "histogram",
    "From the head of a streamed request to the first bytes of its answer's body.",
    FIRST,
)
PER_TOKEN = Family(
    "gen_ai_server_time_per_output_token_seconds",
    "histogram",
    "Of streamed answers, the time between two tokens after the first, on average over the answer.",
    EACH,
)
TOKENS = Family(
    "gen_ai_client_token_usage", "histogram", "Tokens of a request, as the model counted them: those billed.", COUNTS
)
CACHED = Family("conch_cached_input_tokens_total", "counter", "Input tokens that the model had in its cache.")
IMAGES = Family("conch_images_total", "counter", "Pictures drawn.")
CHARACTERS = Family("conch_speech_characters_total", "counter", "Characters spoken.")
SOUND = Family("conch_transcribed_seconds_total", "counter", "Seconds of sound transcribed.")
OVERHEAD = Family(
    "conch_gateway_duration_seconds", "histogram", "What Conch itself took of a request: all but its upstream.", SHORT
)
UPSTREAM = Family(
    "conch_upstream_duration_seconds", "histogram", "What Triton took of a request, and the wait for it.", LONG
)
QUEUE = Family(
    "conch_queue_duration_seconds",
    "histogram",
    "Waits in a model's queue; a request that finds room at once is none.",
    LONG,
)
QUEUED = Family("conch_queue_length", "gauge", "Requests that wait in a model's queue.")
TURNED_AWAY = Family("conch_queue_full_total", "counter", "Requests that found a model's queue full.")
COLD_START = Family(
    "conch_cold_start_duration_seconds", "histogram", "Waits of requests for a model to be loaded.", LOAD
)
LOADS = Family(
    "conch_model_load_duration_seconds", "histogram", "What Triton took to load a model, or to fail to.", LOAD
)
UNLOADS = Family(
    "conch_model_unloads_total", "counter", "Times that a model was unloaded since nobody had asked for it in long."
)
RETRIES = Family(
    "conch_upstream_retries_total",
    "counter",
    "Times that another server was asked, since the one before could not have run the request.",
)
UPSTREAM_ERRORS = Family("conch_upstream_errors_total", "counter", "Requests that failed for the upstream's sake.")
RATE_LIMITED = Family("conch_rate_limited_total", "counter", "Requests refused by a limit of their key or workspace.")
CHARGED = Family("conch_credits_charged_usd_total", "counter", "Dollars that requests cost.")
REFUSED = Family("conch_credits_refused_total", "counter", "Requests refused for want of credits, or a spend limit.")
TRANSACTION = Family(
    "conch_store_transaction_duration_seconds", "histogram", "Transactions of the store, waiting included.", SHORT
)
ASKS = Family("conch_store_asks_total", "counter", "What requests asked of the store: several are one transaction.")
OWED = Family("conch_store_owed", "gauge", "What is still to be written, once the database is back.")
AWAY = Family("conch_store_away", "gauge", "Workers for whom the database did not answer the last time.")
WORKERS = Family("conch_workers", "gauge", "Processes that serve.")
READY = Family("conch_model_ready", "gauge", "1 if the model is verified: it is served.")
SERVERS = Family("conch_model_servers_ready", "gauge", "Triton servers on which the model is verified.")
BUILD = Family("conch_build_info", "gauge", "Which Conch this is.")
CPU = Family("process_cpu_seconds_total", "counter", "Time on a processor.")
RESIDENT = Family("process_resident_memory_bytes", "gauge", "Memory in use.")
FDS = Family("process_open_fds", "gauge", "Open file descriptors.")
MAX_FDS = Family("process_max_fds", "gauge", "File descriptors that may be open.")
STARTED = Family("process_start_time_seconds", "gauge", "When the process began, in unix time.")

FAMILIES = {family.name: family for family in list(globals().values()) if isinstance(family, Family)}
