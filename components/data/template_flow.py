"""Does a chat template only place what is said, or does it look at it? Read from its syntax tree, once per template.

A template that never decides by a text writes every conversation of the same roles alike: the same pieces around the texts.
Such conversations need no run of the template at all, which costs as much as a fifth of tokenising them. The proof is
one-sided: whatever is not understood counts as looking.
"""

import re
from functools import lru_cache
from typing import Any

from jinja2 import Environment, nodes
from jinja2.exceptions import TemplateSyntaxError

CLEAN, TEXT, CARRIER = "clean", "text", "carrier"
"""Depends on roles and number of turns only; is a turn's text, or has it within; is a turn, or a list of turns."""
GENERATION_TAGS = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
"""Marks for transformers' own assistant mask; they write nothing."""
TESTS_OF_TYPE = frozenset({"string", "defined", "undefined", "none", "mapping", "iterable", "sequence", "number", "boolean"})
"""Every text is a string and every turn a mapping, so these have the same answer for all conversations."""
STRIPS = frozenset({"strip", "lstrip", "rstrip"})
PARTS_OF_LISTS = frozenset({"first", "last", "list"})
METHODS = frozenset(dir(dict)) | frozenset(dir(list))
"""Names that give a turn's text without naming it (`turn.values()`, `turn.get`)."""
LOOP_COUNTERS = frozenset({"index", "index0", "revindex", "revindex0", "first", "last", "length"})
"""The others (`loop.previtem`) hand out turns."""
MAX_PASSES = 10


class LooksAtTextError(Exception):
    """The template may decide by what is said."""


@lru_cache(maxsize=32)
def only_places_texts(template: str) -> bool:
    """True where the template writes each turn's text as it is (or stripped), and nothing else depends on it."""
    try:
        tree = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(GENERATION_TAGS.sub("", template))
        _Flow().settle(tree)
    except (LooksAtTextError, TemplateSyntaxError):
        return False
    return True


class _Flow:
    """What each variable may hold, whichever way the template is run through."""

    def __init__(self) -> None:
        self._kinds = {"messages": CARRIER}

    def settle(self, tree: nodes.Template) -> None:
        """Variables are set before and after they are read (loops), so read until nothing new is found."""
        for _ in range(MAX_PASSES):
            before = dict(self._kinds)
            self._statements(tree.body)
            if self._kinds == before:
                return
        raise LooksAtTextError

    def _statements(self, body: list[nodes.Node]) -> None:
        for statement in body:
            self._statement(statement)

    def _statement(self, node: nodes.Node) -> None:
        match node:
            case nodes.Output():
                _need(all(self._kind(part) != CARRIER for part in node.nodes))
            case nodes.If():
                self._decision(node.test)
                self._statements([*node.body, *node.elif_, *node.else_])
            case nodes.For():
                self._assign(node.target, self._kind(node.iter, CLEAN, CARRIER))
                if node.test is not None:
                    self._decision(node.test)
                self._statements([*node.body, *node.else_])
            case nodes.Assign():
                self._assign(node.target, self._kind(node.node))
            case nodes.Break() | nodes.Continue():
                pass
            case _:
                raise LooksAtTextError

    def _assign(self, target: nodes.Node, kind: str) -> None:
        if not isinstance(target, nodes.Name):
            _need(kind == CLEAN)
            return
        known = self._kinds.get(target.name, CLEAN)
        _need(CLEAN in (known, kind) or known == kind)
        self._kinds[target.name] = kind if known == CLEAN else known

    def _decision(self, node: nodes.Node) -> None:
        """An expression of which only the truth counts; whether a list has turns is no matter of the text."""
        if isinstance(node, nodes.And | nodes.Or):
            self._decision(node.left)
            self._decision(node.right)
        elif isinstance(node, nodes.Not):
            self._decision(node.node)
        else:
            _need(self._kind(node) != TEXT)

    def _kind(self, node: nodes.Node, *allowed: str) -> str:
        kind = self._expression(node)
        _need(not allowed or kind in allowed)
        return kind

    def _expression(self, node: nodes.Node) -> str:
        match node:
            case nodes.Name():
                _need(node.name != "loop")
                return self._kinds.get(node.name, CLEAN)
            case nodes.Getattr() | nodes.Getitem():
                return self._part(node)
            case nodes.Filter():
                return self._filter(node)
            case nodes.Test():
                kind = self._kind(node.node)
                _need(kind == CLEAN or node.name in TESTS_OF_TYPE)
                return self._all_clean([*node.args, *node.kwargs])
            case nodes.Call():
                return self._call(node)
            case nodes.Add():
                return self._joined([node.left, node.right])
            case nodes.Concat():
                return self._joined(node.nodes)
            case nodes.CondExpr():
                return self._choice(node)
            case nodes.Compare():
                self._kind(node.expr, CLEAN)
                for operand in node.ops:
                    allowed = (CLEAN, CARRIER) if operand.op in ("in", "notin") else (CLEAN,)
                    self._kind(operand.expr, *allowed)
                return CLEAN
        return self._all_clean(list(node.iter_child_nodes()))

    def _part(self, node: Any) -> str:
        key = nodes.Const(node.attr) if isinstance(node, nodes.Getattr) else node.arg
        self._kind(key, CLEAN)
        if isinstance(node.node, nodes.Name) and node.node.name == "loop":
            _need(isinstance(key, nodes.Const) and key.value in LOOP_COUNTERS)
            return CLEAN
        kind = self._kind(node.node, CLEAN, CARRIER)
        if kind == CARRIER and isinstance(key, nodes.Const) and isinstance(key.value, str):
            _need(key.value not in METHODS)
            return TEXT if key.value == "content" else CLEAN
        return kind

    def _filter(self, node: nodes.Filter) -> str:
        _need(node.node is not None)
        assert node.node is not None
        self._all_clean([*node.args, *node.kwargs])
        kind = self._kind(node.node)
        if kind == TEXT:
            _need(node.name == "trim" and not node.args and not node.kwargs)
        elif kind == CARRIER:
            _need(node.name in PARTS_OF_LISTS | {"length", "count"})
            return CARRIER if node.name in PARTS_OF_LISTS else CLEAN
        return kind

    def _call(self, node: nodes.Call) -> str:
        if isinstance(node.node, nodes.Getattr) and node.node.attr in STRIPS and not (node.args or node.kwargs):
            return self._kind(node.node.node, CLEAN, TEXT)
        return self._all_clean(list(node.iter_child_nodes()))

    def _joined(self, parts: list[nodes.Expr]) -> str:
        kinds = {self._kind(part, CLEAN, TEXT) for part in parts}
        return TEXT if TEXT in kinds else CLEAN

    def _choice(self, node: nodes.CondExpr) -> str:
        self._decision(node.test)
        kinds = {self._kind(part) for part in (node.expr1, node.expr2) if part is not None}
        _need(not {TEXT, CARRIER} <= kinds)
        return next((kind for kind in (TEXT, CARRIER) if kind in kinds), CLEAN)

    def _all_clean(self, parts: list[Any]) -> str:
        for part in parts:
            self._kind(part, CLEAN)
        return CLEAN


def _need(holds: bool) -> None:
    if not holds:
        raise LooksAtTextError
