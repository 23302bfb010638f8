"""Access for lookers and operators as it is declared (docs/ACCESS.md)."""

from __future__ import annotations

import re

import pytest

from components.access import OPERATOR_PERMISSIONS
from tests.components.fleet import ROOT, Recorder, changed, run_program, seed

LOOK, ORDER = "group:look@example.com", "group:order@example.com"
PROJECT, BUCKET = "projects/iAMMember:IAMMember", "storage/bucketIAMMember:BucketIAMMember"
CUSTOM = "projects/iAMCustomRole:IAMCustomRole"


@pytest.fixture(scope="module")
def fleet() -> Recorder:
    return run_program(changed(access={"look": [LOOK], "order": [ORDER]}))


def granted(fleet: Recorder, member: str) -> set[tuple[str, str]]:
    """Roles with the expression of their condition ("" for none)."""
    return {
        (inputs["role"], inputs.get("condition", {}).get("expression", ""))
        for type_ in (PROJECT, BUCKET)
        for inputs in fleet.of(type_).values()
        if inputs["member"] == member
    }


LOOKING = {
    ("roles/compute.viewer", ""),
    ("roles/monitoring.viewer", ""),
    ("roles/storage.objectViewer", ""),
    ("roles/iap.tunnelResourceAccessor", "destination.port == 3000"),
}


def test_lookers_change_nothing(fleet: Recorder) -> None:
    assert granted(fleet, LOOK) == LOOKING


def test_operators_look_too_and_write_orders_only(fleet: Recorder) -> None:
    assert granted(fleet, ORDER) >= LOOKING
    assert granted(fleet, ORDER) - LOOKING == {
        ("roles/monitoring.snoozeEditor", ""),
        (
            "roles/storage.objectUser",
            'resource.name.startsWith("projects/_/buckets/project-1-pilot-fleet/objects/orders/")',
        ),
        ("projects/project-1/roles/pilotFleetOperator", ""),
    }


def test_no_operator_can_become_root_on_a_vm(fleet: Recorder) -> None:
    """Metadata, its account or a disk of one's own would be a way."""
    (role,) = fleet.of(CUSTOM).values()
    assert set(role["permissions"]) == set(OPERATOR_PERMISSIONS)
    for permission in OPERATOR_PERMISSIONS:
        assert not re.search(
            r"setMetadata|setServiceAccount|actAs|setIamPolicy|attachDisk|osLogin|delete",
            permission,
        )


def test_a_role_that_exists_is_used() -> None:
    given = "projects/project-1/roles/operator"
    fleet = run_program(changed(access={"order": [ORDER], "role": given}))
    assert not fleet.of(CUSTOM)
    assert (given, "") in granted(fleet, ORDER)


def test_nobody_is_granted_anything_by_default() -> None:
    plain = run_program(seed())
    members = {
        inputs["member"] for type_ in (PROJECT, BUCKET) for inputs in plain.of(type_).values()
    }
    assert members == {
        f"serviceAccount:{account}@project.iam.gserviceaccount.com"
        for account in ("pilot-fleet", "pilot-fleet-rendezvous")
    }


def test_the_document_names_every_granted_role(fleet: Recorder) -> None:
    text = (ROOT / "docs" / "ACCESS.md").read_text()
    for role, condition in granted(fleet, ORDER):
        assert f"`{role.removeprefix('projects/project-1/roles/')}`" in text
        assert not condition.startswith("destination") or f"`{condition}`" in text
    for permission in OPERATOR_PERMISSIONS:
        assert f"`{permission}`" in text, permission
