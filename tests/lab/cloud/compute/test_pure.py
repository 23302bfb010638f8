"""The parts without state: filters, pages, addresses, machine types."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.cloud import Json
from lab.cloud.compute import addressing, catalog
from lab.cloud.compute.addressing import NoAddressError
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


def test_the_first_host_of_a_subnet_is_2_and_four_addresses_are_kept() -> None:
    assert addressing.first_internal("10.10.0.0/20", set()) == "10.10.0.2"
    assert addressing.first_internal("10.10.0.0/20", {"10.10.0.2"}) == "10.10.0.3"
    assert addressing.gateway("10.10.0.0/20") == "10.10.0.1"
    usable = [n for n in range(8) if addressing.usable("10.0.0.0/29", f"10.0.0.{n}")]
    assert usable == [2, 3, 4, 5]
    assert not addressing.usable("10.0.0.0/29", "10.0.1.2")
    assert not addressing.usable("10.0.0.0/29", "nonsense")
    with pytest.raises(NoAddressError, match="exhausted"):
        addressing.first_internal("10.0.0.0/29", {f"10.0.0.{n}" for n in range(2, 6)})


def test_external_addresses_are_documentation_ranges() -> None:
    assert addressing.first_external(set()) == "203.0.113.1"
    everything: set[str] = set()
    for _ in range(3 * 254):
        everything.add(addressing.first_external(everything))
    with pytest.raises(NoAddressError):
        addressing.first_external(everything)


@pytest.mark.parametrize(
    ("name", "vcpus", "memory_mb"),
    [
        ("e2-standard-16", 16, 65536),
        ("n2d-highcpu-128", 128, 131072),
        ("e2-standard-8", 8, 32768),
        ("n2-standard-4", 4, 16384),
        ("e2-custom-2-1024", 2, 1024),
        ("custom-1-3840", 1, 3840),
        ("n2-custom-4-65536-ext", 4, 65536),
        ("e2-micro", 2, 1024),
        ("e2-custom-small-2048", 2, 2048),
        ("n1-custom-2-638976-ext", 2, 638_976),
    ],
)
def test_machine_types(name: str, vcpus: int, memory_mb: int) -> None:
    found = catalog.machine_type(name)
    assert found is not None
    assert (found.vcpus, found.memory_mb) == (vcpus, memory_mb)


@pytest.mark.parametrize(
    "name",
    [
        "e2-standard-3",
        "e2-standard-16-lssd",
        "e2-custom-1-1024",
        "e2-custom-3-1024",
        "e2-custom-2-1000",
        "e2-custom-2-768",
        "e2-custom-2-16640",
        "e2-custom-2-16384-ext",
        "n2-custom-34-34816",
        "n2-custom-micro-1024",
        "n2d-custom-6-6144",
        "n1-custom-2-884736-ext",
        "z9-custom-2-1024",
        "",
    ],
)
def test_unknown_machine_types(name: str) -> None:
    assert catalog.machine_type(name) is None
