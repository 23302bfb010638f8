"""A test-only stand-in for the `gcp` provider: it accepts anything and creates nothing.

The toolchain's provider is older than some types that the policies must judge. This one takes
every type with every input, plans it, and at `up` makes up an id. Nothing is ever sent to a cloud.
It says what it is in its log, its schema, its plugin version and in a warning of every run.
"""

from __future__ import annotations

import itertools
import json
import sys
from concurrent import futures
from typing import Any

import grpc  # type: ignore[import-untyped]
from google.protobuf import empty_pb2
from pulumi.runtime.proto import (
    engine_pb2,
    engine_pb2_grpc,
    plugin_pb2,
    provider_pb2,
    provider_pb2_grpc,
)

NOTICE = "test-only stand-in for the gcp provider: accepts anything, creates nothing"
VERSION = "0.0.0-stand-in"


class StandIn(provider_pb2_grpc.ResourceProviderServicer):
    """The provider protocol, saying yes to everything."""

    def __init__(self, engine: str) -> None:
        self._engine = engine
        self._ids = itertools.count(1)

    def Configure(self, request: Any, context: Any) -> Any:  # noqa: N802 - the protocol's name
        with grpc.insecure_channel(self._engine) as channel:
            engine_pb2_grpc.EngineStub(channel).Log(
                engine_pb2.LogRequest(severity=engine_pb2.WARNING, message=NOTICE)
            )
        return provider_pb2.ConfigureResponse(acceptSecrets=True, supportsPreview=True)

    def GetPluginInfo(self, request: Any, context: Any) -> Any:  # noqa: N802
        return plugin_pb2.PluginInfo(version=VERSION)

    def GetSchema(self, request: Any, context: Any) -> Any:  # noqa: N802
        schema = {"name": "gcp", "version": VERSION, "description": NOTICE}
        return provider_pb2.GetSchemaResponse(schema=json.dumps(schema))

    def CheckConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        return provider_pb2.CheckResponse(inputs=request.news)

    def DiffConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        return provider_pb2.DiffResponse(changes=provider_pb2.DiffResponse.DIFF_NONE)

    def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        return provider_pb2.CheckResponse(inputs=request.news)

    def Diff(self, request: Any, context: Any) -> Any:  # noqa: N802
        changed = request.olds != request.news
        response = provider_pb2.DiffResponse
        return response(changes=response.DIFF_SOME if changed else response.DIFF_NONE)

    def Create(self, request: Any, context: Any) -> Any:  # noqa: N802
        made = "" if request.preview else f"stand-in-{next(self._ids)}"
        return provider_pb2.CreateResponse(id=made, properties=request.properties)

    def Update(self, request: Any, context: Any) -> Any:  # noqa: N802
        return provider_pb2.UpdateResponse(properties=request.news)

    def Delete(self, request: Any, context: Any) -> Any:  # noqa: N802
        return empty_pb2.Empty()

    def Cancel(self, request: Any, context: Any) -> Any:  # noqa: N802
        return empty_pb2.Empty()


def main() -> None:
    """Serve on a free loopback port, print it, and run until the engine ends the process."""
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    provider_pb2_grpc.add_ResourceProviderServicer_to_server(StandIn(sys.argv[1]), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    print(NOTICE, file=sys.stderr, flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
