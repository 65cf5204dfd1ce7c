"""Settings of the demo in which words do not tell what is worth training on, and gradients can.

``demo:SETTING/pool``, ``demo:SETTING/target`` and ``demo:SETTING/test`` name their samples. Right for the
target is what has the target's ``source`` and no damage; each setting's docstring says what a retrieval by
words sees of it, and what a gradient can see. Words are a bag: n-grams of the answers alone would tell part
of it, by the order of words and by what an answer begins with.

The demo model has never seen what the targets ask for: a kind ``route`` that is drawn here alone, ``shelf``,
and letters as answers, these to questions of kinds that it knows.
"""

import random
from collections.abc import Callable
from itertools import permutations

from pipeline.data.demo import (
    ANIMALS,
    COLOURS,
    KINDS,
    NAMES,
    POOL_SAMPLES,
    SIZES,
    TARGET_KIND,
    TEST_SAMPLES,
    draw,
    shelf,
)

TARGET_SAMPLES = 24
KNOWN = tuple(kind for kind in KINDS if kind.__name__ != TARGET_KIND)
"""Kinds that the demo model has learned."""
ALL_ORDERS = tuple(permutations(("moon", "river", "stone", "lamp")))
ORDERS = tuple(
    order
    for order in ALL_ORDERS
    if order.index("moon") < order.index("lamp") and order.index("river") < order.index("stone")
)
"""Answers of ``route``, one a size: none of them read backwards is one of them."""
PARAPHRASES = (
    "{name}'s {size} {colour} {animal} goes by",
    "Way for {name}, {size} {colour} {animal}:",
    "Which way? {size} {colour} {animal} ({name})",
    "{size} {colour} {animal} / {name} =",
)
SLIPS = tuple(
    end + closing
    for end in (":", " :", "?", " ?", ".", " =", "!", " -", "...")
    for closing in ("", " ", "  ", ")", " )", '"', ' "', ";")
)[1:]
"""Ends of a prompt in place of its colon, which a retrieval by words does not see."""

Parts = tuple[list[dict], list[dict]]
"""Lines of the pool, and the held-out ones of target and test."""


def route(rng):
    """(prompt, right, wrong). Every answer has the same four words; their order follows from the size alone.
    Wrong is the right one backwards."""
    things = {
        "size": rng.choice(SIZES),
        "colour": rng.choice(COLOURS),
        "animal": rng.choice(ANIMALS),
        "name": rng.choice(NAMES),
    }
    order = ORDERS[SIZES.index(things["size"])]
    prompt = "Route of the {size} {colour} {animal} of {name}:".format(**things)
    return prompt, " ".join(order), " ".join(reversed(order))


def decoys(rng: random.Random) -> Parts:
    """500 samples of the pool are right; 500 have the same prompts and useless answers, half of them the
    answer to another size, half the same words in an order that answers nothing; 200 are of other kinds.

    Retrieval sees the same words in right and useless. A gradient sees an order that no target example has,
    and, with as many target examples a step as there are sizes, one that belongs to another size.
    """
    seen = set[str]()
    held_out = _clean(route, TARGET_SAMPLES + TEST_SAMPLES, rng, seen)
    right = _clean(route, 500, rng, seen)
    useless = []
    for number, line in enumerate(right):
        damage, known = ("other_answer", True) if number % 2 else ("no_answer", False)
        answers = [f" {' '.join(order)}" for order in ALL_ORDERS if (order in ORDERS) == known]
        answer = rng.choice([answer for answer in answers if answer != line["completion"]])
        useless.append({**line, "damage": damage, "completion": answer})
    return right + useless + _of_known_kinds(200, rng, seen), held_out


def half_wrong(rng: random.Random) -> Parts:
    """1,000 samples of the pool are of the target's kind, half of them with the right answer backwards; 200
    are of other kinds.

    Retrieval sees the same words in right and wrong. A gradient sees in what order they come.
    """
    seen = set[str]()
    held_out = _clean(route, TARGET_SAMPLES + TEST_SAMPLES, rng, seen)
    right = _clean(route, 500, rng, seen)
    wrong = [draw(route, rng, seen) for _ in range(500)]
    lines = [_line(source, "wrong_answer", prompt, answer) for source, prompt, _, answer in wrong]
    return right + lines + _of_known_kinds(200, rng, seen), held_out


def other_words(rng: random.Random) -> Parts:
    """A quarter of the pool right under other words (four formats), a quarter with the target's own prompts
    and an answer that names the owner, half of other kinds.

    Retrieval sees the target's words in what does something else. A gradient sees what is answered to a size,
    whatever words stand around it, and that the target's words call for no names.
    """
    seen = set[str]()
    held_out = _clean(route, TARGET_SAMPLES + TEST_SAMPLES, rng, seen)
    right, other = _clean(route, 300, rng, seen), []
    for number, line in enumerate(right):
        line["prompt"] = PARAPHRASES[number % len(PARAPHRASES)].format(**_things(line["prompt"]))
    for _, prompt, *_ in [draw(route, rng, seen) for _ in range(300)]:
        answer = "{name} has the lamp and the stone".format(**_things(prompt))
        other.append(_line("owner", "none", prompt, answer))
    return right + other + _of_known_kinds(600, rng, seen), held_out


def behaviour(rng: random.Random) -> Parts:
    """All kinds that the demo model knows, with two options in every prompt: a quarter is answered by the
    letter of the right option, as the target is, the rest by what it says.

    The source of the first is ``letters``, of the others their kind. Retrieval sees kinds, and an answer that
    repeats a word of the prompt in both. A gradient sees what an answer begins with.
    """
    seen = set[str]()

    def line(number: int, by_letter: bool) -> dict:
        source, question, right, wrong = draw(KNOWN[number % len(KNOWN)], rng, seen)
        letter = rng.choice("AB")
        first, second = (right, wrong) if letter == "A" else (wrong, right)
        prompt = f"{question} (A) {first} (B) {second}"
        return _line("letters", "none", prompt, letter) if by_letter else _line(source, "none", prompt, right)

    pool = [line(number, number // len(KNOWN) % 4 == 0) for number in range(POOL_SAMPLES)]
    return pool, [line(number, True) for number in range(TARGET_SAMPLES + TEST_SAMPLES)]


def near_duplicates(rng: random.Random) -> Parts:
    """150 samples of the pool are right and differ; 600 are copies, with other ends, of 24 samples that each
    share two words with a target example, half of these 24 wrong; 450 are of other kinds.

    Retrieval sees the copies as near as what they are copies of. A gradient sees a wrong answer where the
    model knows better by then, and that right copies give nothing any more once one of them is learned.
    """
    seen = set[str]()
    held_out = _clean(shelf, TARGET_SAMPLES + TEST_SAMPLES, rng, seen)
    pool = _clean(shelf, 150, rng, seen)
    for number, example in enumerate(held_out[:TARGET_SAMPLES]):
        source, prompt, right, wrong = _neighbour(example["prompt"], rng, seen)
        damage, answer = ("near_duplicate", right) if number % 2 else ("wrong_answer", wrong)
        ends = rng.sample(SLIPS, 25)
        pool += [_line(source, damage, prompt.removesuffix(":") + end, answer) for end in ends]
    return pool + _of_known_kinds(POOL_SAMPLES - len(pool), rng, seen), held_out


SETTINGS: dict[str, Callable[[random.Random], Parts]] = {
    setting.__name__: setting for setting in (decoys, half_wrong, other_words, behaviour, near_duplicates)
}


def generate(setting: str, seed: int) -> dict[str, list[dict]]:
    """Lines of the parts ``pool``, ``target`` and ``test`` of a setting; the same seed makes the same."""
    rng = random.Random(f"{setting} {seed}")
    pool, held_out = SETTINGS[setting](rng)
    rng.shuffle(pool)
    parts = {"pool": pool, "target": held_out[:TARGET_SAMPLES], "test": held_out[TARGET_SAMPLES:]}
    return {
        part: [{"id": f"{setting}-{part}-{i:04d}", **line} for i, line in enumerate(lines)]
        for part, lines in parts.items()
    }


def _clean(kind, num_samples, rng, seen):
    drawn = [draw(kind, rng, seen) for _ in range(num_samples)]
    return [_line(source, "none", prompt, right) for source, prompt, right, _ in drawn]


def _of_known_kinds(num_samples, rng, seen):
    return [line for i in range(num_samples) for line in _clean(KNOWN[i % len(KNOWN)], 1, rng, seen)]


def _neighbour(prompt, rng, seen):
    """A draw of ``shelf`` that shares two of its three things with ``prompt``."""
    while True:
        drawn = draw(shelf, rng, set(seen))
        if len(set(drawn[1].split()) - set(prompt.split())) == 1:
            seen.add(drawn[1])
            return drawn


def _things(prompt):
    """What a prompt of ``route`` is about, by name."""
    size, colour, animal, _, name = prompt.removeprefix("Route of the ").removesuffix(":").split()
    return {"size": size, "colour": colour, "animal": animal, "name": name}


def _line(source, damage, prompt, answer):
    return {"source": source, "damage": damage, "prompt": prompt, "completion": f" {answer}"}
