"""Filters, order and pages of lists."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.cloud import Json
from lab.cloud.compute.query import compile_filter, page
from lab.cloud.errors import ApiError

VM: Json = {
    "name": "swarm-1",
    "status": "RUNNING",
    "zone": "https://www.googleapis.com/compute/v1/projects/p/zones/us-central1-a",
    "labels": {"role": "swarm", "n": "1"},
    "tags": {"items": ["a", "b"]},
    "canIpForward": False,
    "sizeGb": "20",
}


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("", True),
        ("name=swarm-1", True),
        ("name = swarm-2", False),
        ("name != swarm-2", True),
        ("name=swarm-*", True),
        ("name:swarm", True),
        ('name="swarm-1"', True),
        ("name eq 'swarm-[0-9]'", True),
        ("name eq swarm", False),
        ("name ne swarm-.*", False),
        ("status=RUNNING AND labels.role=swarm", True),
        ("status=RUNNING AND labels.role=other", False),
        ("(status = RUNNING) (labels.role = swarm)", True),
        ("status=TERMINATED OR name=swarm-1", True),
        ("NOT status=TERMINATED", True),
        ("(status=TERMINATED OR status=RUNNING) AND labels.n=1", True),
        ("labels.role:*", True),
        ("labels.none:*", False),
        ("labels:role", True),
        ("tags.items:a", True),
        ("tags.items:z", False),
        ("zone=us-central1-a", True),
        ("zone:us-central1", True),
        ("canIpForward=false", True),
        ("labels.none=x", False),
        ("labels.none!=x", True),
        ("sizeGb>9", True),
        ("sizeGb<=9", False),
    ],
)
def test_filters(text: str, matches: bool) -> None:
    assert compile_filter(text)(VM) is matches


@pytest.mark.parametrize(
    "text", ["name", "name=", "=x", "(name=x", "name=x)", "name eq '['", "AND", "name ~ x", "'a"]
)
def test_a_filter_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ApiError) as refused:
        compile_filter(text)
    assert refused.value.code == 400
    assert "Invalid list filter expression" in refused.value.message


@given(st.text(max_size=40))
@settings(max_examples=200, deadline=None)
def test_any_text_is_a_filter_or_a_400(text: str) -> None:
    try:
        compile_filter(text)(VM)
    except ApiError as error:
        assert error.code == 400  # noqa: PT017 (both outcomes are good)


@given(st.integers(0, 30), st.integers(1, 12))
@settings(deadline=None)
def test_pages_hold_everything_once(count: int, most: int) -> None:
    items: list[tuple[str, Json]] = [(f"{n:03}", {"name": f"{n:03}"}) for n in range(count)]
    seen: list[Any] = []
    query = {"maxResults": str(most)}
    while True:
        shown, token = page(items, query)
        assert len(shown) <= most
        seen += shown
        if token is None:
            break
        query["pageToken"] = token
    assert seen == [item for _, item in items]


def test_a_page_token_survives_the_deletion_of_what_it_names() -> None:
    items: list[tuple[str, Json]] = [(name, {"name": name}) for name in "abcd"]
    _, token = page(items, {"maxResults": "2"})
    shown, _ = page(
        [item for item in items if item[0] != "b"], {"maxResults": "2", "pageToken": token or ""}
    )
    assert [item["name"] for item in shown] == ["c", "d"]


def test_newest_first() -> None:
    items: list[tuple[str, Json]] = [
        ("a", {"name": "a", "creationTimestamp": "2026-01-01"}),
        ("b", {"name": "b", "creationTimestamp": "2026-01-02"}),
    ]
    shown, _ = page(items, {"orderBy": "creationTimestamp desc"})
    assert [item["name"] for item in shown] == ["b", "a"]


@pytest.mark.parametrize(
    "query",
    [{"maxResults": "x"}, {"maxResults": "501"}, {"pageToken": "%%"}, {"orderBy": "size"}],
)
def test_bad_list_parameters_are_refused(query: dict[str, str]) -> None:
    with pytest.raises(ApiError) as refused:
        page([], query)
    assert refused.value.code == 400
