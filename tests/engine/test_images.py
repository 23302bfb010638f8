"""Images of boot disks: looked up before anything is touched; a newer one replaces no VM."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lab.cloud.server import Serving, serve
from tests.components.fleet import changed
from tests.engine.project import Project
from tests.engine.test_update import CLOUD, FLEET, call, delete, instances
from tools.toolchain import environment

pytestmark = pytest.mark.engine

DISKS = f"projects/{CLOUD}/zones/us-central1-a/disks"
VMS = {"pilot-rendezvous", "swarm-1", "swarm-2", "swarm-3"}
GOLDEN: dict[str, Any] = {"image": "corp-images/golden"}


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Serving]:
    with serve(tmp_path / "cloud") as serving:
        for name, family in (("corp-base-20261101", "golden"), ("other-7", "canary")):
            add(serving, name, family)
        yield serving


@pytest.fixture
def project(tmp_path: Path, pulumi_env: dict[str, str], cloud: Serving) -> Project:
    return Project(folder=tmp_path / "fleet", environment=pulumi_env, extra=cloud.settings())


def add(cloud: Serving, name: str, family: str) -> None:
    call(cloud, "projects/corp-images/global/images", {"name": name, "family": family})


def boot_images(cloud: Serving) -> dict[str, str]:
    """The image that each VM's boot disk was made from."""
    disks = {disk["name"]: disk for disk in call(cloud, DISKS)["items"]}
    return {vm: disks[vm]["sourceImage"].rsplit("/", 1)[1] for vm in instances(cloud)}


def fleet(own: Mapping[str, str] | None = None, **values: Any) -> dict[str, Any]:
    """The seed's fleet, swarm VMs with an image of their own by name."""
    made = changed(**FLEET | values)
    made["swarm"] = copy.deepcopy(made["swarm"])
    for vm in made["swarm"]:
        if vm["name"] in (own or {}):
            vm["image"] = (own or {})[vm["name"]]
    return made


def test_the_fleets_image_is_for_new_disks_and_a_vms_own_makes_it_again(
    project: Project, cloud: Serving
) -> None:
    project.configure(fleet(**GOLDEN))
    assert project.up("--skip-preview", policies=False).no_traceback().code == 0
    made = instances(cloud)
    state_disks = {disk["name"]: disk["id"] for disk in call(cloud, DISKS)["items"]}
    assert boot_images(cloud) == dict.fromkeys(VMS, "corp-base-20261101")

    # A family that is not in its image's name, a newer image in it, another family: no VM changes.
    add(cloud, "corp-base-20261201", "golden")
    assert project.steps("--refresh") == {}
    project.configure(fleet(image="corp-images/canary"))
    assert project.steps("--refresh") == {}

    # One VM is asked for with an image of its own: it alone is made again, on its state disk.
    own = {"swarm-1": "corp-images/canary"}
    project.configure(fleet(own, **GOLDEN))
    assert project.steps() == {"swarm-1-vm": "replace"}
    assert project.up().no_traceback().code == 0
    assert boot_images(cloud) == dict.fromkeys(VMS, "corp-base-20261101") | {"swarm-1": "other-7"}
    now = instances(cloud)
    assert {name for name in now if now[name]["id"] != made[name]["id"]} == {"swarm-1"}
    disks = {disk["name"]: disk for disk in call(cloud, DISKS)["items"]}
    assert disks["swarm-1-state"]["id"] == state_disks["swarm-1-state"]
    assert disks["swarm-1-state"]["users"] == [now["swarm-1"]["selfLink"]]

    # Once. A newer image in its family does not ask again, nor does taking the line away.
    add(cloud, "other-8", "canary")
    assert project.steps("--refresh") == {}
    project.configure(fleet(**GOLDEN))
    assert project.steps("--refresh") == {}

    # What is replaced for another reason gets what is asked for now.
    project.configure(fleet(image="corp-images/canary"))
    urns = [
        f"urn:pulumi:{project.stack}::pilot-fleet::pilot:fleet:SwarmVm$gcp:compute/instance:Instance::{vm}-vm"
        for vm in ("swarm-2", "swarm-3")
    ]
    tainted = project.pulumi("state", "taint", urns[1], "-s", project.stack, "--yes")
    assert tainted.code == 0, tainted.text
    again = project.up("--skip-preview", f"--replace={urns[0]}", policies=False)
    assert again.no_traceback().code == 0, again.text
    replaced = {"swarm-1": "other-7", "swarm-2": "other-8", "swarm-3": "other-8"}
    assert boot_images(cloud) == {"pilot-rendezvous": "corp-base-20261101"} | replaced
    vm = project.folder / "components" / "vm.py"
    vm.write_text(
        vm.read_text().replace("tags=[args.tag],", "tags=[args.tag], description='another',")
    )
    assert set(project.steps().values()) == {"replace"}
    assert project.up("--skip-preview", policies=False).no_traceback().code == 0
    assert boot_images(cloud) == dict.fromkeys(VMS, "other-8")
    assert project.steps("--refresh") == {}


def test_a_fleet_of_the_release_before_is_not_replaced(project: Project, cloud: Serving) -> None:
    """Its state knows nothing of images of VMs' own, and its VMs' images were not ignored."""
    vm = project.folder / "components" / "vm.py"
    now = vm.read_text()
    before = now.replace('ignore_changes=["bootDisk.initializeParams.image"],', "")
    assert before != now
    vm.write_text(before)
    project.configure(fleet(**GOLDEN))
    assert project.up("--skip-preview", policies=False).no_traceback().code == 0
    assert set(project.steps().values()) == {"replace"}, "what this is about"
    vm.write_text(now)
    assert project.steps("--refresh") == {}
    # One image at once, before an update of this release has run.
    project.configure(fleet({"swarm-2": "corp-images/canary"}, **GOLDEN))
    assert project.steps() == {"swarm-2-vm": "replace"}


def test_a_name_that_is_not_there_is_refused_before_anything_is_touched(
    project: Project, cloud: Serving
) -> None:
    project.configure(fleet(**GOLDEN))
    assert project.up("--skip-preview", policies=False).no_traceback().code == 0
    before = instances(cloud)
    # Nor does an image go on a disk that has no room for it.
    large = {"name": "large-1", "family": "large", "diskSizeGb": "50"}
    call(cloud, "projects/corp-images/global/images", large)
    project.configure(fleet({"swarm-1": "corp-images/large"}, **GOLDEN))
    refused = project.preview().no_traceback()
    assert refused.code != 0
    assert "pilot-fleet:swarm[0].bootDiskGb: 20 is less than the 50 GB of the image" in refused.text
    project.configure(fleet({"swarm-1": "corp-images/canari"}, image="debian-cloud/debian-21"))
    for answer in (project.preview(), project.up("--skip-preview")):
        assert answer.no_traceback().code != 0
        for path, image in (("image", "debian-21"), ("swarm[0].image", "canari")):
            lines = [each for each in answer.text.splitlines() if f"fleet:{path}: " in each]
            assert f"no family of images called {image}" in lines[-1], answer.text
    assert instances(cloud) == before


def test_one_that_no_boot_disk_is_made_of_holds_up_no_update(
    project: Project, cloud: Serving
) -> None:
    """Deployed, and then its image is deleted, so that the family is empty."""
    project.configure(fleet({"swarm-2": "corp-images/canary"}, **GOLDEN))
    assert project.up("--skip-preview", policies=False).no_traceback().code == 0
    for name in ("corp-base-20261101", "other-7"):
        delete(cloud, f"projects/corp-images/global/images/{name}")
    values = fleet({"swarm-2": "corp-images/canary"}, **GOLDEN)
    values["swarm"][0] |= {"agents": 2900}
    project.configure(values)
    done = project.up().no_traceback()
    assert done.code == 0, done.text
    for path, image in (("image", "golden"), ("swarm[1].image", "canary")):
        assert (
            f"warning: pilot-fleet:{path}: the project corp-images has no image and no family of "
            f"images called {image}. This update makes no boot disk from it" in done.text
        ), done.text

    # A VM that is to be made needs it, and so does a fleet that is given another.
    values["swarm"].append({"name": "swarm-4", "machineType": "e2-standard-8", "agents": 10})
    project.configure(values)
    refused = project.up("--skip-preview", policies=False).no_traceback()
    assert refused.code != 0
    assert "called golden. Nothing was changed" in refused.text, refused.text
    assert "swarm[1].image: the project corp-images has no image" in refused.text
    assert set(instances(cloud)) == VMS
    del values["swarm"][3]
    project.configure(values | {"image": "corp-images/canary"})
    assert project.preview(policies=False).code != 0


def test_a_plan_without_rights_says_that_it_could_not_look(project: Project) -> None:
    """As Google refuses a token: at once, and the plan goes on."""
    with refusing() as url:
        project.extra = {
            "gcp:accessToken": "expired",
            "gcp:computeCustomEndpoint": f"{url}/compute/v1/",
        }
        project.configure(fleet(**GOLDEN))
        preview = project.preview("--refresh=false").no_traceback()
        assert preview.code == 0, preview.text
        assert "warning: pilot-fleet:image: cannot be looked up" in preview.text
        assert "Error 401: no such token" in preview.text
        assert "swarm[2].machineType: cannot be looked up" in preview.text
        assert "the credentials are refused" in preview.text
        update = project.up("--skip-preview", "--refresh=false").no_traceback()
        assert update.code != 0
        assert "Error 401: no such token" in update.text
        assert "Nothing was changed" in update.text


def test_a_plan_without_credentials_asks_nobody(project: Project) -> None:
    project.environment = dict(project.environment) | {
        "GOOGLE_OAUTH_ACCESS_TOKEN": environment.PLACEHOLDER_TOKEN
    }
    project.extra = {}
    project.configure(fleet(image="corp-images/no-such"))
    preview = project.preview("--refresh=false").no_traceback()
    assert preview.code == 0, preview.text
    assert "pilot-fleet:image: cannot be looked up" in preview.text
    assert "pilot-fleet:swarm[2].machineType: cannot be looked up" in preview.text
    assert preview.text.count("there are no Google credentials") >= 2


@contextmanager
def refusing() -> Iterator[str]:
    """A server that answers every request as Google answers one whose token it does not know."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"error": {"code": 401, "message": "no such token"}}).encode()
            self.send_response(401)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
