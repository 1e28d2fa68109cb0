"""TensorZero's embedded gateway as a server, in the peers' environment: python bench/tensorzero_server.py CONFIG.

Its wheel holds the whole gateway, and a server of its HTTP API that its OpenAI clients are led to. Prints the address.
"""

import signal
import sys

from tensorzero import _start_http_gateway  # type: ignore[import-not-found]

if __name__ == "__main__":
    gateway = _start_http_gateway(
        config_file=sys.argv[1], clickhouse_url=None, postgres_url=None, valkey_url=None, async_setup=False
    )
    print(gateway.base_url, flush=True)
    signal.pause()
