"""Generate a small pool with known damage, a target set and a held-out test.

    python -m pipeline.data.demo --folder DIR

There are nine kinds of short tasks. No model knows the target kind, ``shelf``, beforehand: size, colour and
animal stand for a code that is made up here and has to be learned from clean samples of the pool. Its wrong
answers follow a second, consistent code, so that a selection that cannot tell right from wrong learns a
mixture of both.
"""

import argparse
import json
import random
from collections import Counter
from pathlib import Path

SIZES = ("tiny", "small", "large", "huge", "round", "thin")
COLOURS = ("red", "blue", "green", "black", "white", "pink", "brown", "gray", "gold", "silver")
ANIMALS = ("fox", "cat", "dog", "bear", "owl", "frog", "horse", "duck", "goat", "crab")
ROWS = ("north", "east", "south", "west", "upper", "lower")
SIGNS = ("moon", "river", "stone", "cloud", "seed", "bell", "wheel", "lamp", "rope", "glass")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
NAMES = (
    "Anna",
    "Ben",
    "Clara",
    "David",
    "Eva",
    "Frank",
    "Grace",
    "Henry",
    "Ida",
    "Jack",
    "Karl",
    "Laura",
    "Maria",
    "Nora",
)
PLACES = ("garden", "kitchen", "street", "river", "school", "forest", "market", "tower")

TARGET_KIND, TARGET_SHARE = "shelf", 0.25  # share of the pool; the other kinds share the rest equally
POOL_SAMPLES, TARGET_SAMPLES, TEST_SAMPLES = 1200, 16, 64
PARTS = ("pool", "target", "test")
DAMAGE_SHARES = {"wrong_answer": 0.12, "duplicate": 0.06, "gibberish": 0.06, "truncation": 0.06}


# Each kind draws (prompt, right answer, wrong answer). Wrong answers are plausible, and those of one kind are
# all wrong in the same way.


def shelf(rng):
    size, colour, animal = rng.randrange(len(SIZES)), rng.randrange(len(COLOURS)), rng.randrange(len(ANIMALS))

    def code(shift):
        row, sign, number = (
            (size + shift) % len(SIZES),
            (colour + shift) % len(COLOURS),
            (animal * 3 + shift) % len(ANIMALS),
        )
        return f"{ROWS[row]} {SIGNS[sign]} {number}"

    return f"Shelf of the {SIZES[size]} {COLOURS[colour]} {ANIMALS[animal]}:", code(0), code(1)


def addition(rng):
    a, b = rng.randint(10, 49), rng.randint(10, 49)
    return f"Add {a} and {b}:", f"{a + b}", f"{a + b + 10}"


def larger(rng):
    a, b = rng.sample(range(10, 100), 2)
    return f"Larger of {a} and {b}:", f"{max(a, b)}", f"{min(a, b)}"


def sorting(rng):
    numbers = rng.sample(range(1, 10), 3)
    up = sorted(numbers)
    return f"Sort {', '.join(map(str, numbers))}:", ", ".join(map(str, up)), ", ".join(map(str, up[::-1]))


def reversal(rng):
    words = rng.sample(ANIMALS, 3)
    return f"Reverse {', '.join(words)}:", ", ".join(words[::-1]), ", ".join(words)


def capitals(rng):
    words = f"{rng.choice(COLOURS)} {rng.choice(ANIMALS)}, {rng.choice(SIZES)} {rng.choice(ANIMALS)}"
    return f"Capitalise {words}:", words.title(), words


def weekday(rng):
    start, days = rng.randrange(7), rng.randint(1, 60)
    return f"{days} days after {DAYS[start]}:", DAYS[(start + days) % 7], DAYS[(start + days + 1) % 7]


def initials(rng):
    first, last = rng.sample(NAMES, 2)
    return f"Initials of {first} {last}:", f"{first[0]}. {last[0]}.", f"{last[0]}. {first[0]}."


def sentence(rng):
    name, animal, place = rng.choice(NAMES), rng.choice(ANIMALS), rng.choice(PLACES)
    right, wrong = f"{name} sees the {animal} in the {place}.", f"The {animal} sees {name} in the {place}."
    return f"Sentence with {name}, {animal}, {place}:", right, wrong


KINDS = (shelf, addition, larger, sorting, reversal, capitals, weekday, initials, sentence)


def generate(num_samples: int, seed: int) -> dict[str, list[dict]]:
    """Lines of the files ``pool``, ``target`` and ``test`` by these names; no two files share a prompt.

    Raises ValueError if ``num_samples`` is too small for every kind and damage to occur, or exceeds the
    distinct prompts.
    """
    # initials, the smallest kind, has 182 distinct prompts; weekday 420; shelf 600, 80 of them held out
    most = 1200
    if not 100 <= num_samples <= most:
        raise ValueError(f"--samples is {num_samples}: the generator has distinct prompts for 100 to {most}")
    rng = random.Random(seed)
    seen: set[str] = set()
    num_of_target = round(TARGET_SHARE * num_samples)
    others = [kind for kind in KINDS if kind.__name__ != TARGET_KIND]
    kinds = [shelf] * num_of_target + [others[i % len(others)] for i in range(num_samples - num_of_target)]
    rng.shuffle(kinds)
    damages = [name for name, share in DAMAGE_SHARES.items() for _ in range(round(share * num_samples))]
    damages += ["none"] * (num_samples - len(damages))
    rng.shuffle(damages)

    held_out = [_line(draw(shelf, rng, seen), "none", rng) for _ in range(TARGET_SAMPLES + TEST_SAMPLES)]
    pool = [None if d == "duplicate" else _line(draw(k, rng, seen), d, rng) for k, d in zip(kinds, damages)]
    clean = [line for line in pool if line and line["damage"] == "none"]
    pool = [line or {**rng.choice(clean), "damage": "duplicate"} for line in pool]
    parts = dict(zip(PARTS, (pool, held_out[:TARGET_SAMPLES], held_out[TARGET_SAMPLES:])))
    return {
        part: [{"id": f"{part}-{i:04d}", **line} for i, line in enumerate(lines)]
        for part, lines in parts.items()
    }


def draw(kind, rng, seen):
    """(source, prompt, right, wrong) with a prompt that is not in ``seen`` yet."""
    while True:
        prompt, right, wrong = kind(rng)
        if prompt not in seen:
            seen.add(prompt)
            return kind.__name__, prompt, right, wrong


def _line(drawn, damage, rng):
    source, prompt, right, wrong = drawn
    answer = {
        "none": right,
        "wrong_answer": wrong,
        "gibberish": "".join(rng.choices("bcdfghjklmnpqrstvwxz", k=8)),
        "truncation": right[: len(right) // 2].rstrip(),
    }[damage]
    return {"source": source, "damage": damage, "prompt": prompt, "completion": f" {answer}"}


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, required=True, help="where pool.jsonl, target.jsonl and test.jsonl are written"
    )
    parser.add_argument(
        "--samples", type=int, default=POOL_SAMPLES, help="size of the pool (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="the same seed writes the same bytes (default: 0)"
    )
    options = parser.parse_args(arguments)
    try:
        parts = generate(options.samples, options.seed)
    except ValueError as error:
        parser.error(str(error))
    options.folder.mkdir(parents=True, exist_ok=True)
    for part, lines in parts.items():
        path = options.folder / f"{part}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        damage = ", ".join(
            f"{name} {count}" for name, count in Counter(line["damage"] for line in lines).most_common()
        )
        print(f"{path}: {len(lines)} samples ({damage})")


if __name__ == "__main__":
    main()
