"""What service accounts may do with a bucket: its IAM policy, by their tokens."""

from collections.abc import Callable

import pytest

from lab.cloud import tokens
from lab.cloud.server import Serving
from lab.cloud.storage.access import is_granted
from tests.lab.cloud.client import Client, multipart

B = "/storage/v1/b"
READER, WRITER = "reader@p1.iam.gserviceaccount.com", "writer@p1.iam.gserviceaccount.com"
VIEWER, USER = "roles/storage.objectViewer", "roles/storage.objectUser"


@pytest.fixture
def box(client: Client) -> Client:
    """An operator; a versioned bucket that both may read, and WRITER may write to in `in/`."""
    body = {"name": "box", "versioning": {"enabled": True}}
    assert client.call("POST", f"{B}?project=p1", body).status == 200
    starts = 'resource.name.startsWith("projects/_/buckets/box/objects/in/")'
    members = [f"serviceAccount:{each}" for each in (READER, WRITER)]
    bindings = [
        {"role": VIEWER, "members": members},
        {
            "role": USER,
            "members": members[1:],
            "condition": {"title": "in", "expression": starts},
        },
    ]
    assert client.call("PUT", f"{B}/box/iam", {"version": 3, "bindings": bindings}).status == 200
    client.upload("box", "out/a", b"1")
    return client


@pytest.fixture
def caller(serving: Serving, box: Client) -> Callable[[str], Client]:
    """A client with a token of an account."""
    return lambda email: Client(box.url, token=tokens.make(serving.lab.store, email, 60))


def put(client: Client, name: str) -> int:
    path = f"/upload{B}/box/o?uploadType=multipart"
    headers = {"Content-Type": "multipart/related; boundary=xxx"}
    return client.call("POST", path, multipart({"name": name}, b"2"), headers=headers).status


def test_an_account_writes_where_its_condition_says(
    box: Client, caller: Callable[[str], Client]
) -> None:
    writer = caller(WRITER)
    assert put(writer, "in/a") == 200
    assert put(writer, "in/a") == 200
    assert writer.call("DELETE", f"{B}/box/o/in%2Fa").status == 204
    for name in ("out/a", "inner", "orders/vm.json", "releases/0/pilot-daemon"):
        assert put(writer, name) == 403, name
    assert writer.call("DELETE", f"{B}/box/o/out%2Fa").status == 403
    assert writer.call("PATCH", f"{B}/box/o/out%2Fa", {"metadata": {"a": "b"}}).status == 403
    begun = writer.call("POST", f"/upload{B}/box/o?uploadType=resumable&name=out%2Fb", {})
    assert begun.status == 403
    assert box.call("GET", f"{B}/box/o/out%2Fa?alt=media").data == b"1"


def test_a_reader_reads_and_is_refused_the_rest_in_googles_words(
    caller: Callable[[str], Client],
) -> None:
    reader = caller(READER)
    assert reader.call("GET", f"{B}/box/o/out%2Fa?alt=media").data == b"1"
    assert [each["name"] for each in reader.get(f"{B}/box/o")["items"]] == ["out/a"]
    assert reader.call("GET", f"{B}/box/o/none").status == 404
    refused = reader.call("POST", f"/upload{B}/box/o?uploadType=media&name=in%2Fa", b"2")
    assert (refused.status, refused.reason) == (403, "forbidden")
    assert refused.message == (
        f"{READER} does not have storage.objects.create access to the Google Cloud Storage object."
        " Permission 'storage.objects.create' denied on resource (or it may not exist)."
    )
    asked = "permissions=storage.objects.get,storage.objects.create"
    assert reader.get(f"{B}/box/iam/testPermissions?{asked}")["permissions"] == [
        "storage.objects.get"
    ]
    for method, path in (
        ("GET", f"{B}/box"),
        ("PATCH", f"{B}/box"),
        ("DELETE", f"{B}/box"),
        ("GET", f"{B}/box/iam"),
        ("PUT", f"{B}/box/iam"),
        ("GET", f"{B}?project=p1"),
    ):
        assert reader.call(method, path, {} if method != "GET" else None).status == 403, path


def test_an_account_without_a_role_reads_nothing(caller: Callable[[str], Client]) -> None:
    stranger = caller("stranger@p1.iam.gserviceaccount.com")
    for path in (f"{B}/box/o/out%2Fa", f"{B}/box/o/out%2Fa?alt=media", f"{B}/box/o"):
        assert stranger.call("GET", path).status == 403, path


def test_a_token_ends_and_outlives_its_lab(serving: Serving, box: Client) -> None:
    late = tokens.make(serving.lab.store, READER, -1)
    assert Client(box.url, token=late).call("GET", f"{B}/box/o").status == 401
    assert tokens.account(serving.lab.store, tokens.make(serving.lab.store, READER, 9)) == READER


@pytest.mark.parametrize(
    ("expression", "granted"),
    [
        ('resource.name.startsWith("projects/_/buckets/box/objects/in/")', True),
        ('resource.name.startsWith("x") || resource.name.startsWith("projects/_/")', True),
        ('resource.name.startsWith("projects/_/buckets/boxes/")', False),
        ("request.time < timestamp('2030-01-01T00:00:00Z')", False),
        ('resource.name.startsWith("projects/") && request.time < timestamp("2030")', False),
    ],
)
def test_a_condition_that_cannot_be_judged_grants_nothing(expression: str, granted: bool) -> None:
    binding = {
        "role": USER,
        "members": [f"serviceAccount:{WRITER}"],
        "condition": {"expression": expression},
    }
    held = is_granted({"bindings": [binding]}, "box", WRITER, "storage.objects.create", "in/a")
    assert held is granted
