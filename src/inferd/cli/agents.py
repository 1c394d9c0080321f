"""The variables, arguments and files by which each coding agent uses the models of this machine.

Each agent has one pure function, which returns a :class:`Launch`. The function also sets the context window,
since most agents assume 200,000 tokens or more for an unknown model, and then send prompts that do not fit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

OUTPUT_SHARE = 4
"""An answer may take 1/OUTPUT_SHARE of the context window. If an answer could take the whole window, agents
would spend their turns on compaction."""

_COMPACT_PERCENT = 80

_PATIENCE_MS = 3_600_000
"""The time limit for a silent stream, for agents whose default is some minutes. A slow machine may need
longer to read a long prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A served model. ``base`` is the server's address without a path, ``window`` the context size in
    tokens."""

    base: str
    key: str
    model: str
    window: int

    @property
    def output(self) -> int:
        return self.window // OUTPUT_SHARE


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A program with its arguments, its environment, and the files of its private directory.

    ``unset`` names the environment variables to remove, because they would make the program use another
    server. ``files`` are written to a private directory. ``DIRECTORY`` in arguments and variables is replaced
    by the path of this directory.
    """

    program: str
    arguments: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    unset: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)


DIRECTORY = "{directory}"


def claude(served: Served) -> Launch:
    """Returns how to launch Claude Code."""
    return Launch(
        program="claude",
        env={
            "ANTHROPIC_BASE_URL": served.base,
            "ANTHROPIC_AUTH_TOKEN": served.key,
            "ANTHROPIC_MODEL": served.model,
            "ANTHROPIC_DEFAULT_HAIKU_MODEL": served.model,
            "CLAUDE_CODE_MAX_CONTEXT_TOKENS": str(served.window),
            "CLAUDE_CODE_MAX_OUTPUT_TOKENS": str(served.output),
            "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        },
        unset=("ANTHROPIC_API_KEY",),
    )


def codex(served: Served) -> Launch:
    """Returns how to launch Codex."""
    provider = {
        "name": "inferd",
        "base_url": f"{served.base}/v1",
        "env_key": "INFERD_AGENT_KEY",
        "wire_api": "responses",
        "stream_idle_timeout_ms": _PATIENCE_MS,
    }
    table = ", ".join(f"{name} = {json.dumps(value)}" for name, value in provider.items())
    settings = {
        "model_provider": '"inferd"',
        "model_providers.inferd": f"{{{table}}}",
        "model": json.dumps(served.model),
        "model_context_window": str(served.window),
        "model_auto_compact_token_limit": str(served.window * _COMPACT_PERCENT // 100),
    }
    arguments = tuple(word for name, value in settings.items() for word in ("-c", f"{name}={value}"))
    return Launch(program="codex", arguments=arguments, env={"INFERD_AGENT_KEY": served.key})


def opencode(served: Served) -> Launch:
    """Returns how to launch opencode."""
    config = {
        "provider": {
            "inferd": {
                "npm": "@ai-sdk/openai-compatible",
                "name": "inferd",
                "options": {"baseURL": f"{served.base}/v1", "apiKey": served.key},
                "models": {
                    served.model: {
                        "name": served.model,
                        "limit": {"context": served.window, "output": served.output},
                    }
                },
            }
        },
        "model": f"inferd/{served.model}",
        "small_model": f"inferd/{served.model}",
    }
    return Launch(program="opencode", env={"OPENCODE_CONFIG_CONTENT": json.dumps(config)})


def qwen(served: Served) -> Launch:
    """Returns how to launch Qwen Code, which reads the context window and time limits from a settings file.
    The user's own settings override these defaults."""
    generation = {
        "contextWindowSize": served.window,
        "timeout": _PATIENCE_MS,
        "streamIdleTimeoutMs": _PATIENCE_MS,
    }
    defaults = {"model": {"generationConfig": generation}}
    return Launch(
        program="qwen",
        arguments=("--auth-type", "openai"),
        env={
            "OPENAI_BASE_URL": f"{served.base}/v1",
            "OPENAI_API_KEY": served.key,
            "OPENAI_MODEL": served.model,
            "QWEN_CODE_MAX_OUTPUT_TOKENS": str(served.output),
            "QWEN_STREAM_MAX_LIFETIME_MS": str(_PATIENCE_MS),
            "QWEN_CODE_SYSTEM_DEFAULTS_PATH": f"{DIRECTORY}/defaults.json",
        },
        files={"defaults.json": json.dumps(defaults)},
    )


def pi(served: Served) -> Launch:
    """Returns how to launch pi, which reads its models from a file."""
    models = {
        "providers": {
            "inferd": {
                "baseUrl": f"{served.base}/v1",
                "api": "openai-completions",
                "apiKey": served.key,
                "models": [
                    {
                        "id": served.model,
                        "name": served.model,
                        "contextWindow": served.window,
                        "maxTokens": served.output,
                        "input": ["text"],
                        "reasoning": False,
                        "cost": {"input": 0, "output": 0, "cacheRead": 0, "cacheWrite": 0},
                    }
                ],
            }
        }
    }
    return Launch(
        program="pi",
        arguments=("--provider", "inferd", "--model", served.model),
        env={"PI_CODING_AGENT_DIR": DIRECTORY},
        files={"models.json": json.dumps(models)},
    )


def aider(served: Served) -> Launch:
    """Returns how to launch aider, which reads context windows from a file."""
    name = f"openai/{served.model}"
    limits = {
        "max_input_tokens": served.window,
        "max_output_tokens": served.output,
        "litellm_provider": "openai",
        "mode": "chat",
    }
    metadata = f"{DIRECTORY}/models.json"
    return Launch(
        program="aider",
        arguments=("--model", name, "--weak-model", name, "--model-metadata-file", metadata),
        env={"OPENAI_API_BASE": f"{served.base}/v1", "OPENAI_API_KEY": served.key},
        files={"models.json": json.dumps({name: limits})},
    )


AGENTS: Mapping[str, Callable[[Served], Launch]] = {
    "claude": claude,
    "codex": codex,
    "opencode": opencode,
    "qwen": qwen,
    "pi": pi,
    "aider": aider,
}

INSTALL: Mapping[str, str] = {
    "claude": "npm install -g @anthropic-ai/claude-code",
    "codex": "npm install -g @openai/codex",
    "opencode": "npm install -g opencode-ai",
    "qwen": "npm install -g @qwen-code/qwen-code",
    "pi": "npm install -g @mariozechner/pi-coding-agent",
    "aider": "pipx install aider-chat",
}
"""The command that installs each agent."""
