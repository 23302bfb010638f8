"""Which Pulumi, which backend, whose credentials: the decisions."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.toolchain import environment
from tools.toolchain.environment import Pulumi

INSTALLED = Pulumi(version="v3.272.0", path="/usr/bin/pulumi")
OURS = Pulumi(
    version="v3.259.0", path="/c/engine/bin/pulumi", bin="/c/e", home="/c/home", built=True
)
OFFICIAL = Pulumi(version="3.272.0", path="/c/bin/pulumi", bin="/c/bin", home="/c/home")


@pytest.mark.parametrize(
    ("path", "answer", "used", "words"),
    [
        (None, "", False, None),
        ("/usr/bin/pulumi", "v3.259.0", True, "Using the installed Pulumi 3.259.0"),
        ("/usr/bin/pulumi", "v3.300.1-dev.0", True, "Using the installed Pulumi 3.300.1"),
        ("/usr/bin/pulumi", "v4.0.0", True, "Using the installed Pulumi 4.0.0"),
        ("/usr/bin/pulumi", "v3.258.9", False, "older than 3.259.0"),
        ("/usr/bin/pulumi", "v2.300.0", False, "older than 3.259.0"),
        ("/usr/bin/pulumi", "", False, "does not say its version"),
    ],
)
def test_an_installed_pulumi_is_used_from_3_259_on(
    path: str | None, answer: str, used: bool, words: str | None
) -> None:
    decided, sentence = environment.judge_installed(path, answer)
    assert decided is used
    if words is None:
        assert sentence is None
    else:
        assert sentence is not None
        assert words in sentence
        assert "\n" not in sentence


LOGIN = '{"current": "https://api.pulumi.com"}'
PROJECT = "name: x\nbackend:\n  url: gs://b\n"


@pytest.mark.parametrize(
    ("environ", "credentials", "project", "chosen"),
    [
        ({}, None, None, None),
        ({"PULUMI_BACKEND_URL": ""}, None, "name: x\n", None),
        ({"PULUMI_BACKEND_URL": "gs://a"}, LOGIN, PROJECT, "gs://a"),
        ({"PULUMI_ACCESS_TOKEN": "pul-x"}, None, None, "https://api.pulumi.com"),
        ({"PULUMI_ACCESS_TOKEN": "pul-x"}, '{"current": "file://~"}', None, "file://~"),
        ({"PULUMI_ACCESS_TOKEN": "pul-x"}, None, PROJECT, "gs://b"),
        ({}, LOGIN, None, "https://api.pulumi.com"),
        ({}, LOGIN, PROJECT, "gs://b"),
        ({}, '{"current": "file:///home/u"}', None, "file:///home/u"),
        ({}, '{"current": "", "accounts": {}}', None, None),
        ({}, "{}", None, None),
        ({}, "no json", None, "unreadable"),
        ({}, "[]", None, "unreadable"),
        ({}, None, "backend: {url: gs://b}\n", "gs://b"),
        ({}, None, "backend: # ours\n  url: 'file://~/state' # here\n", "file://~/state"),
        ({}, None, 'backend: {"url": "gs://b"}\n', "gs://b"),
        ({}, None, "backend:\n  url:\nname: x\n", None),
        ({}, None, "#backend:\n#  url: gs://b\n", None),
        ({}, None, "config:\n  backend:\n    url: x\n", None),
    ],
)
def test_which_backend_a_user_has_chosen(
    environ: dict[str, str], credentials: str | None, project: str | None, chosen: str | None
) -> None:
    assert environment.chosen_backend(environ, credentials, project) == chosen


def added(pulumi: Pulumi, environ: dict[str, str], *, backend: str | None = None) -> dict[str, str]:
    return environment.additions(
        pulumi=pulumi,
        environ=environ,
        checkout=Path("/home/u/my fleet"),
        login_folder=Path("/home/u/.pulumi"),
        backend=backend,
    )


def test_our_engine_comes_with_its_plugins_and_keeps_the_login() -> None:
    assert added(OURS, {"PATH": "/usr/bin"}) == {
        "PATH": "/home/u/my fleet/.venv/bin:/c/e:/usr/bin",
        "PULUMI_HOME": "/c/home",
        "PULUMI_CREDENTIALS_PATH": "/home/u/.pulumi",
        "PULUMI_SKIP_UPDATE_CHECK": "1",
        "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "1",
        "PULUMI_CONFIG_PASSPHRASE": "",
        "PULUMI_BACKEND_URL": "file:///home/u/my fleet/.state",
    }


def test_an_installed_pulumi_keeps_its_home_and_its_plugins() -> None:
    assert added(INSTALLED, {"PATH": "/usr/bin"}) == {
        "PATH": "/home/u/my fleet/.venv/bin:/usr/bin",
        "PULUMI_SKIP_UPDATE_CHECK": "1",
        "PULUMI_CONFIG_PASSPHRASE": "",
        "PULUMI_BACKEND_URL": "file:///home/u/my fleet/.state",
    }


@pytest.mark.parametrize("name", ["PULUMI_CONFIG_PASSPHRASE", "PULUMI_CONFIG_PASSPHRASE_FILE"])
def test_a_passphrase_of_ones_own_stands(name: str) -> None:
    assert "PULUMI_CONFIG_PASSPHRASE" not in added(OURS, {"PATH": "", name: "x"})


def test_a_backend_of_ones_own_stands() -> None:
    assert "PULUMI_BACKEND_URL" not in added(OURS, {"PATH": ""}, backend="gs://b")


def test_the_policy_pack_is_an_executable_for_the_built_engine_only() -> None:
    assert OURS.policy_pack == "policy/analyzer"
    assert INSTALLED.policy_pack == OFFICIAL.policy_pack == "policy"


STACK = "config:\n  gcp:project: p\n"


@pytest.mark.parametrize(
    ("environ", "stack", "default", "product", "found"),
    [
        ({}, STACK, None, "", None),
        ({}, STACK, None, "Standard PC (Q35)\n", None),
        ({"GOOGLE_CREDENTIALS": "{}"}, STACK, None, "", "GOOGLE_CREDENTIALS"),
        ({"GOOGLE_CLOUD_KEYFILE_JSON": "{}"}, STACK, None, "", "GOOGLE_CLOUD_KEYFILE_JSON"),
        ({"GCLOUD_KEYFILE_JSON": "{}"}, STACK, None, "", "GCLOUD_KEYFILE_JSON"),
        ({"GOOGLE_OAUTH_ACCESS_TOKEN": "t"}, STACK, None, "", "GOOGLE_OAUTH_ACCESS_TOKEN"),
        (
            {"GOOGLE_APPLICATION_CREDENTIALS": "/k"},
            STACK,
            None,
            "",
            "GOOGLE_APPLICATION_CREDENTIALS",
        ),
        ({"GOOGLE_CREDENTIALS": ""}, STACK, None, "", None),
        ({}, STACK + "  gcp:accessToken: x\n", None, "", "gcp:accessToken of the stack file"),
        ({}, STACK + '  "gcp:credentials": x\n', None, "", "gcp:credentials of the stack file"),
        ({}, STACK + "  gcp:accessToken:\n    secure: v1:x\n", None, "", "gcp:accessToken of the"),
        ({}, STACK + "  # gcp:accessToken: x\n", None, "", None),
        ({}, STACK, Path("/h/adc.json"), "", "/h/adc.json"),
        ({}, STACK, None, "Google Compute Engine\n", "this VM's service account"),
        ({}, STACK, None, "Google\n", "this VM's service account"),
        ({}, STACK, None, "Google Pixelbook\n", None),
    ],
)
def test_credentials_are_found_where_the_provider_finds_them(
    environ: dict[str, str], stack: str, default: Path | None, product: str, found: str | None
) -> None:
    source = environment.google_credentials(
        environ, stack, application_default=default, product=product
    )
    if found is None:
        assert source is None
    else:
        assert source is not None
        assert source.startswith(found)


@pytest.mark.parametrize(
    ("credentials", "arguments", "terminal", "agreed", "extra", "refused"),
    [
        (None, [], True, True, [], "No Google credentials"),
        ("adc", [], True, False, [], None),
        ("adc", [], True, True, [], None),
        ("adc", [], False, False, [], "PILOT_FLEET_YES=1"),
        ("adc", [], False, True, ["--yes"], None),
        ("adc", ["--yes"], False, False, [], None),
        ("adc", ["-y"], False, True, [], None),
    ],
)
def test_up_never_asks_where_nobody_is(
    credentials: str | None,
    arguments: list[str],
    terminal: bool,
    agreed: bool,
    extra: list[str],
    refused: str | None,
) -> None:
    got, sentence = environment.may_update(credentials, arguments, terminal=terminal, agreed=agreed)
    assert got == extra
    if refused is None:
        assert sentence is None
    else:
        assert sentence is not None
        assert refused in sentence


def test_real_resources_with_state_on_one_machine_are_warned_about() -> None:
    warning = environment.local_backend_warning("file:///home/u/.state")
    assert warning is not None
    assert "docs/PRODUCTION.md" in warning
    assert environment.local_backend_warning("gs://bucket") is None
    assert environment.local_backend_warning("") is None
