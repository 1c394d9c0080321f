"""inferd on Ray Serve: runs models on the hosts of a cluster, and serves them through the HTTP bridge.

:func:`build_app` makes a Serve application. Each model of the configuration is a deployment. Each replica of
a deployment runs a daemon with this model (:mod:`inferd.ray.replica`). The ingress is the HTTP bridge, which
sends each request through the deployment handle of its model (:mod:`inferd.ray.ingress`).

Ray starts, scales and replaces the replicas. Ray's consistent-hash router sends all requests of a
conversation to the same replica, whose prefix cache contains the earlier turns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from inferd.config.entries import LlamaCppEntry
from inferd.errors import ConfigError, UsageError
from inferd.ray.config import config_of, content_of, settings_of

ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
SHUTDOWN_SECS = 3600.0
"""How long a replica that Ray removes may take to finish its requests."""


class Arguments(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The arguments of the application. ``config`` is the path of a config file, or its content.

    ``min_replicas`` and ``max_replicas`` limit the replicas of each model. ``num_cpus`` and ``num_gpus`` are
    the CPUs and GPUs of each replica. ``ingress_replicas`` is the number of replicas of the HTTP ingress.
    ``autoscaling`` has further options of Ray's ``AutoscalingConfig``. If ``open`` is true, clients need no
    key.
    """

    config: str | dict[str, Any]
    min_replicas: int = 1
    max_replicas: int = 1
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    ingress_replicas: int = 1
    autoscaling: dict[str, Any] = {}
    open: bool = False


def build_app(arguments: Mapping[str, Any]) -> Any:
    """Returns the Serve application for the configuration in ``arguments``. See :class:`Arguments`.

    Raises UsageError for an invalid argument, and ConfigError for an invalid configuration.
    """
    try:
        given = msgspec.convert(arguments, Arguments, strict=False)
    except msgspec.ValidationError as error:
        raise UsageError(f"build_app: {error}") from None
    content = content_of(given.config)
    settings = settings_of(content)
    if not given.open and settings.http_key_file is None and settings.api_key is None:
        raise ConfigError(
            "Ray Serve is reachable from the network: name a file with keys in `http.key_file`, set"
            " INFERD_API_KEY, or allow clients without a key by the argument `open`"
        )
    models = {entry.name: config_of(content, entry.name) for entry in settings.backends}
    for entry in settings.backends:
        if not isinstance(entry, LlamaCppEntry):
            raise ConfigError(
                f"backend {entry.name!r}: Ray Serve can only deploy local models; leave out this config entry"
            )

    from ray import serve
    from ray.serve.config import RequestRouterConfig

    from inferd.ray.ingress import Ingress
    from inferd.ray.replica import Replica

    deployed = [
        serve.deployment(
            Replica,
            name=name,
            autoscaling_config={
                "min_replicas": given.min_replicas,
                "max_replicas": given.max_replicas,
                "target_ongoing_requests": settings.active_permits,
                **given.autoscaling,
            },
            # Further requests wait in Ray, where a new replica can take them.
            max_ongoing_requests=2 * settings.active_permits,
            ray_actor_options={"num_cpus": given.num_cpus, "num_gpus": given.num_gpus},
            request_router_config=RequestRouterConfig(request_router_class=ROUTER),
            graceful_shutdown_timeout_s=SHUTDOWN_SECS,
        ).bind(config)
        for name, config in models.items()
    ]
    ingress = serve.deployment(
        serve.ingress()(Ingress),
        name="inferd-http",
        num_replicas=given.ingress_replicas,
        max_ongoing_requests=settings.max_connections,
        ray_actor_options={"num_cpus": 0.1},
    )
    return ingress.bind(content, given.open, *deployed)
