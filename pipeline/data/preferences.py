"""The refusal of preference data (several answers to a prompt, and which is better), with a way out."""

from pipeline.data.checks import BrokenLine

REASON = "preference data"
WHY = (
    "the weighted loss here learns from answers that are right, and has no term for one being better than "
    "another"
)
LISTS = ("completions", "responses", "generations", "candidates", "rankings", "ranking", "ranks", "rank")


def refuse(row: dict) -> None:
    """Raise BrokenLine for a pair, an answer with a verdict (KTO) or a ranking, with a way to keep the best.

    A row with ``messages`` passes: data sets of pairs often have the preferred chat there, and data.columns
    can put it there.
    """
    if "messages" in row:
        return
    if "chosen" in row and "rejected" in row:
        raise BrokenLine(REASON, f"'chosen' and 'rejected' are a pair, and {WHY}: {_way_out_of_pair(row)}")
    if "completion" in row and _is_verdict(row.get("label")):
        raise BrokenLine(
            REASON,
            f"'completion' has a verdict, 'label': {row['label']}, and {WHY}: keep the good ones and drop "
            "the column, as in dataset.filter(lambda row: row['label']).remove_columns('label')",
        )
    several = [key for key in LISTS if isinstance(row.get(key), list)] or [
        key for key in row if str(key).startswith("response_")
    ]
    if (
        several
        and "completion" not in row
        and "output" not in row
        and "conversations" not in row
        and "text" not in row
    ):
        raise BrokenLine(
            REASON,
            f"'{several[0]}' holds several answers or their order, and {WHY}: keep the best one, as in "
            "{'prompt': row['prompt'], 'completion': best}",
        )


def _way_out_of_pair(row: dict) -> str:
    if isinstance(row["chosen"], list) and not isinstance(row.get("prompt"), list):
        return "keep the preferred chat with data.columns: {chosen: messages}"
    if isinstance(row["chosen"], dict):
        return (
            "put 'chosen' behind the messages that it answers, and keep them all as 'messages' or "
            "'conversations'"
        )
    if "prompt" in row:
        return "keep the preferred answer with data.columns: {chosen: completion}"
    return "cut 'chosen' where the answer begins, and keep the two parts as 'prompt' and 'completion'"


def _is_verdict(label: object) -> bool:
    """Whether ``label`` is true or false, also as the text of a CSV cell."""
    return isinstance(label, bool) or (isinstance(label, str) and label.lower() in ("true", "false"))
