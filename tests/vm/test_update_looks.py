"""What the update test makes of looks: each thing that an update must not do is seen, and said."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.vm import update
from tests.vm.fleet import RENDEZVOUS
from tests.vm.update import Look, NoCommitError, Told, commit_before, problems, restarts, told_since

BAD = "bb" * 32
WANTED = {"swarm-1": 20}
OWNERS = {f"agent-{port}@swarm-1.invalid": port - 10000 for port in range(10001, 10021)}


def line(second: int, **changes: Any) -> dict[str, Any]:
    """A look at swarm-1 as its VM writes it down: 20 agents that run."""
    made_of = {"release": "aa" * 32, "restart": "once", "unit": "u1", "version": "1.18.0"}
    status = {
        "node": {"script": "s", "started": "2026-11-29T12:00:00Z"},
        "totals": {"failures": 0},
        "roll": {"rejected": [{"sha256": BAD}]},
        "agents": {"troubled": []},
    }
    return {
        "time": float(second),
        "agents": [[port, f"{port}/1", "v1", True] for port in range(10001, 10021)],
        "units": ["pilot-agent"],
        "variants": {"v1": made_of},
        "rendezvous": [],
        "registry": None,
        "run": {},
        "status": status,
    } | changes


def registry(second: int, **changes: Any) -> Look:
    told = {
        "agents": [],
        "units": [],
        "variants": {},
        "rendezvous": ["700/1"],
        "registry": OWNERS,
        "run": {"arguments": "a1"},
        "status": {"registry": {"set_aside": ["registry.json.clean-1"]}},
    }
    return Look.of(RENDEZVOUS, json.dumps(line(second) | told | changes))


def looks(*changes: dict[str, Any]) -> list[Look]:
    """One second after the other, at both VMs."""
    mine = [Look.of("swarm-1", json.dumps(line(n, **each))) for n, each in enumerate(changes)]
    return [*mine, *(registry(second) for second in range(len(changes)))]


def found(seen: list[Look], **told: int) -> list[str]:
    return problems(seen, wanted=WANTED, window=15, told=Told(**told))


def agents(*, again: int = 0, down: int = 0, variant: str = "v1") -> list[list[Any]]:
    """The first ones restarted, or without a socket."""
    ports = range(10001, 10021)
    return [
        [port, f"{port}/{2 if port <= 10000 + again else 1}", variant, port > 10000 + down]
        for port in ports
    ]


def test_nothing_happened() -> None:
    assert found(looks({}, {}, {})) == []
    assert restarts(looks({}, {})) == []


def test_a_unit_that_is_renamed_is_named_before_what_follows_from_it() -> None:
    doubled = {"agents": [*agents(), [10001, "10001/1", "v1", True]]}
    both = {"units": ["pilot-agent", "pilot-daemon"]}
    assert found(looks({}, doubled | both, {})) == [
        (
            "swarm-1: agents are started as pilot-daemon@.service and others run on as "
            "pilot-agent@.service: a unit that is renamed leaves those of its old name, on the "
            "ports of the new ones"
        ),
        "swarm-1: 21 agents ran at once, 20 are wanted: ports 10001 twice",
    ]


def test_a_unit_that_is_renamed_with_care_leaves_none_of_its_old_name() -> None:
    both = {"units": ["pilot-agent", "pilot-daemon"], "agents": agents(again=15)}
    moved = {"units": ["pilot-daemon"], "agents": agents(again=20)}
    assert found(looks({}, both, moved), agents=20) == []


def test_agents_that_were_restarted_are_counted_and_why() -> None:
    variants = line(0)["variants"] | {"v2": line(0)["variants"]["v1"] | {"unit": "u2"}}
    after = {"agents": agents(again=20, variant="v2"), "variants": variants}
    seen = looks({}, after)
    assert [str(each) for each in restarts(seen)] == ["swarm-1: 20 agents restarted: another unit"]
    (problem,) = found(seen)
    assert problem.startswith("0 agents should be restarted, 20 were (swarm-1: 20 agents restarted")
    assert "`Restarts-agents: 20`" in problem
    assert found(seen, agents=20) == []
    # Told with a number: neither more nor fewer.
    assert found(looks({}, {"agents": agents(again=19)}), agents=20)[0].startswith("20 agents")
    assert "nothing was" in found(looks({}, {}), agents=20)[0]
    assert (
        "19 agents restarted: started with the same"
        in found(looks({}, {"agents": agents(again=19)}))[0]
    )


def test_all_at_once_is_more_than_the_window() -> None:
    assert found(looks({}, {"agents": agents(down=15)}, {})) == []
    expected = "swarm-1: 16 of 20 agents were down at once, the window is 15"
    assert found(looks({}, {"agents": agents(down=16)}, {})) == [expected]
    gone = looks({}, {"agents": agents()[1:]})
    assert found(gone) == ["swarm-1: 1 agents did not come up again, the first are [10001]"]


def test_more_agents_than_wanted_as_a_renamed_unit_has_them() -> None:
    twice = [*agents(), *[[port, f"{port}/9", "v1", True] for port in (10001, 10002)]]
    problem = found(looks({}, {"agents": twice}, {}))
    assert "swarm-1: 22 agents ran at once, 20 are wanted: ports 10001, 10002 twice" in problem


def test_a_rejected_release_that_is_tried_again_or_forgotten() -> None:
    tried = line(0)["variants"] | {"v9": {"release": BAD}}
    assert found(looks({}, {"variants": tried}, {})) == [
        f"swarm-1: an agent was started as release {BAD[:12]}, which was rejected before"
    ]
    forgotten = line(0)["status"] | {"roll": {"rejected": []}}
    assert found(looks({}, {"status": forgotten})) == [
        f"swarm-1: it was forgotten that release {BAD[:12]} is rejected"
    ]


def test_starts_that_fail_as_those_of_a_user_that_cannot_read_the_homes() -> None:
    status = line(0)["status"] | {
        "node": {"script": "s2", "started": "later"},
        "totals": {"failures": 3},
        "agents": {"troubled": [{"port": 10001, "why": "permission denied"}]},
    }
    expected = "swarm-1: 3 starts failed since: port 10001: permission denied"
    assert found(looks({}, {"status": status})) == [expected]


def test_a_registry_that_is_another_one() -> None:
    seen = looks({}, {})

    def then(**changes: Any) -> list[str]:
        return found([*seen, registry(9, **changes)])

    anew = OWNERS | {"agent-10001@swarm-1.invalid": 77}
    assert then(registry=anew)[0].startswith("1 agents have another node ID than before")
    assert then(registry=OWNERS | {"x": 9})[0] == "1 agents registered anew: ['x']"
    few = dict([*OWNERS.items()][1:])
    assert "1 agents are not in the registry any more" in then(registry=few)[0]
    aside = {"registry": {"set_aside": ["registry.json.clean-1", "registry.json.clean-2"]}}
    assert "files of the registry that are set aside" in then(status=aside)[0]
    again = then(rendezvous=["900/7"], run={"arguments": "a2"})
    assert "1 rendezvous restarted: another arguments" in again[0]
    # One that is away for a second is not another one.
    assert then(registry=None) == []
    silent = [registry(1, registry=None), *looks({})[:1]]
    assert "the registry said nothing in all that time" in found(silent)


# Which commit


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=x", "-c", "user.email=x@example.com", "-c", "init.defaultBranch=main"]
    done = subprocess.run(
        ["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def commit(folder: Path, file: str, text: str = "") -> str:
    path = folder / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"{path.read_text() if path.exists() else ''}{file}\n")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", f"x\n\n{text}")
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(update, "ROOT", tmp_path)
    for name in ("PILOT_UPDATE_FROM", "PILOT_UPDATE_RESTARTS", "PILOT_UPDATE_RESTARTS_RENDEZVOUS"):
        monkeypatch.delenv(name, raising=False)
    git(tmp_path, "init", "-q")
    return tmp_path


def test_the_commit_to_come_from(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = commit(clone, "startup/a")
    with pytest.raises(NoCommitError, match="a shallow clone"):
        commit_before()
    commit(clone, "startup/a")
    third = commit(clone, "docs/b")
    # On main: the newest with another startup/; what is not committed counts.
    assert commit_before() == first
    (clone / "startup/a").write_text("not committed")
    assert commit_before() == third
    git(clone, "checkout", "-q", "--", ".")
    # On a branch: where it left main.
    git(clone, "update-ref", "refs/remotes/origin/main", third)
    commit(clone, "docs/b")
    with pytest.raises(NoCommitError, match="merge base with origin/main"):
        commit_before()
    commit(clone, "startup/a")
    assert commit_before() == third
    monkeypatch.setenv("PILOT_UPDATE_FROM", first[:10])
    assert commit_before() == first


def test_no_history_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PILOT_UPDATE_FROM", raising=False)
    monkeypatch.setattr(update, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(NoCommitError, match="no history"):
        commit_before()


def test_what_commits_say_that_they_restart(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = commit(clone, "a", "Restarts-agents: 7")
    assert told_since(first) == Told()
    commit(clone, "a", "Restarts-agents: 50")
    commit(clone, "a", "Restarts-agents: 35\nRestarts-rendezvous: 1")
    # Once each, however many commits do.
    assert told_since(first) == Told(agents=50, rendezvous=1)
    monkeypatch.setenv("PILOT_UPDATE_RESTARTS", "3")
    assert told_since(first) == Told(agents=3, rendezvous=1)
