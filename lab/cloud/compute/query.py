"""Filters, order and pages of list requests.

Filters are those of compute's list methods: `name=x`, `labels.a=b`, `status != RUNNING`,
`name:swarm-*`, `labels.a:*`, comparisons of numbers, AND, OR, NOT, parentheses, and the older
form `name eq 'swarm-.*'` whose value is a regular expression.
"""

import base64
import re
from collections.abc import Callable, Sequence
from typing import Any, Final

from lab.cloud import Json
from lab.cloud.errors import ApiError, invalid

MOST_RESULTS: Final = 500  # compute's own limit and default for maxResults

_TOKEN = re.compile(
    r"""\s*(?:(?P<paren>[()])|(?P<op>!=|>=|<=|=|:|<|>)|"(?P<double>(?:[^"\\]|\\.)*)\""""
    r"""|'(?P<single>(?:[^'\\]|\\.)*)'|(?P<word>[^\s()=!:<>"']+))"""
)
_WORDS: Final = {"eq": "eq", "ne": "ne"}

Predicate = Callable[[Json], bool]


def page(items: Sequence[tuple[str, Json]], query: dict[str, str]) -> tuple[list[Json], str | None]:
    """Return one page of `items` (key, document; sorted by key) and the token for the next."""
    matches = compile_filter(query.get("filter", ""))
    chosen = [(key, item) for key, item in items if matches(item)]
    if query.get("orderBy") == "creationTimestamp desc":
        chosen.sort(key=lambda pair: pair[1].get("creationTimestamp", ""), reverse=True)
    elif query.get("orderBy") not in (None, "", "name"):
        raise invalid("orderBy", query["orderBy"], "Use 'name' or 'creationTimestamp desc'.")
    start = _offset(query.get("pageToken", ""), [key for key, _ in chosen])
    most = _limit(query.get("maxResults", ""))
    shown = chosen[start : start + most]
    token = None
    if start + most < len(chosen):
        token = base64.urlsafe_b64encode(shown[-1][0].encode()).decode()
    return [item for _, item in shown], token


def _limit(text: str) -> int:
    if not text:
        return MOST_RESULTS
    if not text.isdigit() or int(text) > MOST_RESULTS:
        raise invalid("maxResults", text, f"Must be between 0 and {MOST_RESULTS}.")
    return int(text) or MOST_RESULTS


def _offset(token: str, keys: list[str]) -> int:
    if not token:
        return 0
    try:
        last = base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except ValueError as error:
        raise invalid("pageToken", token, "Invalid page token.") from error
    if last in keys:
        return keys.index(last) + 1
    # The named resource was deleted meanwhile: go on where it would stand.
    return sum(key <= last for key in keys)


def compile_filter(text: str) -> Predicate:
    """Return the predicate of a filter; 400 where it cannot be read."""
    tokens = _tokens(text)
    if not tokens:
        return lambda _: True
    parser = _Parser(tokens, text)
    predicate = parser.disjunction()
    parser.end()
    return predicate


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens = []
    position = 0
    while text[position:].strip():
        match = _TOKEN.match(text, position)
        if match is None:
            raise _bad(text)
        kind = match.lastgroup or ""
        value = match.group(kind)
        if kind in ("double", "single"):
            kind, value = "quoted", re.sub(r"\\(.)", r"\1", value)
        tokens.append((kind, value))
        position = match.end()
    return tokens


def _bad(text: str) -> ApiError:
    return invalid("filter", text, "Invalid list filter expression.")


class _Parser:
    def __init__(self, tokens: list[tuple[str, str]], text: str) -> None:
        self._tokens = tokens
        self._text = text

    def _next_is(self, kind: str, *values: str) -> bool:
        return bool(self._tokens) and self._tokens[0][0] == kind and self._tokens[0][1] in values

    def _take(self) -> tuple[str, str]:
        if not self._tokens:
            raise _bad(self._text)
        return self._tokens.pop(0)

    def end(self) -> None:
        if self._tokens:
            raise _bad(self._text)

    def disjunction(self) -> Predicate:
        terms = [self._conjunction()]
        while self._next_is("word", "OR"):
            self._take()
            terms.append(self._conjunction())
        return lambda item: any(term(item) for term in terms)

    def _conjunction(self) -> Predicate:
        terms = [self._term()]
        # AND may be left out: "(a = b) (c = d)" is an AND as well.
        while self._tokens and not self._next_is("word", "OR") and not self._next_is("paren", ")"):
            if self._next_is("word", "AND"):
                self._take()
            terms.append(self._term())
        return lambda item: all(term(item) for term in terms)

    def _term(self) -> Predicate:
        if self._next_is("word", "NOT"):
            self._take()
            negated = self._term()
            return lambda item: not negated(item)
        if self._next_is("paren", "("):
            self._take()
            inner = self.disjunction()
            if self._take() != ("paren", ")"):
                raise _bad(self._text)
            return inner
        return self._comparison()

    def _comparison(self) -> Predicate:
        kind, field = self._take()
        operator_kind, operator = self._take()
        known = operator_kind == "op" or operator in _WORDS
        if kind not in ("word", "quoted") or not known:
            raise _bad(self._text)
        value_kind, value = self._take()
        if value_kind not in ("word", "quoted"):
            raise _bad(self._text)
        compare = _comparer(operator, value, self._text)
        path = field.split(".")
        return lambda item: compare(_lookup(item, path))


def _lookup(item: Any, path: list[str]) -> Any:
    for part in path:
        if not isinstance(item, dict):
            return None
        item = item.get(part)
    return item


def _comparer(operator: str, value: str, text: str) -> Callable[[Any], bool]:
    if operator in ("eq", "ne"):
        try:
            pattern = re.compile(value)
        except re.error as error:
            raise _bad(text) from error
        wanted = operator == "eq"
        return lambda found: bool(pattern.fullmatch(_text(found))) is wanted
    glob = re.compile(".*".join(re.escape(part) for part in value.split("*")))
    if operator == "=":
        return lambda found: found is not None and _equal(found, value, glob)
    if operator == "!=":
        return lambda found: not _equal(found, value, glob)
    if operator == ":":
        return lambda found: _has(found, value, glob)
    return lambda found: found is not None and _ordered(operator, _text(found), value)


def _text(found: Any) -> str:
    if isinstance(found, bool):
        return "true" if found else "false"
    return "" if found is None else str(found)


def _equal(found: Any, value: str, glob: re.Pattern[str]) -> bool:
    if "*" in value:
        return found is not None and bool(glob.fullmatch(_text(found)))
    # Links are compared by their last part too, so that zone=us-central1-a matches.
    text = _text(found)
    return text == value or (text.startswith("https://") and text.rsplit("/", 1)[-1] == value)


def _has(found: Any, value: str, glob: re.Pattern[str]) -> bool:
    if found is None:
        return False
    if isinstance(found, list):
        return any(_has(item, value, glob) for item in found)
    if isinstance(found, dict):
        return value == "*" or value in found
    return bool(glob.search(_text(found)) if "*" not in value else glob.fullmatch(_text(found)))


def _ordered(operator: str, found: str, value: str) -> bool:
    left: Any = found
    right: Any = value
    try:
        left, right = float(found), float(value)
    except ValueError:
        left, right = found, value
    results: dict[str, bool] = {
        "<": left < right,
        ">": left > right,
        "<=": left <= right,
        ">=": left >= right,
    }
    return results[operator]
