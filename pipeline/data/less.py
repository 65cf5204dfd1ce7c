"""Target sets and held-out samples of MMLU and TyDiQA, from the evaluation files of LESS (arXiv 2402.04333).

    hf download princeton-nlp/less_data --repo-type dataset --local-dir data/less
    python -m pipeline.data.less --data data/less/data --folder data/paper

The targets are those of LESS (M. Xia et al.): five dev questions of each MMLU subject, one passage and
question of each TyDiQA language. A question is asked as in LESS, in Tulu's format and with the beginning of
the answer given, so that the answer alone is supervised, and the end token, which LESS leaves out. TyDiQA's
instruction is English here; LESS takes one in each language.
"""

import argparse
import csv
import json
from pathlib import Path

TEST_PER_PART = 5
"""Held-out samples of each subject and language: enough to watch a loss; pipeline.evaluate gives scores."""
LETTERS = "ABCD"


def mmlu(folder: Path, part: str) -> list[dict]:
    """Lines of the first five questions of each subject in ``part``, 'dev' or 'test'.

    A row of LESS's files is a question, four answers and the letter of the right one.
    """
    files = sorted((folder / part).glob(f"*_{part}.csv"))
    if not files:
        raise ValueError(
            f"there are no files *_{part}.csv in {folder / part}: --data is the folder that holds LESS's "
            "eval/"
        )
    lines = []
    for file in files:
        subject = file.name.removesuffix(f"_{part}.csv")
        with file.open(newline="", encoding="utf-8") as rows:
            for number, (question, *answers, letter) in zip(range(TEST_PER_PART), csv.reader(rows)):
                choices = "".join(f"\n{name}. {answer}" for name, answer in zip(LETTERS, answers))
                about = f"Choose the right answer to a question about {subject.replace('_', ' ')}.\n\n"
                prompt = _asked(f"{about}{question}{choices}\nAnswer:", "The answer is:")
                lines.append(_line(f"{subject}-{part}-{number}", "mmlu", prompt, letter))
    return lines


def tydiqa_target(folder: Path) -> list[dict]:
    """A line for each language; the file is {language: [{context, question, answers: [{text}]}]}."""
    found = json.loads(_existing(folder / "tydiqa-one-shot.json").read_text(encoding="utf-8"))
    return [_question(f"{language}-target", item[0]["context"], item[0]) for language, item in found.items()]


def tydiqa_test(folder: Path) -> list[dict]:
    """Lines of the first questions of each language in GoldP's dev file.

    The file has SQuAD's format, and its ids begin with the language.
    """
    found = json.loads(_existing(folder / "tydiqa-goldp-v1.1-dev.json").read_text(encoding="utf-8"))
    lines: dict[str, list[dict]] = {}
    for article in found["data"]:
        for paragraph in article["paragraphs"]:
            for item in paragraph["qas"]:
                of_language = lines.setdefault(item["id"].split("-")[0], [])
                if len(of_language) < TEST_PER_PART:
                    of_language.append(_question(item["id"], paragraph["context"], item))
    return [line for of_language in lines.values() for line in of_language]


def _question(name: str, context: str, item: dict) -> dict:
    prompt = _asked(
        f"Answer the question from the passage.\nPassage: {context}\nQuestion: {item['question']}", "Answer:"
    )
    return _line(name, "tydiqa", prompt, item["answers"][0]["text"])


def _asked(question: str, beginning: str) -> str:
    return f"<|user|>\n{question}\n<|assistant|>\n{beginning}"


def _line(name: str, source: str, prompt: str, answer: str) -> dict:
    return {"id": name, "source": source, "prompt": prompt, "completion": f" {answer}"}


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(f"there is no file {path}: --data is the folder that holds LESS's eval/")
    return path


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="LESS's data folder: eval/mmlu and eval/tydiqa are in it"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        required=True,
        help="where mmlu_target.jsonl, tydiqa_test.jsonl and so on are written",
    )
    options = parser.parse_args(arguments)
    evaluation = options.data / "eval"
    try:
        parts = {
            "mmlu_target": mmlu(evaluation / "mmlu", "dev"),
            "mmlu_test": mmlu(evaluation / "mmlu", "test"),
            "tydiqa_target": tydiqa_target(evaluation / "tydiqa"),
            "tydiqa_test": tydiqa_test(evaluation / "tydiqa"),
        }
    except ValueError as error:
        parser.error(str(error))
    options.folder.mkdir(parents=True, exist_ok=True)
    for part, lines in parts.items():
        path = options.folder / f"{part}.jsonl"
        path.write_text(
            "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8"
        )
        print(f"{path}: {len(lines)} samples")


if __name__ == "__main__":
    main()
