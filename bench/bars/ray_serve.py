"""Checks inferd on a Ray cluster with two nodes on this machine: kills a node under load, and scales from 1
to 3 replicas and back.

``python -m bench.bars.ray_serve`` needs ``ray[serve]`` and serves the default model. Clients stream short
answers without pause. When the node dies, a request that has got no part of its answer must still be served.
A request that has got a part may instead end with an error in the form of its API. Anything else is a
failure, and the exit status is 1. On a busy machine each step takes longer: ``--patience`` is the limit for a
step and for a request, in seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import ray
from ray import serve
from ray.cluster_utils import Cluster

from inferd.ray import build_app

MODEL = "smollm2-135m-instruct"
CLIENTS = 8


class Load:
    """Clients, each of which repeats its request after every answer. ``ends`` counts how requests ended."""

    def __init__(self, url: str, patience: float) -> None:
        self._url = url
        self._patience = patience
        self._ending = False
        self.ends: Counter[str] = Counter()
        self.streaming = 0
        """The number of requests that have received a part of the answer."""

    async def run(self, clients: int, meanwhile: Callable[[Load], Awaitable[None]]) -> None:
        async with httpx.AsyncClient(timeout=self._patience) as http:
            tasks = [asyncio.create_task(self._client(http, number)) for number in range(clients)]
            await meanwhile(self)
            self._ending = True
            await asyncio.gather(*tasks)

    async def until(self, condition: Callable[[], bool]) -> float:
        """Waits for a condition; returns the seconds. Raises TimeoutError."""
        started = time.monotonic()
        while not condition():
            if time.monotonic() - started > self._patience:
                raise TimeoutError(f"still waiting after {self._patience:.0f} s; so far {dict(self.ends)}")
            await asyncio.sleep(0.2)
        return time.monotonic() - started

    async def _client(self, http: httpx.AsyncClient, number: int) -> None:
        turn = 0
        while not self._ending:
            turn += 1
            self.ends[await self._ask(http, f"Client {number}, question {turn}: count to thirty.")] += 1

    async def _ask(self, http: httpx.AsyncClient, text: str) -> str:
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": 40,
            "stream": True,
        }
        came = False
        try:
            async with http.stream("POST", f"{self._url}/v1/chat/completions", json=body) as response:
                if response.status_code != 200:
                    return f"refused: {response.status_code} {(await response.aread())[:200]!r}"
                async for line in response.aiter_lines():
                    if not line.startswith("data: "):
                        continue
                    if line == "data: [DONE]":
                        return "answered"
                    event = json.loads(line[6:])
                    if "error" in event:
                        return f"error {'after' if came else 'before'} a token: {event['error'].get('code')}"
                    if not came and event["choices"] and event["choices"][0]["delta"].get("content"):
                        came = True
                        self.streaming += 1
            return f"cut {'after' if came else 'before'} a token"
        except httpx.HTTPError as error:
            return f"broken {'after' if came else 'before'} a token: {type(error).__name__}"
        finally:
            self.streaming -= came


def replicas() -> int:
    """The running replicas of the model."""
    for application in serve.status().applications.values():
        found = application.deployments.get(MODEL)
        if found is not None:
            return int(found.replica_states.get("RUNNING", 0))
    return 0


def application(**more: Any) -> Any:
    config = {
        "model": {"name": MODEL},
        "engine": {"active_permits": 2, "queue_depth": 64, "threads": 1},
    }
    return build_app({"config": config, "open": True, "num_cpus": 1.5, **more})


def lost(ends: Counter[str]) -> list[str]:
    """The forbidden ends: all except a whole answer and an error after a token."""
    return [end for end in ends if end != "answered" and not end.startswith("error after a token")]


async def killed_node(cluster: Cluster, node: Any, url: str, patience: float) -> bool:
    async def kill(load: Load) -> None:
        await load.until(lambda: load.ends["answered"] >= 2 * CLIENTS)
        await load.until(lambda: load.streaming >= 3)
        before = load.ends["answered"]
        await asyncio.to_thread(cluster.remove_node, node, False)
        print(f"a node was killed after {before} answers", flush=True)
        await load.until(lambda: load.ends["answered"] >= before + 4 * CLIENTS)

    load = Load(url, patience)
    await load.run(CLIENTS, kill)
    print(dict(load.ends), flush=True)
    return not lost(load.ends)


async def scaled(url: str, patience: float) -> bool:
    async def up(load: Load) -> None:
        print(f"3 replicas after {await load.until(lambda: replicas() == 3):.0f} s", flush=True)

    async def down(load: Load) -> None:
        print(f"1 replica after {await load.until(lambda: replicas() == 1):.0f} s", flush=True)

    busy, quiet = Load(url, patience), Load(url, patience)
    await busy.run(3 * CLIENTS, up)
    await quiet.run(1, down)
    print(dict(busy.ends), dict(quiet.ends), flush=True)
    return not lost(busy.ends) and not lost(quiet.ends)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--part", choices=("node", "scale"), action="append")
    parser.add_argument("--patience", type=float, default=240.0)
    options = parser.parse_args()
    parts = options.part or ["node", "scale"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    second = cluster.add_node(num_cpus=2 if "node" in parts else 4)
    good = True
    try:
        ray.init(address=cluster.address, log_to_driver=False)
        # The nodes are on one machine, so proxies on both would share the port.
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
        if "node" in parts:
            # Each node has room for one replica; the head also has room for the ingress.
            serve.run(application(min_replicas=2, max_replicas=2), name="bars")
            good &= asyncio.run(killed_node(cluster, second, url, options.patience))
            serve.delete("bars")
            cluster.add_node(num_cpus=4)  # two replicas, and the ingress if Ray places it here
        if "scale" in parts:
            quick = {"upscale_delay_s": 1.0, "downscale_delay_s": 5.0, "metrics_interval_s": 1.0}
            serve.run(application(min_replicas=1, max_replicas=3, autoscaling=quick), name="bars")
            good &= asyncio.run(scaled(url, options.patience))
    finally:
        with contextlib.suppress(Exception):
            serve.shutdown()
        ray.shutdown()
        cluster.shutdown()
    print("good" if good else "NOT GOOD")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
