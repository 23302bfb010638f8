"""Secrets, policies, service accounts and monitoring."""

import base64

from lab.cloud.server import Serving
from tests.lab.cloud.client import Client

SECRETS = "/v1/projects/p1/secrets"
REPLICATION = {"userManaged": {"replicas": [{"location": "us-central1"}]}, "automatic": None}


def test_a_secret_and_its_versions(client: Client) -> None:
    client.do("POST", f"{SECRETS}?secretId=s", {"replication": REPLICATION, "labels": {"a": "b"}})
    again = client.call("POST", f"{SECRETS}?secretId=s", {"replication": REPLICATION})
    assert (again.status, again.json["error"]["status"]) == (409, "ALREADY_EXISTS")
    found = client.get(f"{SECRETS}/s")
    assert found["name"] == "projects/p1/secrets/s"
    assert found["replication"] == {"userManaged": REPLICATION["userManaged"]}
    for number, text in enumerate((b"one", b"two"), 1):
        payload = {"payload": {"data": base64.b64encode(text).decode()}}
        version = client.do("POST", f"{SECRETS}/s:addVersion", payload)
        assert version["name"] == f"projects/p1/secrets/s/versions/{number}"
        assert "data" not in version
    read = client.get(f"{SECRETS}/s/versions/latest:access")
    assert base64.b64decode(read["payload"]["data"]) == b"two"
    assert read["payload"]["dataCrc32c"].isdigit()
    assert len(client.get(f"{SECRETS}/s/versions")["versions"]) == 2
    client.do("POST", f"{SECRETS}/s/versions/1:disable", {})
    refused = client.call("GET", f"{SECRETS}/s/versions/1:access")
    assert (refused.status, refused.json["error"]["status"]) == (400, "FAILED_PRECONDITION")
    client.do("POST", f"{SECRETS}/s/versions/1:enable", {})
    client.do("POST", f"{SECRETS}/s/versions/1:destroy", {})
    assert client.get(f"{SECRETS}/s/versions/1")["state"] == "DESTROYED"
    assert client.call("POST", f"{SECRETS}/s/versions/1:enable", {}).status == 400
    found = client.do("PATCH", f"{SECRETS}/s?updateMask=labels", {"labels": {"c": "d"}})
    assert found["labels"] == {"c": "d"}
    client.do("DELETE", f"{SECRETS}/s")
    assert client.call("GET", f"{SECRETS}/s/versions/2").status == 404


def test_bad_secrets_are_refused(client: Client) -> None:
    assert client.call("POST", f"{SECRETS}?secretId=s", {}).status == 400
    assert client.call("POST", f"{SECRETS}?secretId=a.b", {"replication": {}}).status == 400
    client.do("POST", f"{SECRETS}?secretId=s", {"replication": REPLICATION})
    for data in ("%%%", None, base64.b64encode(b"x" * 65537).decode()):
        answer = client.call("POST", f"{SECRETS}/s:addVersion", {"payload": {"data": data}})
        assert answer.status == 400


def test_secrets_need_a_token(client: Client) -> None:
    stranger = Client(client.url, token=None)
    answer = stranger.call("GET", f"{SECRETS}/s/versions/1:access")
    assert (answer.status, answer.json["error"]["status"]) == (401, "UNAUTHENTICATED")


def test_a_projects_policy_is_locked_by_its_etag(client: Client, serving: Serving) -> None:
    held = client.do("POST", "/v1/projects/p1:getIamPolicy", {})
    assert "bindings" not in held
    binding = {"role": "roles/logging.logWriter", "members": ["serviceAccount:a@b"]}
    change = {"policy": {"bindings": [binding], "etag": held["etag"], "version": 3}}
    new = client.do("POST", "/v1/projects/p1:setIamPolicy", change)
    assert new["bindings"] == [binding]
    assert new["etag"] != held["etag"]
    refused = client.call("POST", "/v1/projects/p1:setIamPolicy", change)
    assert (refused.status, refused.json["error"]["status"]) == (409, "ABORTED")
    # Older providers send the version twice to an endpoint that is plain HTTP.
    assert client.do("POST", "/v1/v1/projects/p1:getIamPolicy", {}) == new
    assert client.get("/v1/projects/p1")["projectNumber"].isdigit()
    asked = {"permissions": ["compute.instances.get"]}
    assert client.do("POST", "/v1/projects/p1:testIamPermissions", asked) == asked
    assert serving.lab.unknown == []


def test_a_secrets_policy(client: Client) -> None:
    client.do("POST", f"{SECRETS}?secretId=s", {"replication": REPLICATION})
    binding = {"role": "roles/secretmanager.secretAccessor", "members": ["user:a@b"]}
    client.do("POST", f"{SECRETS}/s:setIamPolicy", {"policy": {"bindings": [binding]}})
    assert client.get(f"{SECRETS}/s:getIamPolicy")["bindings"] == [binding]
    assert client.call("GET", f"{SECRETS}/none:getIamPolicy").status == 404


def test_service_accounts(client: Client) -> None:
    base = "/v1/projects/p1/serviceAccounts"
    body = {"accountId": "vm", "serviceAccount": {"displayName": "VM"}}
    made = client.do("POST", base, body)
    assert made["email"] == "vm@p1.iam.gserviceaccount.com"
    assert client.call("POST", base, body).status == 409
    one = f"{base}/{made['email']}"
    assert client.get(one)["displayName"] == "VM"
    assert client.get(f"/v1/projects/-/serviceAccounts/{made['email']}") == client.get(one)
    change = {"serviceAccount": {"displayName": "Other"}, "updateMask": "displayName"}
    assert client.do("PATCH", one, change)["displayName"] == "Other"
    assert len(client.get(base)["accounts"]) == 1
    client.do("DELETE", one)
    assert client.call("GET", one).status == 404


def test_monitoring(client: Client) -> None:
    channels, policies = "/v3/projects/p1/notificationChannels", "/v3/projects/p1/alertPolicies"
    channel = client.do("POST", channels, {"type": "email", "labels": {"email_address": "a@b"}})
    assert channel["name"].startswith("projects/p1/notificationChannels/")
    assert client.call("POST", channels, {}).status == 400
    body = {
        "displayName": "few",
        "conditions": [{"displayName": "c", "conditionThreshold": {"duration": "60s"}}],
        "notificationChannels": [channel["name"]],
    }
    unknown = {**body, "notificationChannels": ["projects/p1/notificationChannels/1"]}
    assert client.call("POST", policies, unknown).status == 404
    policy = client.do("POST", policies, body)
    assert policy["conditions"][0]["name"].startswith(f"{policy['name']}/conditions/")
    assert policy["creationRecord"]["mutateTime"]
    change = {"displayName": "many", "conditions": []}
    changed = client.do("PATCH", f"/v3/{policy['name']}?updateMask=displayName", change)
    assert (changed["displayName"], len(changed["conditions"])) == ("many", 1)
    refused = client.call("DELETE", f"/v3/{channel['name']}")
    assert refused.status == 400
    assert policy["name"] in refused.message
    client.do("DELETE", f"/v3/{policy['name']}")
    client.do("DELETE", f"/v3/{channel['name']}")
    assert client.get(channels) == {}


def test_a_dashboard_is_locked_by_its_etag(client: Client) -> None:
    where = "/v1/projects/p1/dashboards"
    made = client.do("POST", where, {"displayName": "d", "gridLayout": {}})
    change = {"displayName": "e", "gridLayout": {}, "etag": made["etag"]}
    changed = client.do("PATCH", f"/v1/{made['name']}", change)
    assert (changed["displayName"], changed["name"]) == ("e", made["name"])
    assert client.call("PATCH", f"/v1/{made['name']}", change).status == 409
    client.do("DELETE", f"/v1/{made['name']}")
