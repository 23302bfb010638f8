"""The lab as google-cloud-compute sees it: what an operator's tools are written with."""

import warnings
from typing import Any

import pytest

from lab.cloud.server import Serving
from tests.lab.cloud.client import Client
from tests.lab.cloud.guest import publish

with warnings.catch_warnings():
    # On import it announces when it will drop this Python, which is Debian 12's.
    warnings.simplefilter("ignore", FutureWarning)
    from google.api_core import exceptions
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import compute_v1

AT: dict[str, str] = {"project": "p1", "zone": "us-central1-a"}


def build(kind: Any, serving: Serving) -> Any:
    options = {"api_endpoint": serving.url}
    return kind(credentials=AnonymousCredentials(), client_options=options)  # type: ignore[no-untyped-call]


@pytest.fixture
def instances(serving: Serving, network: Client) -> Any:
    del network
    client = build(compute_v1.InstancesClient, serving)
    # The client polls operations at Google's own address whatever `api_endpoint` says (1.48), so
    # it is given the client for them.
    operations = build(compute_v1.ZoneOperationsClient, serving)
    client.transport._extended_operations_services["zone_operations"] = operations
    return client


def vm(name: str, **labels: str) -> compute_v1.Instance:
    boot = compute_v1.AttachedDiskInitializeParams(
        source_image="projects/debian-cloud/global/images/family/debian-12", disk_size_gb=20
    )
    subnetwork = "regions/us-central1/subnetworks/sub"
    return compute_v1.Instance(
        name=name,
        machine_type="zones/us-central1-a/machineTypes/e2-standard-2",
        labels=labels,
        disks=[compute_v1.AttachedDisk(boot=True, auto_delete=True, initialize_params=boot)],
        network_interfaces=[compute_v1.NetworkInterface(subnetwork=subnetwork)],
    )


def insert(instances: Any, name: str, **labels: str) -> None:
    instances.insert(**AT, instance_resource=vm(name, **labels)).result(timeout=30)


def test_the_life_of_an_instance(instances: Any) -> None:
    insert(instances, "vm", fleet="one")
    found = instances.get(**AT, instance="vm")
    assert (found.status, found.network_interfaces[0].network_i_p) == ("RUNNING", "10.10.0.2")
    assert found.disks[0].disk_size_gb == 20
    items = [compute_v1.Items(key="spec", value="{}")]
    metadata = compute_v1.Metadata(items=items, fingerprint=found.metadata.fingerprint)
    instances.set_metadata(**AT, instance="vm", metadata_resource=metadata).result(timeout=30)
    with pytest.raises(exceptions.PreconditionFailed, match="fingerprint"):
        instances.set_metadata(**AT, instance="vm", metadata_resource=metadata)
    for action in (instances.reset, instances.stop, instances.start):
        action(**AT, instance="vm").result(timeout=30)
    assert "boots nothing" in instances.get_serial_port_output(**AT, instance="vm").contents
    instances.delete(**AT, instance="vm").result(timeout=30)
    with pytest.raises(exceptions.NotFound, match="instances/vm' was not found"):
        instances.get(**AT, instance="vm")


def test_errors_have_the_clients_own_types(instances: Any) -> None:
    insert(instances, "vm")
    with pytest.raises(exceptions.Conflict, match="already exists"):
        instances.insert(**AT, instance_resource=vm("vm"))
    kind = compute_v1.InstancesSetMachineTypeRequest(
        machine_type="zones/us-central1-a/machineTypes/e2-standard-4"
    )
    with pytest.raises(exceptions.BadRequest, match="TERMINATED"):
        instances.set_machine_type(
            **AT, instance="vm", instances_set_machine_type_request_resource=kind
        )
    clash = vm("other")
    clash.network_interfaces[0].network_i_p = "10.10.0.2"
    with pytest.raises(exceptions.GoogleAPICallError, match="already being used"):
        instances.insert(**AT, instance_resource=clash).result(timeout=30)


def test_lists_are_paged_and_filtered(instances: Any) -> None:
    for number in range(5):
        insert(instances, f"vm-{number}", fleet="one" if number % 2 else "two")
    request = compute_v1.ListInstancesRequest(**AT, max_results=2)
    pages = list(instances.list(request=request).pages)
    assert [len(page.items) for page in pages] == [2, 2, 1]

    def names(text: str) -> list[str]:
        asked = compute_v1.ListInstancesRequest(**AT, filter=text)
        return [each.name for each in instances.list(request=asked)]

    assert names("labels.fleet=one") == ["vm-1", "vm-3"]
    assert names("labels.fleet=one AND name=vm-3") == ["vm-3"]
    assert names("name eq 'vm-[0-2]'") == ["vm-0", "vm-1", "vm-2"]
    assert names("status=TERMINATED") == []
    with pytest.raises(exceptions.BadRequest, match="filter"):
        names("(labels.fleet=one")


def test_an_aggregated_list_covers_all_zones_page_by_page(instances: Any) -> None:
    for name in ("a", "b", "c"):
        insert(instances, name, fleet="one")
    other = {**AT, "zone": "us-central1-b"}
    body = vm("d", fleet="one")
    body.machine_type = "zones/us-central1-b/machineTypes/e2-standard-2"
    instances.insert(**other, instance_resource=body).result(timeout=30)
    request = compute_v1.AggregatedListInstancesRequest(
        project="p1", filter="labels.fleet=one", max_results=2
    )
    found = [
        (zone, each.name)
        for zone, scoped in instances.aggregated_list(request=request)
        for each in scoped.instances
    ]
    # Within a page the client's map has no order.
    assert sorted(found) == [
        ("zones/us-central1-a", "a"),
        ("zones/us-central1-a", "b"),
        ("zones/us-central1-a", "c"),
        ("zones/us-central1-b", "d"),
    ]


def test_operations_are_waited_for(instances: Any, serving: Serving) -> None:
    operations = build(compute_v1.ZoneOperationsClient, serving)
    started = instances.insert_unary(**AT, instance_resource=vm("vm"))
    done = operations.wait(**AT, operation=started.name)
    assert done.status == compute_v1.Operation.Status.DONE
    with pytest.raises(exceptions.NotFound):
        operations.wait(**AT, operation="operation-0")


def test_project_metadata(serving: Serving) -> None:
    projects = build(compute_v1.ProjectsClient, serving)
    held = projects.get(project="p1").common_instance_metadata
    item = compute_v1.Items(key="startup-script", value="#!/bin/bash\n")
    metadata = compute_v1.Metadata(items=[item], fingerprint=held.fingerprint)
    projects.set_common_instance_metadata(project="p1", metadata_resource=metadata)
    found = projects.get(project="p1").common_instance_metadata
    assert [(each.key, each.value) for each in found.items] == [(item.key, item.value)]
    assert serving.lab.unknown == []


def test_guest_attributes(instances: Any, serving: Serving) -> None:
    insert(instances, "vm")
    path = "projects/p1/zones/us-central1-a/instances/vm"
    publish(serving.lab.store, path, "ns/status", "up")
    request = compute_v1.GetGuestAttributesInstanceRequest(**AT, instance="vm", query_path="ns/")
    found = instances.get_guest_attributes(request=request)
    assert [(each.key, each.value) for each in found.query_value.items] == [("status", "up")]
