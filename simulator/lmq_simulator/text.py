"""The words the simulated models say: readable English, the same for the same prompt and seed.

No model is at work here. A few common questions have a fixed answer; everything else gets sentences built from
small word lists, chosen by a generator that is seeded with the prompt.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable

# Longest piece that is streamed as one token, in characters.
_PIECE_CHARS = 7
# Characters that one token stands for when a prompt is counted.
_CHARS_PER_TOKEN = 4

_TOKEN = re.compile(rf"\s*\S{{1,{_PIECE_CHARS}}}|\s+\Z")
_WORD = re.compile(r"[A-Za-z][A-Za-z'-]{3,}")

_ANSWERS: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("sky", "blue"),
        (
            "Sunlight looks white, but it is a mixture of all colours. On its way to your eyes it meets "
            "the molecules of the air, and these scatter short waves far more strongly than long ones: "
            "blue light is sent off in every direction, while red light passes almost undisturbed. So "
            "wherever you look, a little blue light comes back to you. Violet is scattered even more, but"
            " the sun sends less of it and our eyes are less sensitive to it. At sunset the light crosses"
            " much more air, most of the blue is lost on the way, and what remains is red."
        ),
    ),
    (("capital", "france"), "The capital of France is Paris."),
    (("capital", "germany"), "The capital of Germany is Berlin."),
    (("capital", "italy"), "The capital of Italy is Rome."),
    (
        ("haiku",),
        "A queue at the door,\neach one waits and each is served:\nthe kettle still sings.",
    ),
    (
        ("what", "queue"),
        (
            "A queue is a line with rules. Whoever comes first is usually served first, but a good queue "
            "also knows who has already had a lot, who is in a hurry, and who would otherwise wait for "
            "ever. It remembers everyone in the line, even when the lights go out, and it can always tell"
            " you how many are ahead of you."
        ),
    ),
    (
        ("tide",),
        (
            "The tides come from the moon, and to a lesser part from the sun. The moon pulls a little "
            "harder on the near side of the earth than on its centre, and a little less on the far side, "
            "so the sea is stretched into two bulges. As the earth turns beneath them, most coasts see "
            "two high tides and two low tides a day."
        ),
    ),
    (
        ("bread",),
        (
            "Good bread needs four things: flour, water, salt and time. Mix them with a little yeast "
            "until no dry flour is left, then let the dough rest. Fold it a few times over the next two "
            "hours, shape it, and let it rise again until it springs back slowly when you press it. Bake "
            "it hot, with steam, until the crust is a deep brown."
        ),
    ),
    (
        ("joke",),
        "I asked the scheduler for a joke. It said: there are forty ahead of you, but yours is worth the wait.",
    ),
    (("hello",), "Hello! How can I help you today?"),
)

_OPENERS = (
    "Let us begin with {topic}.",
    "The short answer about {topic} is that it depends, and here is on what.",
    "There is more to {topic} than meets the eye.",
    "When people ask about {topic}, they usually want to know three things.",
    "It helps to look at {topic} from a little distance first.",
)
_SUBJECTS = (
    "a careful reader", "the first idea", "an old rule", "the whole picture", "a small example", "every good plan",
    "the usual advice", "a simple test", "the middle part", "a patient mind", "the next question", "a clear note",
    "the person who asks", "a quiet morning", "the second step", "an honest number",
)  # fmt: skip
_VERBS = (
    "shows", "explains", "changes", "supports", "needs", "improves", "reveals", "follows", "settles", "touches",
    "prepares", "answers", "balances", "simplifies",
)  # fmt: skip
_OBJECTS = (
    "what came before", "the reason behind {topic}", "a better way to begin", "the parts that matter most",
    "how the pieces fit together", "one thing at a time", "the cost of waiting", "a result that everyone can check",
    "the difference between two choices", "the shape of {topic}", "what most people expect", "a habit worth keeping",
)  # fmt: skip
_LINKS = ("so", "and then", "because", "even though", "while", "until")
_LEADS = (
    "In practice,",
    "As a rule,",
    "For instance,",
    "Most of the time,",
    "To be fair,",
    "At first,",
    "Later on,",
)
_CLOSERS = (
    "That is a good place to start.",
    "Try it once, and the rest becomes clear.",
    "Keep it simple, and write down what you learn.",
    "If one part is still unclear, ask about that part alone.",
)
_THOUGHTS = (
    "The person asks about {topic}.",
    "I should say what matters first, then give one example.",
    "A short answer is better than a long one here.",
    "Let me check that against what was said before.",
    "There are two ways to read the question; the plain one is more likely.",
    "I will keep the tone friendly and end with a next step.",
)
_COMMON = frozenset(
    (
        "about after again also answer because before could does every explain from give have hello here "
        "into just know like make many more much please should some tell than that their them then there "
        "these they this very want what when where which while will with would write your"
    ).split()
)


def digest(*parts: object) -> int:
    """Return a 64-bit number that depends on every part, the same in every process."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def token_count(text: str) -> int:
    """Return how many tokens a prompt of this text counts for; 0 only for the empty text."""
    return -(-len(text) // _CHARS_PER_TOKEN)


def pieces_of(text: str) -> list[str]:
    """Cut a text into the pieces that are streamed, one token each; joined they are the text again."""
    return _TOKEN.findall(text)


def answer(prompt: str, *, seed: int, tokens: int = 0) -> str:
    """Return what a model says to a prompt.

    Args:
        prompt: the last thing the user said.
        seed: the same prompt and seed give the same answer.
        tokens: exact length in pieces; 0 lets the answer end where it ends.
    """
    lowered = prompt.lower()
    if tokens == 0 and len(lowered) <= _QUESTION_CHARS:
        for words, said in _ANSWERS:
            if all(word in lowered for word in words):
                return said
    chance = random.Random(digest("answer", seed, prompt))
    topic = _topic(prompt, chance)
    if tokens == 0:
        sentences = [chance.choice(_OPENERS).format(topic=topic)]
        sentences += [_sentence(topic, chance) for _ in range(chance.randint(3, 7))]
        sentences.append(chance.choice(_CLOSERS))
        return " ".join(sentences)
    return _exactly(tokens, chance.choice(_OPENERS).format(topic=topic), lambda: _sentence(topic, chance))


def thought(prompt: str, *, seed: int, tokens: int) -> str:
    """Return a model's reasoning before it answers, exactly `tokens` pieces long."""
    if tokens == 0:
        return ""
    chance = random.Random(digest("thought", seed, prompt))
    topic = _topic(prompt, chance)
    return _exactly(
        tokens, _THOUGHTS[0].format(topic=topic), lambda: chance.choice(_THOUGHTS).format(topic=topic)
    )


# Only a short question gets a fixed answer; in a long text the words stand there by accident.
_QUESTION_CHARS = 120


def _topic(prompt: str, chance: random.Random) -> str:
    words = [word for word in _WORD.findall(prompt) if word.lower() not in _COMMON]
    return chance.choice(words[-12:]).lower() if words else "this"


def _sentence(topic: str, chance: random.Random) -> str:
    clause = _clause(topic, chance)
    if chance.random() < 0.4:
        clause = f"{clause}, {chance.choice(_LINKS)} {_clause(topic, chance)}"
    if chance.random() < 0.35:
        return f"{chance.choice(_LEADS)} {clause}."
    return f"{clause[0].upper()}{clause[1:]}."


def _clause(topic: str, chance: random.Random) -> str:
    return f"{chance.choice(_SUBJECTS)} {chance.choice(_VERBS)} {chance.choice(_OBJECTS).format(topic=topic)}"


def _exactly(tokens: int, opening: str, more: Callable[[], str]) -> str:
    pieces = pieces_of(opening)
    while len(pieces) < tokens:
        pieces += pieces_of(" " + more())
    return "".join(pieces[:tokens])
