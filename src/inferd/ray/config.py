"""The configuration of a Serve application, and the part of it that the replicas of one model get."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inferd.config import sources
from inferd.config.settings import Settings
from inferd.errors import ConfigError


def content_of(config: str | dict[str, Any]) -> dict[str, Any]:
    """Returns the content of a config file. ``config`` is the content itself or the path of the file. Raises
    ConfigError."""
    if isinstance(config, dict):
        return config
    try:
        content = json.loads(Path(config).read_bytes())
    except OSError as error:
        raise ConfigError(f"config file {config}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"config file {config}: is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"config file {config}: is not an object")
    return content


def settings_of(content: Mapping[str, Any]) -> Settings:
    """Returns the settings of a configuration. Of the environment variables, only ``INFERD_API_KEY`` is read.

    Raises ConfigError.
    """
    env = {name: value for name, value in os.environ.items() if name == "INFERD_API_KEY"}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(content, file)
        file.flush()
        read = sources.read({"config": Path(file.name)}, env)
    if read.problem is not None:
        raise read.problem
    return read.settings


def config_of(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns the configuration for the replicas of the model ``name``: without the section ``http`` and
    without the config entries of other backends."""
    own = {key: value for key, value in content.items() if key != "http"}
    if "backends" in own:
        own["backends"] = [entry for entry in own["backends"] if entry.get("name") == name]
    return own
