"""Cloud Storage: buckets, generations, uploads of three kinds, conditional downloads."""

import base64
import hashlib
import http.client
from typing import Any
from urllib.parse import urlsplit

import google_crc32c
import pytest

from lab.cloud.server import Serving
from tests.lab.cloud.client import Answer, Client, multipart

B = "/storage/v1/b"


@pytest.fixture
def bucket(client: Client) -> Client:
    """A client for a lab that has the versioned bucket `box`."""
    body = {"name": "box", "location": "us-central1", "versioning": {"enabled": True}}
    assert client.call("POST", f"{B}?project=p1", body).status == 200
    return client


def media(client: Client, name: str, query: str = "", **headers: str) -> Answer:
    sent = {key.replace("_", "-"): value for key, value in headers.items()}
    return client.call("GET", f"{B}/box/o/{name}?alt=media{query}", headers=sent)


def test_a_bucket_is_answered_completely(bucket: Client, client: Client) -> None:
    found = bucket.get(f"{B}/box")
    assert found["location"] == "US-CENTRAL1"
    assert found["storageClass"] == "STANDARD"
    assert found["iamConfiguration"]["uniformBucketLevelAccess"] == {"enabled": False}
    assert found["selfLink"] == f"{client.url}{B}/box"
    again = client.call("POST", f"{B}?project=p1", {"name": "box"})
    assert (again.status, again.reason) == (409, "conflict")
    assert client.call("POST", f"{B}?project=p1", {"name": "No"}).status == 400
    assert client.call("GET", f"{B}/none").status == 404
    assert [each["name"] for each in client.get(f"{B}?project=p1")["items"]] == ["box"]
    assert "items" not in client.get(f"{B}?project=p2")


def test_a_bucket_is_merged_by_patch(bucket: Client) -> None:
    rule = {"action": {"type": "Delete"}, "condition": {"age": 30}}
    change: dict[str, Any] = {"labels": {"a": "1", "b": "2"}, "lifecycle": {"rule": [rule]}}
    bucket.do("PATCH", f"{B}/box", change)
    found = bucket.do("PATCH", f"{B}/box", {"labels": {"a": None}, "name": "other"})
    assert (found["labels"], found["name"]) == ({"b": "2"}, "box")
    assert found["lifecycle"] == {"rule": [rule]}
    assert found["versioning"] == {"enabled": True}
    found = bucket.do("PATCH", f"{B}/box", {"lifecycle": {"rule": []}})
    assert "lifecycle" not in found
    refused = bucket.call("PATCH", f"{B}/box?ifMetagenerationMatch=1", {"labels": {}})
    assert (refused.status, refused.reason) == (412, "conditionNotMet")


def test_only_an_empty_bucket_is_deleted(bucket: Client) -> None:
    bucket.upload("box", "a", b"1")
    refused = bucket.call("DELETE", f"{B}/box")
    assert (refused.status, refused.reason) == (409, "conflict")
    generation = bucket.get(f"{B}/box/o/a")["generation"]
    bucket.do("DELETE", f"{B}/box/o/a?generation={generation}")
    assert bucket.call("DELETE", f"{B}/box").status == 204


@pytest.mark.parametrize("path", ["anywhereCaches/", "anywhereCaches"])
def test_a_bucket_has_no_caches(bucket: Client, path: str) -> None:
    """The current provider asks before it deletes a bucket."""
    assert bucket.get(f"{B}/box/{path}") == {"kind": "storage#anywhereCaches"}
    assert bucket.call("GET", f"{B}/another/{path}").status == 404


def test_an_upload_is_stated_with_its_sums(bucket: Client) -> None:
    data = bytes(range(256)) * 1000
    answer = bucket.upload("box", "dir/file name", data)
    found = answer.json
    assert answer.status == 200
    assert (found["name"], found["size"]) == ("dir/file name", "256000")
    md5 = hashlib.md5(data, usedforsecurity=False).digest()
    assert base64.b64decode(found["md5Hash"]) == md5
    assert int.from_bytes(base64.b64decode(found["crc32c"]), "big") == google_crc32c.value(data)
    one = bucket.get(f"{B}/box/o/dir%2Ffile%20name")
    assert one == found
    download = bucket.call(
        "GET", urlsplit(found["mediaLink"])._replace(netloc="", scheme="").geturl()
    )
    assert download.data == data
    assert download.headers["x-goog-generation"] == found["generation"]
    assert download.headers["content-type"] == "text/plain"


def test_bytes_that_look_like_a_boundary_survive(bucket: Client) -> None:
    data = b"--xxx\r\n\r\n--xx--\r\n\x00\r\n--xxx-not\r\n"
    bucket.upload("box", "odd", data)
    assert media(bucket, "odd").data == data


def test_an_upload_with_a_wrong_sum_is_refused(bucket: Client, serving: Serving) -> None:
    answer = bucket.call(
        "POST",
        "/upload/storage/v1/b/box/o?uploadType=multipart&name=x",
        multipart({"md5Hash": "AAAAAAAAAAAAAAAAAAAAAA=="}, b"data"),
        headers={"Content-Type": "multipart/related; boundary=xxx"},
    )
    assert answer.status == 400
    assert "doesn't match calculated" in answer.message
    assert bucket.call("GET", f"{B}/box/o/x").status == 404
    assert list((serving.lab.store.directory / "blobs").iterdir()) == []


def test_a_chunked_upload(bucket: Client) -> None:
    connection = http.client.HTTPConnection(urlsplit(bucket.url).netloc, timeout=30)
    connection.request(
        "POST",
        "/upload/storage/v1/b/box/o?uploadType=media&name=chunked",
        body=iter([b"one", b"two", b"three"]),
        headers={"Authorization": "Bearer x", "Content-Type": "text/x"},
        encode_chunked=True,
    )
    assert connection.getresponse().status == 200
    connection.close()
    found = media(bucket, "chunked")
    assert (found.data, found.headers["content-type"]) == (b"onetwothree", "text/x")


def test_a_resumable_upload(bucket: Client) -> None:
    begun = bucket.call(
        "POST",
        "/upload/storage/v1/b/box/o?uploadType=resumable&name=big&ifGenerationMatch=0",
        {"contentType": "text/y"},
    )
    where = urlsplit(begun.headers["location"])
    path = f"{where.path}?{where.query}"

    def send(data: bytes, span: str) -> Answer:
        return bucket.call("PUT", path, data, headers={"Content-Range": f"bytes {span}"})

    first = send(b"01234", "0-4/*")
    assert (first.status, first.headers["range"]) == (308, "bytes=0-4")
    assert send(b"", "*/10").headers["range"] == "bytes=0-4"
    assert send(b"xxx", "0-2/10").status == 308  # sent twice: not taken again
    done = send(b"56789", "5-9/10")
    assert (done.status, done.json["contentType"]) == (200, "text/y")
    assert media(bucket, "big").data == b"0123456789"
    assert send(b"", "*/10").status == 404


def test_generations(bucket: Client) -> None:
    first = bucket.upload("box", "order", b"one").json["generation"]
    second = bucket.upload("box", "order", b"two").json["generation"]
    assert int(second) > int(first)
    assert media(bucket, "order").data == b"two"
    assert media(bucket, "order", f"&generation={first}").data == b"one"
    listed = bucket.get(f"{B}/box/o?versions=true")["items"]
    assert [each["generation"] for each in listed] == [first, second]
    assert "timeDeleted" in listed[0]
    assert len(bucket.get(f"{B}/box/o")["items"]) == 1
    bucket.do("DELETE", f"{B}/box/o/order")
    assert media(bucket, "order").status == 404
    assert media(bucket, "order", f"&generation={second}").data == b"two"
    for generation in (first, second):
        bucket.do("DELETE", f"{B}/box/o/order?generation={generation}")
    assert "items" not in bucket.get(f"{B}/box/o?versions=true")


def test_without_versioning_the_old_bytes_go(client: Client, serving: Serving) -> None:
    client.do("POST", f"{B}?project=p1", {"name": "plain"})
    client.upload("plain", "a", b"one")
    client.upload("plain", "a", b"two")
    blobs = list((serving.lab.store.directory / "blobs").iterdir())
    assert [each.read_bytes() for each in blobs] == [b"two"]
    client.do("DELETE", f"{B}/plain/o/a")
    assert list((serving.lab.store.directory / "blobs").iterdir()) == []


def test_conditions_on_writing(bucket: Client) -> None:
    assert bucket.upload("box", "a", b"1", "&ifGenerationMatch=5").status == 412
    first = bucket.upload("box", "a", b"1", "&ifGenerationMatch=0").json["generation"]
    refused = bucket.upload("box", "a", b"2", "&ifGenerationMatch=0")
    assert (refused.status, refused.reason) == (412, "conditionNotMet")
    assert bucket.upload("box", "a", b"2", f"&ifGenerationMatch={first}").status == 200
    assert bucket.call("DELETE", f"{B}/box/o/a?ifGenerationMatch={first}").status == 412


def test_conditions_on_reading(bucket: Client) -> None:
    held = bucket.upload("box", "a", b"1").json
    etag = media(bucket, "a").headers["etag"]
    assert media(bucket, "a", If_None_Match=etag).status == 304
    assert media(bucket, "a", If_None_Match='"other"').status == 200
    assert media(bucket, "a", f"&ifGenerationNotMatch={held['generation']}").status == 304
    assert media(bucket, "a", "&ifGenerationMatch=1").status == 412
    bucket.upload("box", "a", b"2")
    assert media(bucket, "a", If_None_Match=etag).data == b"2"
    assert media(bucket, "a", f"&ifGenerationNotMatch={held['generation']}").data == b"2"


@pytest.mark.parametrize(
    ("asked", "status", "data", "stated"),
    [
        ("bytes=0-2", 206, b"012", "bytes 0-2/10"),
        ("bytes=7-", 206, b"789", "bytes 7-9/10"),
        ("bytes=-2", 206, b"89", "bytes 8-9/10"),
        ("bytes=5-99", 206, b"56789", "bytes 5-9/10"),
        ("items=1", 200, b"0123456789", None),
    ],
)
def test_ranges(bucket: Client, asked: str, status: int, data: bytes, stated: str | None) -> None:
    bucket.upload("box", "a", b"0123456789")
    answer = media(bucket, "a", Range=asked)
    assert (answer.status, answer.data) == (status, data)
    assert answer.headers.get("content-range") == stated


def test_a_range_beyond_the_end(bucket: Client) -> None:
    bucket.upload("box", "a", b"0123456789")
    assert media(bucket, "a", Range="bytes=10-").status == 416


def test_lists(bucket: Client) -> None:
    for name in ("a/1", "a/2", "b/1", "c"):
        bucket.upload("box", name, b"")
    listed = bucket.get(f"{B}/box/o?delimiter=/")
    assert listed["prefixes"] == ["a/", "b/"]
    assert [each["name"] for each in listed["items"]] == ["c"]
    page = bucket.get(f"{B}/box/o?prefix=a/&maxResults=1")
    assert [each["name"] for each in page["items"]] == ["a/1"]
    rest = bucket.get(f"{B}/box/o?prefix=a/&maxResults=1&pageToken={page['nextPageToken']}")
    assert [each["name"] for each in rest["items"]] == ["a/2"]
    assert "nextPageToken" not in rest


def test_a_request_without_a_token_is_refused(bucket: Client) -> None:
    bucket.upload("box", "a", b"1")
    stranger = Client(bucket.url, token=None)
    for path in (f"{B}/box/o/a?alt=media", f"{B}/box/o/a", f"{B}/box", f"/download{B}/box/o/a"):
        answer = stranger.call("GET", path)
        assert (answer.status, answer.reason) == (401, "required")
        assert "www-authenticate" in answer.headers
    assert stranger.call("POST", f"{B}?project=p1", {"name": "box2"}).status == 401


def test_a_buckets_policy_is_locked_by_its_etag(bucket: Client) -> None:
    held = bucket.get(f"{B}/box/iam?optionsRequestedPolicyVersion=3")
    assert held["bindings"][0]["role"] == "roles/storage.legacyBucketOwner"
    binding = {"role": "roles/storage.objectViewer", "members": ["user:a@example.com"]}
    change = {"bindings": [binding], "etag": held["etag"], "version": 3}
    assert bucket.call("PUT", f"{B}/box/iam", change).status == 200
    refused = bucket.call("PUT", f"{B}/box/iam", change)
    assert (refused.status, refused.reason) == (412, "conditionNotMet")
    assert bucket.get(f"{B}/box/iam")["bindings"] == [binding]
    asked = bucket.get(f"{B}/box/iam/testPermissions?permissions=storage.objects.get")
    assert asked["permissions"] == ["storage.objects.get"]


def test_objects_metadata_changes_without_a_new_generation(bucket: Client) -> None:
    held = bucket.upload("box", "a", b"1").json
    found = bucket.do("PATCH", f"{B}/box/o/a", {"metadata": {"k": "v"}, "size": "9"})
    assert (found["metadata"], found["size"]) == ({"k": "v"}, "1")
    assert (found["generation"], found["metageneration"]) == (held["generation"], "2")
