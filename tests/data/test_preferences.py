import pytest

from pipeline.data.checks import BrokenLine
from pipeline.data.record import parse

ASK, GOOD, BAD = (
    {"role": role, "content": text} for role, text in (("user", "a"), ("assistant", "b"), ("assistant", "c"))
)


def read(**row):
    return parse(row, "pool", 1, "pool.jsonl:1")


@pytest.mark.parametrize(
    "row, way_out",
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, r"data\.columns: \{chosen: completion\}"),
        ({"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]}, r"data\.columns: \{chosen: completion\}"),
        ({"chosen": [ASK, GOOD], "rejected": [ASK, BAD]}, r"data\.columns: \{chosen: messages\}"),
        (
            {"prompt": "a", "chosen": [ASK, GOOD], "rejected": [ASK, BAD], "score_chosen": 1.0},
            r"data\.columns: \{chosen: messages\}",
        ),
        ({"chosen": "a b", "rejected": "a c"}, "cut 'chosen' where the answer begins"),
        (
            {"conversations": [ASK], "chosen": GOOD, "rejected": BAD},
            "put 'chosen' behind the messages that it answers",
        ),
        ({"prompt": "a", "completion": "b", "label": False}, r"filter\(lambda row: row\['label'\]\)"),
        ({"prompt": [ASK], "completion": [GOOD], "label": True}, "'label': True"),
        ({"prompt": "a", "completion": "b", "label": "False"}, "'label': False"),
        (
            {"prompt": "a", "completions": ["b", "c"], "labels": [True, False]},
            "'completions' holds several answers",
        ),
        ({"prompt": "a", "responses": ["b", "c"], "rank": [0, 1]}, "keep the best one"),
        (
            {"prompt": "a", "response_0": "b", "response_1": "c", "better_response_id": 1},
            "'response_0' holds several answers",
        ),
    ],
)
def test_preference_data_are_refused_with_the_reason_and_the_way_out(row, way_out):
    with pytest.raises(
        BrokenLine,
        match=f"preference data: .* has no term for one being better than another: .*{way_out}|{way_out}",
    ) as error:
        read(**row)
    assert error.value.reason == "preference data" and "no term for one being better" in str(error.value)


def test_the_ways_out_lead_to_samples():
    assert read(prompt="a", completion="b", rejected="c").completion == "b"
    assert read(prompt=[ASK], completion=[GOOD], rejected=[BAD]).messages == [ASK, GOOD]
    assert read(messages=[ASK, GOOD], rejected=[ASK, BAD]).messages == [ASK, GOOD]


def test_what_only_looks_like_preference_data_is_read():
    assert read(messages=[ASK, GOOD], chosen=[ASK, GOOD], rejected=[ASK, BAD]).messages == [ASK, GOOD]
    assert read(prompt="a", completion="b", label="sports").completion == "b"
    assert read(prompt="a", completion="b", label=1).completion == "b"
    assert read(prompt="a", completion="b", responses=["c"]).completion == "b"
    assert read(text="a", label=True).text == "a"
