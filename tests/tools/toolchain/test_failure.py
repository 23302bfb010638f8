"""The sentence for a failed build, from Go's output."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.toolchain.failure import explain

LOG = Path("/cache/build.log")
PROXY = "https://proxy.example,direct"


def sentence(output: str) -> str:
    return explain(output, log=LOG, title="the engine", proxy=PROXY)


@pytest.mark.parametrize(
    "output",
    [
        "go: cel.dev/expr@v0.25.2: dial tcp: lookup proxy.example on 10.0.0.2:53: no such host",
        'Get "https://proxy.example/x": dial tcp 142.250.1.1:443: connect: connection refused',
        'Get "https://proxy.example/x": net/http: TLS handshake timeout',
        "go: example.com/m@v1.0.0: module lookup disabled by GOPROXY=off",
        "verifying module: x509: certificate signed by unknown authority",
        "go: reading https://goproxy.corp/x/@v/v1.zip: 403 Forbidden",
    ],
)
def test_a_closed_network(output: str) -> None:
    assert "could not be fetched from the Go module proxy" in sentence(output)
    assert PROXY in sentence(output)


@pytest.mark.parametrize(
    "output",
    [
        "# google.golang.org/genproto\n/tmp/go-build1/b2/_pkg_.a: write: no space left on device",
        "go: writing stat cache: mkdir /home/me/go/pkg: Disk quota exceeded",
        # A download that a full disk broke is a full disk.
        "Get x: unexpected EOF\nwrite /go/pkg/mod/cache: no space left on device",
    ],
)
def test_a_full_disk(output: str) -> None:
    assert "The disk filled up while building the engine" in sentence(output)


@pytest.mark.parametrize(
    "output",
    [
        "go: go.mod requires go >= 1.25.11 (running go 1.22.1; GOTOOLCHAIN=local)",
        "go: errors parsing go.mod:\n/x/go.mod:3: invalid go version '1.25.11': must match",
        "note: module requires Go 1.25",
    ],
)
def test_an_old_go(output: str) -> None:
    assert "This Go is too old for the engine" in sentence(output)


def test_other_bytes_than_the_pinned_ones() -> None:
    output = "verifying cel.dev/expr@v0.25.2: checksum mismatch\n\tdownloaded: h1:a\n\tgo.sum: h1:b"
    assert "not the ones that tools/toolchain/ pins by checksum" in sentence(output)


def test_too_little_memory() -> None:
    output = "google-beta: /usr/local/go/pkg/tool/linux_amd64/compile: signal: killed"
    assert "ran out of memory" in sentence(output)


def test_anything_else_is_shown_with_its_log() -> None:
    output = "\n".join(f"main.go:{n}: undefined: x" for n in range(50))
    text = sentence(output)
    assert "main.go:49:" in text
    assert "main.go:30:" in text
    assert "main.go:29:" not in text
    assert str(LOG) in text


def test_every_sentence_but_the_last_resort_is_one_line_and_names_the_log() -> None:
    for output in ("dial tcp", "no space left on device", "checksum mismatch", "signal: killed"):
        assert "\n" not in sentence(output)
        assert sentence(output).endswith(str(LOG))
