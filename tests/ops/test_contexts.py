"""Contexts: what their file may hold, what they add to options, and the commands about them."""

from __future__ import annotations

import json
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ops import contexts
from ops.cli import COMMAND, main
from ops.cli_options import GOOGLE_PROJECT
from ops.contexts import ContextsFile, FleetContext, settle
from ops.errors import OpsError, UsageError
from tests.ops.conftest import Said
from tests.ops.simulated import Simulated

HERE = "http://127.0.0.1:8480"
LAB = FleetContext(project="lab-project", endpoint=HERE)
PRODUCTION = FleetContext(project="p1", fleet="swarm", dashboard="http://localhost:3000")


def known(current: str = "", **each: FleetContext) -> ContextsFile:
    return ContextsFile(current=current, contexts=each)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of this test's contexts, which is not there."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in (*GOOGLE_PROJECT, "PILOT_CONTEXT", "PILOT_PROJECT", "PILOT_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "config" / "pilot-fleet" / "contexts.json"


def run(capfd: pytest.CaptureFixture[str], *arguments: str, program: str = COMMAND) -> Said:
    capfd.readouterr()
    code = main(arguments, program=program)
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err
    return Said(code=code, out=out, err=err)


@pytest.mark.parametrize(
    ("given", "current", "where"),
    [
        pytest.param({}, "", {}, id="nothing"),
        pytest.param({}, "lab", {"project": "lab-project", "endpoint": HERE}, id="the-current-one"),
        pytest.param({"fleet": "x"}, "prod", {**PRODUCTION.values, "fleet": "x"}, id="a-value"),
        pytest.param({"project": "p1"}, "prod", PRODUCTION.values, id="the-same-project"),
        pytest.param({"project": "p2"}, "prod", {"project": "p2"}, id="another-project"),
        pytest.param({"project": "p2"}, "lab", {"project": "p2"}, id="not-at-the-labs-endpoint"),
        pytest.param({"endpoint": HERE + "/"}, "lab", LAB.values, id="the-same-endpoint"),
        pytest.param(
            {"endpoint": "http://[::1]:1"}, "lab", {"endpoint": "http://[::1]:1"}, id="another"
        ),
        pytest.param(
            {"compute_endpoint": HERE}, "lab", {"compute_endpoint": HERE}, id="one-api-is-another"
        ),
        pytest.param({"endpoint": HERE}, "prod", {"endpoint": HERE}, id="google-is-a-place-too"),
        pytest.param({"project": "p2"}, "bare", {"project": "p2", "fleet": "f"}, id="no-project"),
    ],
)
def test_what_options_leave_open_comes_from_the_current_context_of_the_same_place(
    given: dict[str, str], current: str, where: dict[str, str]
) -> None:
    there = known(current, lab=LAB, prod=PRODUCTION, bare=FleetContext(fleet="f"))
    assert settle(FleetContext(**given), there, "").values == where


def test_a_context_that_is_named_must_not_clash_with_options() -> None:
    there = known("lab", lab=LAB, prod=PRODUCTION)
    assert settle(FleetContext(), there, "prod") == PRODUCTION
    assert settle(FleetContext(project="p1"), there, "prod") == PRODUCTION
    with pytest.raises(UsageError, match=r"project p2 is not in the context prod \(p1\)"):
        settle(FleetContext(project="p2"), there, "prod")
    with pytest.raises(UsageError, match=r"endpoint http://x is not in the context lab"):
        settle(FleetContext(endpoint="http://x"), there, "lab")
    with pytest.raises(UsageError, match=r"dev is no context: there are lab, prod"):
        settle(FleetContext(), there, "dev")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is no JSON"),
        ('{"current": "lab",}', "line 1 column 19"),
        ("[" * 100_000, "is no JSON"),
        ("[]", "it is no object"),
        ('{"currant": "lab"}', "currant is not known here"),
        ('{"current": 5}', "current is no text"),
        ('{"current": "lab"}', "current is 'lab', and there is no such context"),
        ('{"contexts": []}', "contexts is no object"),
        ('{"contexts": {"lab": 1}}', "contexts.lab is no object"),
        ('{"contexts": {"a b": {}}}', "contexts.'a b' is no name"),
        ('{"contexts": {"lab": {"project": 5}}}', "contexts.lab.project is no text"),
        ('{"contexts": {"lab": {"token": "x"}}}', "contexts.lab.token is not known here"),
        ('{"contexts": {"lab": {"endpoint": "http://192.0.2.1"}}}', "contexts.lab.endpoint cannot"),
        ('{"contexts": {"a": {"endpoint": "https://u:p@x"}}}', "a.endpoint has a password"),
        ('{"contexts": {"a": {"dashboard": "http://x/?token=1"}}}', "a.dashboard has a password"),
        ('{"contexts": {"a": {"dashboard": "http://[::"}}}', "a.dashboard is no URL"),
        ('{"contexts": {"a": {"fleet": "x\\u001b[2J"}}}', "a.fleet has a blank or a character"),
    ],
)
def test_a_broken_file_is_one_line_with_its_path(
    file: Path, capfd: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    file.parent.mkdir(parents=True)
    file.write_text(text)
    for arguments in (["status"], ["context", "list"], ["context", "add", "x", "--project", "p"]):
        found = run(capfd, *arguments)
        assert found.code == 2, found
        assert found.err.startswith(f"pilot-fleet: {file}")
        assert said in found.err
        assert "mend the file" in found.err
        assert found.err.count("\n") == 1
        assert found.err.isprintable() or "\x1b" not in found.err
    assert file.read_text() == text
    # What needs no place needs no file.
    assert run(capfd, "status", "--help").code == 0
    assert run(capfd, "--version").code == 0


def test_all_problems_of_a_file_are_named_at_once(tmp_path: Path) -> None:
    text = '{"x": 1, "current": 2, "contexts": {"a": {"project": 3, "y": ""}, "b": 4}}'
    with pytest.raises(UsageError) as raised:
        contexts.parse(text, tmp_path)
    for each in ("x is", "current is", "contexts.a.project is", "contexts.a.y is", "contexts.b is"):
        assert each in str(raised.value)


def test_a_file_that_cannot_be_read_or_written_is_one_line(
    file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file.mkdir(parents=True)
    for arguments in (["status"], ["context", "list"], ["context", "add", "x", "--project", "p"]):
        found = run(capfd, *arguments)
        assert (found.code, found.err.count("\n")) == (3, 1), found
        assert found.err.startswith(f"pilot-fleet: {file} cannot be read: is a directory")
    file.rmdir()
    file.parent.rmdir()
    file.parent.write_text("a file")
    found = run(capfd, "context", "add", "x", "--project", "p")
    assert (found.code, found.err) == (
        3,
        f"pilot-fleet: {file} cannot be written: file exists\n",
    )
    file.parent.unlink()
    file.parent.mkdir()
    file.write_bytes(b"\xff")
    assert "no text in UTF-8" in run(capfd, "context", "list").err


def test_contexts_are_added_used_and_removed(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert "no contexts" in run(capfd, "context", "list").out
    assert "and the current one" in run(capfd, "context", "add", "a", "--project", "p").out
    assert "context use b" in run(capfd, "context", "add", "b", "--endpoint", HERE).out
    assert json.loads(file.read_text()) == {
        "current": "a",
        "contexts": {"a": {"project": "p"}, "b": {"endpoint": HERE}},
    }
    assert run(capfd, "context", "list", "--json").json == json.loads(file.read_text())
    assert run(capfd, "context", "use", "b").code == 0
    marks = {line[:1]: line.split() for line in run(capfd, "context", "list").out.splitlines()}
    assert marks["*"] == ["*", "b", HERE]
    assert run(capfd, "context", "use", "c").code == 2
    taken = run(capfd, "context", "add", "a", "--project", "q")
    assert (taken.code, "a already, for p: --replace" in taken.err) == (2, True)
    assert run(capfd, "context", "add", "a", "--project", "p").code == 0, "it is that already"
    added = run(capfd, "context", "add", "a", "--project", "q", "--replace", "--use")
    assert "and the current one" in added.out
    assert "no context is the current one" in run(capfd, "context", "remove", "a").out
    assert json.loads(file.read_text())["current"] == ""
    assert run(capfd, "context", "remove", "a").code == 2
    assert run(capfd, "context", "remove", "b").code == 0
    assert list(file.parent.iterdir()) == [], "nothing is left"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-x", "--project", "p"], "No such option"),
        (["a/b", "--project", "p"], "is no name"),
        (["a"], "what is in a?"),
        (["a", "--endpoint", "http://192.0.2.1"], "--endpoint cannot be"),
        (["a", "--compute-endpoint", HERE], "--compute-endpoint cannot be"),
        (["a", "--dashboard", "https://u:p@x"], "--dashboard has a password"),
        (["a", "--project", "p q"], "--project has a blank"),
    ],
)
def test_what_no_context_can_be_is_refused(
    file: Path, capfd: pytest.CaptureFixture[str], arguments: Sequence[str], said: str
) -> None:
    found = run(capfd, "context", "add", *arguments)
    assert found.code == 2
    assert said in found.err
    assert not file.exists()


def test_a_link_stays_a_link_and_the_file_is_the_users_own(file: Path, tmp_path: Path) -> None:
    dotfiles = tmp_path / "dotfiles" / "contexts.json"
    dotfiles.parent.mkdir()
    dotfiles.write_text("{}")
    file.parent.mkdir(parents=True)
    file.symlink_to(dotfiles)
    contexts.change(file, lambda there: contexts.added(there, "lab", LAB))
    assert file.is_symlink()
    assert contexts.read(dotfiles) == known("lab", lab=LAB)
    assert stat.S_IMODE(dotfiles.stat().st_mode) == 0o600


def test_a_write_that_fails_leaves_the_file_as_it_was(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contexts.change(file, lambda there: contexts.added(there, "lab", LAB))
    before = file.read_text()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OpsError, match="cannot be written: no space left on device"):
        contexts.change(file, lambda there: contexts.added(there, "p", PRODUCTION))
    assert file.read_text() == before
    assert list(file.parent.iterdir()) == [file]


def test_changes_at_the_same_time_are_all_there(file: Path) -> None:
    def add(number: int) -> None:
        name, context = f"c{number}", FleetContext(project=f"p{number}")
        contexts.change(file, lambda there: contexts.added(there, name, context))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(40)))
    assert len(contexts.read(file).contexts) == 40


def test_a_relative_configuration_folder_is_ignored(tmp_path: Path) -> None:
    for environ in ({}, {"XDG_CONFIG_HOME": ""}, {"XDG_CONFIG_HOME": "config"}):
        path = contexts.config_path(environ)
        assert path == Path.home() / ".config" / "pilot-fleet" / "contexts.json"


def test_the_command_looks_where_its_context_says(
    file: Path, simulated: Simulated, capfd: pytest.CaptureFixture[str]
) -> None:
    run(capfd, "context", "add", "here", "--endpoint", simulated.serving.url, "--project", "p1")
    run(capfd, "context", "add", "away", "--endpoint", "http://127.0.0.1:9", "--project", "p1")
    assert "swarm-3" in run(capfd, "status").out
    assert "nobody answers" in run(capfd, "--context", "away", "status").err
    assert run(capfd, "context", "use", "away").code == 0
    assert "swarm-3" in run(capfd, "--context", "here", "status").out
    given = ["--endpoint", simulated.serving.url, "--project", "p1"]
    assert "swarm-3" in run(capfd, *given, "status").out, "options win"


def test_a_script_names_its_place(
    file: Path, simulated: Simulated, capfd: pytest.CaptureFixture[str]
) -> None:
    """`python -m ops` in somebody's crontab must not look at the lab of the day."""
    run(capfd, "context", "add", "here", "--endpoint", simulated.serving.url, "--project", "p1")
    found = run(capfd, "--endpoint", simulated.serving.url, "status", program="ops")
    assert "which project?" in found.err
    assert "swarm-3" in run(capfd, "--context", "here", "status", program="ops").out


def test_a_context_says_more_than_the_logins_project(
    file: Path,
    simulated: Simulated,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run(capfd, "context", "add", "here", "--endpoint", simulated.serving.url, "--project", "p1")
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "p2")
    assert "swarm-3" in run(capfd, "status").out
    monkeypatch.setenv("PILOT_PROJECT", "p2")
    assert "swarm-3" not in run(capfd, "status").out


def test_the_logins_project_counts_where_nothing_else_is_said(
    file: Path,
    simulated: Simulated,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    endpoint = ["--endpoint", simulated.serving.url]
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "p1")
    for program in (COMMAND, "ops"):
        assert "swarm-3" in run(capfd, *endpoint, "status", program=program).out
    monkeypatch.setenv("CLOUDSDK_CORE_PROJECT", "p2")
    assert "is it the right project?" in run(capfd, *endpoint, "status", program="ops").err
    assert "swarm-3" in run(capfd, *endpoint, "--project", "p1", "status", program="ops").out
