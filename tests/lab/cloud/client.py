"""A plain HTTP client for tests: what providers send, without a provider."""

import json
from dataclasses import dataclass, field
from http.client import HTTPConnection
from typing import Any
from urllib.parse import quote, urlsplit

COMPUTE = "/compute/v1/projects/p1"
ZONE = f"{COMPUTE}/zones/us-central1-a"
REGION = f"{COMPUTE}/regions/us-central1"
LINK = "https://www.googleapis.com"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An answer: `json` is None where the body is no JSON."""

    status: int
    headers: dict[str, str]
    data: bytes
    json: Any = None

    @property
    def reason(self) -> str:
        """Return Google's word for a refusal."""
        reason: str = self.json["error"]["errors"][0]["reason"]
        return reason

    @property
    def message(self) -> str:
        """Return the message of a refusal."""
        message: str = self.json["error"]["message"]
        return message


@dataclass(frozen=True)
class Client:
    """Calls the lab at `url`, with a bearer token unless told otherwise."""

    url: str
    token: str | None = "anything"
    timeout: float = 30.0
    headers: dict[str, str] = field(default_factory=dict)

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """Send a request; a body that is not bytes is sent as JSON."""
        connection = HTTPConnection(urlsplit(self.url).netloc, timeout=self.timeout)
        sent = {**self.headers, **(headers or {})}
        if self.token:
            sent["Authorization"] = f"Bearer {self.token}"
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        try:
            connection.request(method, path, body=data, headers=sent)
            response = connection.getresponse()
            received = response.read()
        finally:
            connection.close()
        kept = {key.lower(): value for key, value in response.getheaders()}
        parsed = None
        if received and "json" in kept.get("content-type", "") and received[:1] == b"{":
            parsed = json.loads(received)
        return Answer(status=response.status, headers=kept, data=received, json=parsed)

    def get(self, path: str) -> Any:
        """Return the document at `path`; AssertionError where it is refused."""
        answer = self.call("GET", path)
        assert answer.status == 200, answer
        return answer.json

    def do(self, method: str, path: str, body: Any = None) -> Any:
        """Make a change and wait for its operation; AssertionError where either fails."""
        answer = self.call(method, path, body)
        assert answer.status < 300, answer
        if answer.json is None or answer.json.get("kind") != "compute#operation":
            return answer.json
        done = self.wait(answer.json)
        assert "error" not in done, done
        return done

    def wait(self, operation: Any) -> Any:
        """Return an operation once it is DONE."""
        path = operation["selfLink"].removeprefix("https://www.googleapis.com")
        done = self.call("POST", f"{path}/wait").json
        assert done["status"] == "DONE", done
        return done

    def failure(self, method: str, path: str, body: Any = None) -> tuple[str, str]:
        """Return code and message of an operation that was accepted and failed."""
        answer = self.call(method, path, body)
        assert answer.status == 200, answer
        error = self.wait(answer.json)["error"]["errors"][0]
        return error["code"], error["message"]

    def upload(self, bucket: str, name: str, data: bytes, query: str = "") -> Answer:
        """Upload an object as providers do: metadata and bytes in one multipart body."""
        return self.call(
            "POST",
            f"/upload/storage/v1/b/{bucket}/o?uploadType=multipart"
            f"&name={quote(name, safe='')}{query}",
            multipart({"contentType": "text/plain"}, data),
            headers={"Content-Type": "multipart/related; boundary=xxx"},
        )


def multipart(metadata: Any, data: bytes) -> bytes:
    """Return the body of a multipart upload, with the boundary `xxx`."""
    head = b"--xxx\r\nContent-Type: application/json\r\n\r\n" + json.dumps(metadata).encode()
    return head + b"\r\n--xxx\r\nContent-Type: text/plain\r\n\r\n" + data + b"\r\n--xxx--\r\n"


def vm(name: str = "vm", **more: Any) -> dict[str, Any]:
    """Return the least that an instance's insert request needs."""
    return {
        "name": name,
        "machineType": "zones/us-central1-a/machineTypes/e2-standard-2",
        "disks": [
            {
                "boot": True,
                "autoDelete": True,
                "initializeParams": {
                    "sourceImage": "projects/debian-cloud/global/images/family/debian-12"
                },
            }
        ],
        "networkInterfaces": [{"subnetwork": "regions/us-central1/subnetworks/sub"}],
        **more,
    }


def make_network(client: Client, cidr: str = "10.10.0.0/20") -> None:
    """Make the network `net` with the subnetwork `sub`."""
    client.do("POST", f"{COMPUTE}/global/networks", {"name": "net", "autoCreateSubnetworks": False})
    body = {"name": "sub", "ipCidrRange": cidr, "network": "projects/p1/global/networks/net"}
    client.do("POST", f"{REGION}/subnetworks", body)


def list_of(client: Client, collection: str) -> list[Any]:
    """Return what is in a collection of the zone."""
    found: list[Any] = client.get(f"{ZONE}/{collection}").get("items", [])
    return found
