"""YAML as users write it: plain values, of bounded size, no key twice."""

from collections.abc import Iterator
from typing import Any, Optional

import yaml
from jsonargparse import get_loader

MAX_DEPTH = 100  # of nesting: PyYAML recurses, and older releases overrun the stack of the process
MAX_NODES = 10_000  # of a YAML text with its aliases written out: a few lines of them can stand for billions
_plain_load = get_loader("yaml")


def load_yaml(text: str) -> Any:
    """The value in ``text``. Raises yaml.YAMLError, also for too many values and for a key twice."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        _check_depth(yaml.parse(text, Loader=loader))
        _check_nodes(yaml.compose(text, Loader=loader))
        return _plain_load(text)
    except ValueError as error:  # too many digits for Python, a date that does not exist
        raise yaml.YAMLError(str(error)) from error


def _check_depth(events: Iterator[yaml.Event]) -> None:
    depth = 0
    for event in events:
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise yaml.YAMLError(
                f"line {event.start_mark.line + 1} is nested more than {MAX_DEPTH} levels deep"
            )


def _check_nodes(root: Optional[yaml.Node]) -> None:
    waiting, seen = [root] if root else [], 0
    while waiting:
        node, seen = waiting.pop(), seen + 1
        if seen > MAX_NODES:
            raise yaml.YAMLError(f"with its aliases written out it holds more than {MAX_NODES} values")
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        if isinstance(node, yaml.MappingNode):
            keys = [
                key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"
            ]
            if twice := [key for key in keys if keys.count(key) > 1]:
                raise yaml.YAMLError(
                    f"the key {twice[0]!r} stands twice, the second time in line {_line(node, twice[0])}"
                )
            waiting += [part for pair in node.value for part in pair]


def _line(mapping: yaml.MappingNode, key: str) -> int:
    return [found.start_mark.line + 1 for found, _ in mapping.value if found.value == key][1]
