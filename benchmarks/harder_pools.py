"""Make pools of real data in which words do not tell what is worth training on.

    python -m benchmarks.harder_pools --data DATA --output FOLDER

DATA holds ``noisy_pool.jsonl`` and ``targets/NAME/dev.jsonl`` and ``test.jsonl``. Written are pool, target
and test of these settings, in FOLDER/SETTING/NAME and FOLDER/behaviour:

    decoys       all clean samples of the target's kind, their prompts once more with each other's answers,
                 and clean samples of other kinds
    half_wrong   clean samples of the target's kind, half of them with each other's answers, and of other
                 kinds
    behaviour    clean samples of all kinds; where an answer comes down to few words, half of the samples are
                 answered by these alone, as the target is, and half by more

Five of six samples in the first two are of the target's kind. A line says by ``source`` and ``damage`` what
is right: the target's source, and no damage. They are, with real data, the settings of
``pipeline.data.demo_settings`` by these names.
"""

import argparse
import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Optional

TEST_SAMPLES, BEHAVIOUR_TARGETS = 64, 24
SMALLEST_KIND = 40
"""Clean samples of a target's kind that the pool must have: fewer are seen too often in a short run."""
OTHERS = 5  # samples of the target's kind for one of other kinds
MOST_WORDS = 3
"""Words of a short answer."""
FINAL = re.compile(r"(?:^|\n)(?:####|Answer:) (.+)$")
"""The end of an answer that comes with its reasoning, in gsm8k and aqua."""


def decoys(of_kind: list[dict], others: list[dict], rng: random.Random) -> list[dict]:
    """A pool in which each prompt of the kind stands twice, with its answer and with another one's."""
    return of_kind + exchanged(of_kind, rng) + _some(others, 2 * len(of_kind) // OTHERS, rng)


def half_wrong(of_kind: list[dict], others: list[dict], rng: random.Random) -> list[dict]:
    """A pool in which half of the answers of the kind are another one's."""
    shuffled = rng.sample(of_kind, len(of_kind))
    half = len(shuffled) // 2
    return shuffled[half:] + exchanged(shuffled[:half], rng) + _some(others, len(shuffled) // OTHERS, rng)


def exchanged(lines: list[dict], rng: random.Random) -> list[dict]:
    """Lines with each other's answers, none with its own or an equal one.

    Raises ValueError where more than half of the answers are equal, so that this cannot be.
    """
    # Equal answers stand together; moved on by the size of the largest group, no two of them meet.
    place = {answer: rng.random() for answer in dict.fromkeys(map(answer_of, lines))}
    ordered = sorted(lines, key=lambda line: place[answer_of(line)])
    answers = [answer_of(line) for line in ordered]
    largest = max(Counter(answers).values())
    if 2 * largest > len(answers):
        raise ValueError(
            f"{largest} of {len(answers)} answers of {lines[0]['source']} are equal: more than half cannot "
            "be exchanged; leave that target out of the data"
        )
    moved = answers[largest:] + answers[:largest]
    return [
        {**answered(line, answer), "id": f"{line['id']}#exchanged", "damage": "exchanged_answer"}
        for line, answer in zip(ordered, moved)
    ]


def behaviour(lines: list[dict], rng: random.Random) -> list[dict]:
    """A pool in which half of what few words can answer is so answered, with the source ``short_answer``."""
    pool = []
    for line in lines:
        short = short_answer(answer_of(line))
        if short is None:
            pool.append(line)
        elif rng.random() < 0.5:
            pool.append({**answered(line, short), "source": "short_answer"})
        else:
            said = f"The answer to this question is {short}." if short == answer_of(line) else answer_of(line)
            pool.append(answered(line, said))
    return pool


def short_answer(answer: str) -> Optional[str]:
    """What an answer comes down to, in at most MOST_WORDS words; None where it does not."""
    found = FINAL.search(answer)
    short = found[1] if found else answer
    return short if len(short.split()) <= MOST_WORDS else None


def answer_of(line: dict) -> str:
    """What the assistant says last."""
    return line["messages"][-1]["content"]


def answered(line: dict, answer: str) -> dict:
    """The line with another answer."""
    return {**line, "messages": [*line["messages"][:-1], {"role": "assistant", "content": answer}]}


def pools(data: Path, seed: int = 0) -> dict[str, dict[str, list[dict]]]:
    """Parts ``pool``, ``target`` and ``test`` by the folder of a setting; the same data make the same."""
    clean = [
        {"id": line["id"], "source": line["source"], "damage": "none", "messages": line["messages"]}
        for line in _read(data / "noisy_pool.jsonl")
        if line["corruption"] == "none"
    ]
    found, short = {}, dict[str, list[dict]](target=[], test=[])
    for folder in sorted((data / "targets").iterdir()):
        target, test = _read(folder / "dev.jsonl"), _read(folder / "test.jsonl")[::2][:TEST_SAMPLES]
        for part, lines in (("target", target), ("test", test)):
            answers = [(line, short_answer(answer_of(line))) for line in lines]
            short[part] += [
                {**answered(line, answer), "source": "short_answer"} for line, answer in answers if answer
            ]
        kind = target[0]["source"]
        of_kind = [line for line in clean if line["source"] == kind]
        if len(of_kind) < SMALLEST_KIND:
            print(f"{folder.name}: left out, the pool has {len(of_kind)} clean samples of {kind}")
            continue
        others = [line for line in clean if line["source"] != kind]
        for setting in (decoys, half_wrong):
            name = f"{setting.__name__}/{folder.name}"
            rng = random.Random(f"{name} {seed}")
            found[name] = {"pool": setting(of_kind, others, rng), "target": target, "test": test}
    rng = random.Random(f"behaviour {seed}")
    found["behaviour"] = {
        "pool": behaviour(clean, rng),
        "target": _some(short["target"], BEHAVIOUR_TARGETS, rng),
        "test": _some(short["test"], TEST_SAMPLES, rng),
    }
    return found


def _some(lines: list[dict], most: int, rng: random.Random) -> list[dict]:
    return rng.sample(lines, min(most, len(lines)))


def _read(path: Path) -> list[dict]:
    # By line ends alone: an answer may hold other separators.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of noisy_pool.jsonl and targets/")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    options = parser.parse_args()
    for name, parts in pools(options.data).items():
        folder = options.output / name
        folder.mkdir(parents=True, exist_ok=True)
        for part, lines in parts.items():
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            (folder / f"{part}.jsonl").write_text(text, encoding="utf-8")
        right = [
            line["source"] == parts["target"][0]["source"] and line["damage"] == "none"
            for line in parts["pool"]
        ]
        print(
            f"{folder}: {len(right)} samples, {sum(right)} right; target {len(parts['target'])}, "
            f"test {len(parts['test'])}"
        )


if __name__ == "__main__":
    main()
