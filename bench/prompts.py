"""Prompts that no cache can contain. Each begins with random words from the generator of the case."""

from __future__ import annotations

import random

WORDS = [
    "amber",
    "anchor",
    "autumn",
    "basket",
    "beacon",
    "bridge",
    "canyon",
    "cedar",
    "clock",
    "cloud",
    "copper",
    "coral",
    "crane",
    "dawn",
    "delta",
    "ember",
    "falcon",
    "fern",
    "field",
    "forest",
    "garden",
    "glacier",
    "harbor",
    "hazel",
    "hill",
    "island",
    "ivory",
    "jasmine",
    "lake",
    "lantern",
    "lemon",
    "marble",
    "meadow",
    "mill",
    "mirror",
    "moon",
    "moss",
    "mountain",
    "needle",
    "oak",
    "ocean",
    "olive",
    "orchard",
    "path",
    "pebble",
    "pine",
    "planet",
    "prairie",
    "quartz",
    "rain",
    "raven",
    "reef",
    "ridge",
    "river",
    "road",
    "saddle",
    "sail",
    "salt",
    "shadow",
    "silver",
    "sky",
    "slate",
    "snow",
    "spring",
    "star",
    "stone",
    "storm",
    "stream",
    "summer",
    "thistle",
    "thunder",
    "tide",
    "timber",
    "tower",
    "trail",
    "valley",
    "velvet",
    "village",
    "violet",
    "water",
    "wave",
    "willow",
    "wind",
    "winter",
    "wolf",
    "wood",
]


def words(rng: random.Random, count: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(count))


def story(rng: random.Random, extra_words: int = 0) -> list[dict[str, str]]:
    """Requests a long answer. Each of ``extra_words`` makes the prompt longer by a little more than a
    token."""
    return [
        {"role": "system", "content": f"{words(rng, 6)}. You are a storyteller. {words(rng, extra_words)}"},
        {"role": "user", "content": f"Write a very long story about the {words(rng, 2)} with many details."},
    ]


def short(rng: random.Random) -> list[dict[str, str]]:
    """A prompt of about twenty tokens."""
    return [{"role": "system", "content": words(rng, 2)}, {"role": "user", "content": words(rng, 2)}]


def chatml(messages: list[dict[str, str]]) -> str:
    """The text of a prompt in the format of the ChatML family."""
    turns = "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in messages)
    return f"{turns}<|im_start|>assistant\n"
