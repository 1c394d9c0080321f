"""The options for the served models. Each option configures a backend."""

from __future__ import annotations

from pathlib import Path

from inferd.config.addresses import Endpoint, ServerUrl
from inferd.config.kinds import Boolean, Choice, FilePath, Name, Secret, SecretText, Sha256, Text
from inferd.config.numbers import Integer, Seconds
from inferd.config.option import option

DEFAULT_MODEL = "smollm2-135m-instruct"
"""The catalogue name of the default model."""

_MODEL, _OPENAI, _BEDROCK, _ENGINE = "Model", "OpenAI-compatible server", "AWS Bedrock", "Engine"


class ModelOptions:
    """A part of the option table. See :class:`inferd.config.settings.Settings`."""

    backend: str = option(
        _MODEL,
        Choice(("llamacpp", "openai-compat", "bedrock-invoke", "mock")),
        "llamacpp",
        "The kind of backend to serve. If this option is set, the daemon ignores the backends of other "
        "kinds in the config file.",
        reload=True,
    )
    model: str = option(
        _MODEL,
        Name(),
        DEFAULT_MODEL,
        "The name of the model to serve. The name is looked up in the model store and in inferd's catalogue "
        "of models.",
        reload=True,
    )
    model_path: Path | None = option(
        _MODEL,
        FilePath(),
        None,
        "A GGUF file to serve instead of a named model.",
        reload=True,
    )
    model_sha256: str | None = option(
        _MODEL,
        Sha256(),
        None,
        "The SHA-256 that the model file must have. The daemon checks the hash before it loads the file.",
        reload=True,
    )
    n_ctx: int | None = option(
        _MODEL,
        Integer(0),
        None,
        "The maximum number of tokens of one request, prompt and answer together. 0 means the context that "
        "the model was trained with. The default is 16384 or the training context, whichever is smaller. If"
        " memory is short, the default is less, but at least 2048.",
        key="n_ctx",
        reload=True,
    )
    n_gpu_layers: int = option(
        _MODEL,
        Integer(-1),
        -1,
        "The number of the model's layers to keep on a GPU. -1 means all layers or, if the GPU has no room "
        "for all, as many as fit. 0 means that the CPU computes everything.",
        key="n_gpu_layers",
        reload=True,
    )
    force_backend: str | None = option(
        _MODEL,
        Choice(("cpu", "cuda", "metal", "rocm", "vulkan")),
        None,
        "The accelerator that models must use. With `cpu`, the daemon uses no GPU. With any other value, "
        "the daemon does not start if its model would run on another accelerator.",
        flag=False,
        reload=True,
    )
    require_gpu: bool = option(
        _MODEL,
        Boolean(),
        False,
        "Refuse to start if the model would run on the CPU.",
        reload=True,
    )
    openai_base_url: str | None = option(
        _OPENAI,
        ServerUrl(),
        None,
        "The address of the server to which inferd forwards requests, without the `/v1` at its end. A "
        "backend of the kind openai-compat needs this option.",
        reload=True,
    )
    openai_model: str | None = option(
        _OPENAI,
        Text("NAME", needed=True),
        None,
        "The name of the model on the server. A backend of the kind openai-compat needs this option.",
        reload=True,
    )
    openai_api_key: Secret | None = option(
        _OPENAI,
        SecretText(optional=True),
        None,
        "The API key for the server. An empty text means no key. Prefer the variable to the flag, because "
        "every user of the machine can see the value of a flag. If neither the flag nor the variable is "
        "set, inferd uses the variable OPENAI_API_KEY.",
        reload=True,
    )
    openai_timeout_secs: float = option(
        _OPENAI,
        Seconds(positive=True),
        300.0,
        "A request fails if the server sends nothing for this number of seconds.",
        reload=True,
    )
    bedrock_region: str | None = option(
        _BEDROCK,
        Name("REGION"),
        None,
        "The AWS region of the model. A backend of the kind bedrock-invoke needs this option.",
        reload=True,
    )
    bedrock_model_id: str | None = option(
        _BEDROCK,
        Text("ID", needed=True),
        None,
        "The id of the model, such as `anthropic.claude-3-5-sonnet-20241022-v2:0`. A backend of the kind "
        "bedrock-invoke needs this option.",
        reload=True,
    )
    bedrock_bearer_token: Secret | None = option(
        _BEDROCK,
        SecretText(),
        None,
        "The bearer token for AWS Bedrock. Prefer the variable to the flag, because every user of the "
        "machine can see the value of a flag. Without a bearer token, inferd signs requests with "
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
        env="AWS_BEARER_TOKEN_BEDROCK",
        reload=True,
    )
    bedrock_endpoint: str | None = option(
        _BEDROCK,
        Endpoint(),
        None,
        "The address of a server, such as a VPC endpoint, to use instead of AWS's own server for the region.",
        reload=True,
    )
    bedrock_timeout_secs: float = option(
        _BEDROCK,
        Seconds(positive=True),
        300.0,
        "A request fails if AWS Bedrock sends nothing for this number of seconds.",
        reload=True,
    )
    threads: int = option(
        _ENGINE,
        Integer(0, 512),
        0,
        "The number of threads that compute the tokens. With 0, the daemon chooses this number according to "
        "the load of the machine.",
        key="engine.threads",
        reload=True,
    )
    n_batch: int = option(
        _ENGINE,
        Integer(1, 65536),
        512,
        "The maximum number of tokens that the model computes in one step.",
        key="engine.n_batch",
        reload=True,
    )
    flash_attention: str = option(
        _ENGINE,
        Choice(("auto", "on", "off")),
        "auto",
        "Whether to use flash attention. With `auto`, flash attention is off on a CPU, because it slows "
        "decoding on a CPU; on a GPU, llama.cpp decides.",
        key="engine.flash_attention",
        reload=True,
    )
    kv_cache_type: str = option(
        _ENGINE,
        Choice(("f16", "q8_0")),
        "f16",
        "The data type of the KV cache. q8_0 takes half the memory of f16.",
        key="engine.kv_cache_type",
        reload=True,
    )
    kv_unified: bool = option(
        _ENGINE,
        Boolean(),
        False,
        "Let all slots share one KV cache. By default each slot has its own KV cache.",
        key="engine.kv_unified",
        reload=True,
    )
    cache_mib: int = option(
        _ENGINE,
        Integer(0, 1 << 20),
        1024,
        "The maximum memory in MiB for KV caches of earlier prompts, after these KV caches have left their "
        "slots. Each model has this maximum for itself. With 0, the KV cache of an earlier prompt is kept "
        "only while it is in a slot.",
        key="engine.cache_mib",
        reload=True,
    )
    cache_disk_mib: int = option(
        _ENGINE,
        Integer(0, 1 << 24),
        2048,
        "The maximum size in MiB of all files with KV caches of earlier prompts, for all models together. "
        "The files survive a restart. With 0, the daemon writes no such files. The text of a prompt can be "
        "reconstructed from its KV cache. A KV cache larger than `engine.cache_mib` is not written to a "
        "file.",
        key="engine.cache_disk_mib",
        reload=True,
    )
    ahead_tokens: int = option(
        _ENGINE,
        Integer(0, 1 << 20),
        8192,
        "Many chat templates omit the thinking of earlier answers. The next prompt is therefore equal to "
        "the cached prompt only up to the first omission. After an answer with thinking, the daemon "
        "computes the start of the next prompt in advance, up to this number of tokens. The daemon does so "
        "only while no other request runs and the machine is not on battery. 0 disables this computation.",
        key="engine.ahead_tokens",
        reload=True,
    )
    keep_thinking: bool = option(
        _ENGINE,
        Boolean(),
        False,
        "Keep the thinking of earlier answers in the prompt, even if the template would omit it, provided "
        "that the client sends the thinking back. A new message then needs less computing, but the context "
        "fills faster.",
        key="engine.keep_thinking",
        reload=True,
    )
    spare_engine: bool = option(
        _ENGINE,
        Boolean(),
        True,
        "Keep one engine process ready for the next model. The daemon starts it after it has loaded a local "
        "model. A model is then loaded sooner, and a crashed one is restarted sooner.",
        key="engine.spare",
        reload=True,
    )
    drafts: str = option(
        _ENGINE,
        Choice(("auto", "on", "off")),
        "auto",
        "When to draft tokens (speculative decoding). The drafts come from text that a schema forces, from "
        "n-grams, and from the `draft` model of a config entry. `auto`: only while measurements show that "
        "drafting is faster. `on`: whenever a draft is likely to be right. `off`: never.",
        key="engine.drafts",
        reload=True,
    )
