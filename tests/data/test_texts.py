import json

from pipeline.data.texts import pool_texts


def test_tool_calls_and_renamed_columns_are_shown(tmp_path):
    call = {"name": "weather", "arguments": {"city": "Ulm"}}
    chats = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": None, "tool_calls": [call]}]
        for question in ("Rain?", "rain?", "Snow?")
    ]
    path = tmp_path / "pool.jsonl"
    path.write_text("".join(json.dumps({"chat": chat, "tools": [call]}) + "\n" for chat in chats))
    texts, why = pool_texts([({"pool": [str(path)], "columns": {"chat": "messages"}}, None)])
    assert why == ""
    assert texts.loc["pool:1", "text"].splitlines()[:2] == ["Rain?", 'weather({"city": "Ulm"})']
    assert texts["is_duplicate"].tolist() == [True, True, False]
    assert pool_texts([({"pool": [str(path)], "columns": {"chat": "text"}}, None)])[0] is None
