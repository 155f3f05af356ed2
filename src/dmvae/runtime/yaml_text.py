"""YAML as recipes and the command line write it."""

from __future__ import annotations

import re
from collections.abc import Iterator

import yaml

INT, TIME, MERGE = "tag:yaml.org,2002:int", "tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:merge"


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader, but 010, 12:30 and 2024-01-01 are text, not the numbers 8 and 750 and a date."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Where << merges several mappings, the first one that has a key wins (yaml.org/type/merge.html). PyYAML 6.0.4
        takes the last one instead (its issue 953)."""
        for i, (key, value) in enumerate(node.value):
            bases = value.value if isinstance(value, yaml.SequenceNode) else [value]
            if key.tag == MERGE and all(isinstance(base, yaml.MappingNode) for base in bases):
                found: dict[tuple[str, str], tuple[yaml.Node, yaml.Node]] = {}
                for base in reversed(bases):
                    self.flatten_mapping(base)
                    found |= {(inner.tag, str(inner.value)): (inner, of) for inner, of in base.value}
                node.value[i] = (key, yaml.MappingNode(value.tag, list(found.values())))
        super().flatten_mapping(node)


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag not in (INT, TIME)]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(INT, re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F]+)$"), list("-+0123456789"))


DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
"""The one in C is five times as fast, and not in every build of PyYAML. They differ in where they fold a quoted line,
and in nothing that is read again."""


def as_yaml(values: object) -> str:
    """The text of plain values, fields in their order."""
    return yaml.dump(values, Dumper=DUMPER, sort_keys=False, allow_unicode=True)


def read_yaml(text: str, *, once: bool = False) -> object:
    """What the text holds. Raises yaml.YAMLError, also for an anchor that contains itself, and RecursionError for text
    that is nested too deep. once: YAMLError too where a mapping has a key twice (YAML would silently take the last), or
    a field in two spellings: `tokenizer.steps` and `tokenizer: {steps: ...}`."""
    loader = Loader(text)
    try:
        node = loader.get_single_node()
        if once:
            _require_once(node, set())
        _require_finite(node, set(), set())
        return None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


def _require_finite(node: yaml.Node | None, above: set[int], done: set[int]) -> None:
    """Raise YAMLError where a node contains itself. above: the nodes around this one; done: nodes that have been
    checked, since an anchor's node may stand in many places."""
    if not isinstance(node, yaml.CollectionNode) or id(node) in done:
        return
    if id(node) in above:
        raise yaml.MarkedYAMLError(problem="an anchor that contains itself", problem_mark=node.start_mark)
    for item in node.value:
        for part in item if isinstance(item, tuple) else (item,):
            _require_finite(part, above | {id(node)}, done)
    done.add(id(node))


def _require_once(node: yaml.Node | None, seen: set[int]) -> None:
    if id(node) in seen:  # an anchor's node stands in many places
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _require_once(item, seen)
    if not isinstance(node, yaml.MappingNode):
        return
    keys: set[str] = set()
    inherited = set(_inherited(node))
    for key, value in node.value:
        if isinstance(key, yaml.ScalarNode) and key.value != "<<":
            names = {key.value, *_places(key, value)}
            if twice := sorted(names & keys):
                raise yaml.MarkedYAMLError(problem=f"{twice[0]!r} is given twice", problem_mark=key.start_mark)
            if hidden := sorted((names - {key.value}) & inherited):  # YAML would lay the inherited one over it
                problem = f"{hidden[0]!r} is inherited by << and would hide this one; write {hidden[0]}: here too"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            keys |= names
        _require_once(value, seen)


def _inherited(node: yaml.MappingNode) -> Iterator[str]:
    """The keys that a mapping inherits from others by <<."""
    for key, value in node.value:
        if isinstance(key, yaml.ScalarNode) and key.value == "<<":
            for base in value.value if isinstance(value, yaml.SequenceNode) else (value,):
                if isinstance(base, yaml.MappingNode):
                    yield from (str(inner.value) for inner, _ in base.value if inner.value != "<<")
                    yield from _inherited(base)


def _places(key: yaml.Node, value: yaml.Node) -> Iterator[str]:
    """The dotted names of the fields written under a key; not those from an anchor, which may be overridden."""
    if isinstance(value, yaml.MappingNode) and value.start_mark.index > key.start_mark.index:
        for inner, deeper in value.value:
            yield from (f"{key.value}.{place}" for place in _places(inner, deeper))
    else:
        yield str(key.value)
