"""Values as they arrive: known, unknown, secret, absent, through the SDK's own deserialisation."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pulumi_policy import deserialize, proxy, secret

from policy.values import UNKNOWN, Resource, Violation, join, plain, walk

SENTINELS = [
    proxy.UNKNOWN_ARCHIVE_VALUE,
    proxy.UNKNOWN_ARRAY_VALUE,
    proxy.UNKNOWN_ASSET_VALUE,
    proxy.UNKNOWN_BOOLEAN_VALUE,
    proxy.UNKNOWN_NUMBER_VALUE,
    proxy.UNKNOWN_OBJECT_VALUE,
    proxy.UNKNOWN_STRING_VALUE,
]


def wire_secret(value: Any) -> dict[str, Any]:
    """`value` as the engine wraps a secret on the wire."""
    return {deserialize.SPECIAL_SIG_KEY: deserialize.SPECIAL_SECRET_SIG, "value": value}


def arrives(props: dict[str, Any]) -> Any:
    """`props`, as on the wire, as the SDK passes them to a policy."""
    return proxy.unknown_checking_proxy(deserialize.deserialize_properties(props))


@pytest.mark.parametrize("sentinel", SENTINELS)
def test_every_sentinel_is_unknown_wherever_it_stands(sentinel: str) -> None:
    props = arrives({"a": sentinel, "b": {"c": [1.0, sentinel, {"d": sentinel}]}})
    assert plain(props) == {"a": UNKNOWN, "b": {"c": [1, UNKNOWN, {"d": UNKNOWN}]}}


def test_secrets_arrive_as_plain_text_at_any_depth() -> None:
    props = arrives(
        {
            "whole": wire_secret({"key": "text"}),
            "inner": {"key": wire_secret("text"), "list": [wire_secret(2.0)]},
            "unknown": wire_secret(proxy.UNKNOWN_STRING_VALUE),
        }
    )
    assert plain(props) == {
        "whole": {"key": "text"},
        "inner": {"key": "text", "list": [2]},
        "unknown": UNKNOWN,
    }


def test_a_wrapped_value_that_slips_through_is_unwrapped() -> None:
    sig = deserialize.SPECIAL_SIG_KEY
    output = "d0e6a833031e9bbcd3f4e8bde6ca49a4"
    assert plain({"a": wire_secret("text")}) == {"a": "text"}
    assert plain({"a": {sig: output, "value": "text"}}) == {"a": "text"}
    assert plain({"a": {sig: output}}) == {"a": UNKNOWN}


def test_absent_stays_absent_and_none_stays_none() -> None:
    assert plain(arrives({"a": None})) == {"a": None}
    assert plain(arrives({})) == {}


def test_whole_numbers_become_integers_and_booleans_stay() -> None:
    found = plain({"a": 3.0, "b": 0.5, "c": True})
    assert found == {"a": 3, "b": 0.5, "c": True}
    assert [type(value) for value in found.values()] == [int, float, bool]


_JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text() | st.sampled_from(SENTINELS),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(), inner, max_size=4)
        | inner.map(wire_secret)
    ),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), _JSON, max_size=4))
def test_nothing_that_can_arrive_makes_it_raise(props: dict[str, Any]) -> None:
    found = plain(arrives(props))
    assert set(found) == set(props)
    for _, _, value in walk(found):
        assert not isinstance(value, proxy._DictProxy | proxy._ListProxy | secret.Secret)
        assert value not in SENTINELS


def test_walk_names_places_that_can_be_pasted() -> None:
    props = {"a": [{"b-c": 1}], "labels": {"x": 1}}
    found = {path: (key, value) for path, key, value in walk(props, prune=lambda key: "l" in key)}
    assert found == {
        "a": ("a", [{"b-c": 1}]),
        "a[0]": ("a", {"b-c": 1}),
        'a[0]["b-c"]': ("b-c", 1),
    }


def test_paths() -> None:
    assert join("", "a") == "a"
    assert join("a", "b") == "a.b"
    assert join("a", 0) == "a[0]"
    assert join("", "a-b") == '["a-b"]'


def test_a_finding_says_where_what_and_what_to_do() -> None:
    finding = Violation(path="a.b", problem="it is wrong", remedy="Mend it")
    assert str(finding) == "a.b: it is wrong. Mend it."


def test_a_resource_knows_its_parts() -> None:
    resource = Resource(
        type="gcp:compute/instance:Instance",
        name="vm",
        urn="urn:pulumi:lab::fleet::gcp:compute/instance:Instance::vm",
        props={},
    )
    assert (resource.package, resource.kind, resource.stack) == ("gcp", "Instance", "lab")
