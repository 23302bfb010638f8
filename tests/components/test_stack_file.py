"""The stack file as text: every mutation gets an answer in words, and an accepted file fits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pulumi
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from components.config import FleetConfig
from components.config_reader import ConfigError
from components.stack_file import EncryptedError, is_source_of, parse, problems_of, read
from tests.components.fleet import ROOT, SEED_FILE, Recorder

SEED_TEXT = SEED_FILE.read_text()
LINES = SEED_TEXT.splitlines()

# Mutations of a value by people, editors and fuzzers.
VALUES = st.one_of(
    st.sampled_from(
        [
            "",
            "~",
            "null",
            "true",
            "yes",
            "[]",
            "{}",
            "[",
            "{",
            '"',
            "'",
            "- x",
            "a: b",
            "!!int x",
            "!!python/object:os.system x",
            "&a [*a]",
            "*a",
            "<<: 1",
            "0x10",
            "010",
            "1:30",
            "1e999",
            "2026-99-99",
            ".inf",
            ".nan",
            "-1",
            "0",
            "1_000",
            "1.5",
            "9" * 400,
            "\t",
            "\x00",
            "ß",
            "\ud7ff",
            "{secure: v1:abc}",
            "!!binary x",
            "? [1]",
            "%",
            "@",
            "`",
            "[" * 2000,
            "a:\n" * 3,
            "!!bool maybe",
            '!!int ""',
            "!!float x",
            "!!timestamp abc",
            "!!set {a}",
        ]
    ),
    st.integers().map(str),
    st.floats().map(str),
    st.text(max_size=12),
)


def fits(config: FleetConfig) -> bool:
    """Recomputed without the capacity module."""
    for vm in config.swarm:
        memory = vm.agents * vm.agent_mb + vm.active_connections * 4
        if memory > vm.machine.memory_mb - vm.reserve_mb or config.base_port + vm.agents > 65_535:
            return False
    connections = 4 * sum(vm.agents for vm in config.swarm)
    return connections * 1024 <= 3000 * config.rendezvous.machine.memory_mb


def check(text: str) -> None:
    try:
        config = parse(text, "Pulumi.swarm.yaml")
    except EncryptedError:
        return
    except ConfigError as error:
        refusal = error
    else:
        assert fits(config)
        return
    assert refusal.problems
    assert all(problem.path and problem.message for problem in refusal.problems)


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_a_changed_value_is_accepted_and_fits_or_is_named(data: st.DataObject) -> None:
    number = data.draw(st.integers(0, len(LINES) - 1))
    line = LINES[number]
    colons = [index for index, letter in enumerate(line) if letter in ":,{}[]"]
    start = data.draw(st.sampled_from(colons)) + 1 if colons else 0
    ends = [index for index in colons if index >= start]
    end = data.draw(st.sampled_from(ends)) if ends else len(line)
    mutated = line[:start] + " " + data.draw(VALUES) + line[end:]
    check("\n".join([*LINES[:number], mutated, *LINES[number + 1 :]]))


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_cut_doubled_or_moved_text_is_accepted_and_fits_or_is_named(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(SEED_TEXT)))
    end = data.draw(st.integers(start, len(SEED_TEXT)))
    piece = SEED_TEXT[start:end]
    where = data.draw(st.integers(0, len(SEED_TEXT)))
    without = SEED_TEXT[:start] + SEED_TEXT[end:]
    check(data.draw(st.sampled_from([without, SEED_TEXT[:where] + piece + SEED_TEXT[where:]])))


@settings(max_examples=300, deadline=None)
@given(
    agents=st.integers(0, 70_000),
    machine=st.sampled_from(["e2-standard-8", "n2d-highcpu-128", "m2-ultramem-416", "e2-micro"]),
    agent_mb=st.integers(1, 64),
    reserve_mb=st.integers(128, 40_000),
    connections=st.none() | st.integers(0, 40_000),
    base_port=st.integers(9_001, 65_000),
    rendezvous=st.sampled_from(["n2-standard-4", "n2-highmem-16", "e2-small"]),
)
def test_an_accepted_file_fits(
    agents: int,
    machine: str,
    agent_mb: int,
    reserve_mb: int,
    connections: int | None,
    base_port: int,
    rendezvous: str,
) -> None:
    active = "" if connections is None else f", activeConnections: {connections}"
    check(
        f"""\
config:
  gcp:project: project-1
  pilot-fleet:zone: us-central1-a
  pilot-fleet:agentMb: {agent_mb}
  pilot-fleet:reserveMb: {reserve_mb}
  pilot-fleet:basePort: {base_port}
  pilot-fleet:release: {{version: "1", daemon: d, rendezvous: r}}
  pilot-fleet:rendezvous: {{name: r, machineType: {rendezvous}}}
  pilot-fleet:swarm:
    - {{name: a, machineType: {machine}, agents: {agents}{active}}}
"""
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "pilot-fleet:zone: is missing"),
        ("config: [", "is not YAML"),
        ("config: {a: 1, a: 2}", "stands here twice (line 1, column 16)"),
        ("!!map {config: {}}", "Pulumi.x.yaml: has the tag"),
        ("- a", "must be a map with the key `config:`"),
        ("config: 7", "must be a map with the key `config:`"),
        ("config: {pilot-fleet:zone: 2026-99-99}", "'2026-99-99' is not a zone"),
        ("config: " + "[" * 5000, "nested too deeply"),
        ("config: !!python/object/apply:os.getcwd []", "is not YAML"),
        ("config: {? [a] : 1}", "is not YAML"),
        ("config: {nat: !!bool maybe}", "is not YAML"),
        ('config: {agentMb: !!int ""}', "is not YAML"),
        ("config: {image: !!timestamp abc}", "is not YAML"),
        ("config: {zone: us-east1-b, pilot-fleet:zone: us-east1-c}", "stands here twice"),
    ],
)
def test_text_that_is_no_stack_file(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "Pulumi.x.yaml")
    assert message in str(caught.value)


ENCRYPTED = "{secure: v1:abc}"


def test_an_encrypted_token_is_taken_as_given() -> None:
    """As `pulumi config set --secret --path pilot-fleet:tokens.admin` leaves it."""

    def tokens(text: str) -> str:
        return SEED_TEXT.replace("config:\n", f"config:\n  tokens: {text}\n")

    config = parse(tokens(f'{{admin: {ENCRYPTED}, dashboard: ""}}'), "x")
    assert config.tokens == {"admin": "", "dashboard": ""}
    with pytest.raises(ConfigError, match=r"tokens\.admim: unknown key: did you mean admin"):
        parse(tokens(f"{{admim: {ENCRYPTED}}}"), "x")


@pytest.mark.parametrize(
    ("old", "new", "paths"),
    [
        ("gcp:project: vulture-vision-cloud", f"gcp:project: {ENCRYPTED}", "gcp:project"),
        ("us-central1-a", ENCRYPTED, "pilot-fleet:zone"),
        ("config:\n", f"config:\n  tokens: {ENCRYPTED}\n", "pilot-fleet:tokens"),
        ("agents: 5000", f"agents: {ENCRYPTED}", "pilot-fleet:swarm[1].agents"),
        (
            'env: {GOGC: "50"}',
            f"env: {{GOGC: &a {ENCRYPTED}, B: *a}}",
            "pilot-fleet:swarm[2].env.GOGC, pilot-fleet:swarm[2].env.B",
        ),
    ],
)
def test_other_encrypted_values_are_left_to_the_engine(
    tmp_path: Path, old: str, new: str, paths: str
) -> None:
    assert old in SEED_TEXT
    text = SEED_TEXT.replace(old, new)
    with pytest.raises(EncryptedError) as caught:
        parse(text, "x")
    assert str(caught.value) == paths
    file = tmp_path / "Pulumi.hidden.yaml"
    file.write_text(text)
    answer = command(str(file))
    assert (answer.returncode, answer.stderr) == (0, "")
    assert paths in answer.stdout


# Texts that readers of a stack file take for different values.
AMBIGUOUS = (
    *("020", "012000", "0777", "00", "08", "-0", "+1", "0x10", "0X1F", "-0x1", "0o20", "0b11"),
    *("1_18", "1__0", "1_", "1_000.5", "1e3", "1E5", "1e+3", "0.5e3", "12e45", "1e999"),
    *(".5", "5.", "-.5", "+.5", ".inf", "-.INF", "+.inf", ".nan", ".NaN"),
    *("1234567890123456", "9" * 19, "9" * 60, "1234567890.5", "0.1234567"),
    *("2026-11-29", "2026-1-2", "2026-11-29T10:00:00Z", "2026-11-29 10:00:00.5"),
    *("!!str 020", "! 020", "!!int 16", "!!timestamp 2026-11-29", "!!binary YWJj", "!custom x"),
)


def text_problems(text: str) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, "Pulumi.x.yaml")
    return {problem.path: problem.message for problem in caught.value.problems}


@pytest.mark.parametrize("value", AMBIGUOUS)
def test_an_ambiguous_text_is_refused(value: str) -> None:
    """Wherever it stands, all of it at once; and nothing else is said of that place."""
    text = SEED_TEXT.replace("encryptionsalt", "x")
    for old, new in (
        ("zone: us-central1-a", f"zone: {value}\n  window: {value}"),
        ("version: 1.18.0", f"version: {value}"),
        ("agents: 5000", f"agents: {value}"),
        ('GOGC: "50"', f"GOGC: {value}"),
        ("\nx:", f"\n  access: {{look: [{value}]}}\nx:"),
    ):
        assert old in text
        text = text.replace(old, new)
    found = text_problems(text)
    assert sorted(found) == [
        "pilot-fleet:access.look[0]",
        "pilot-fleet:release.version",
        "pilot-fleet:swarm[1].agents",
        "pilot-fleet:swarm[2].env.GOGC",
        "pilot-fleet:window",
        "pilot-fleet:zone",
    ]
    (message,) = set(found.values())
    assert message.startswith((value[:60], "has the tag", "020"))
    assert "put it in quotes" in message or "leave it out" in message


@pytest.mark.parametrize("value", AMBIGUOUS)
def test_in_quotes_it_is_a_text(value: str) -> None:
    config = parse(SEED_TEXT.replace('GOGC: "50"', f"A: '{value}'"), "Pulumi.x.yaml")
    assert config.swarm[2].environment == {"A": value}


@pytest.mark.parametrize(
    ("line", "path", "message"),
    [
        ("nat: null", "nat", "has no value: leave the key out, or write one"),
        ("nat:", "nat", "has no value"),
        ("roll: ~", "roll", "has no value"),
        ("bucket: Null", "bucket", "has no value"),
        ("""access: '{"look": []}'""", "access", "is JSON in a text: write it as YAML"),
        ("""registryRanges: "[]" """, "registryRanges", "is JSON in a text"),
        ("""roll: "null" """, "roll", "is JSON in a text"),
        ("bucket: 1.5", "bucket", "is the number 1.5 to Pulumi: put it in quotes"),
        ("roll: {? [1] : 2}", "roll", "has a key that is no text"),
        ("roll: {1: 2}", "roll.1", "is a key that is no text to Pulumi: put it in quotes"),
        ("roll: {true: 2}", "roll.true", "is a key that is no text to Pulumi"),
        ("roll: {batch: 5, 'batch': 5}", "roll.batch", "stands here twice (line "),
        ("roll: {<<: 5}", "roll", "merges (<<) a value that is not a map"),
        ("roll: {<<: {}, <<: {}}", "roll.<<", "stands here twice (line "),
        ("roll: &a {batch: *a}", "roll.batch", "is an alias of the map or list that holds it"),
        ('bucket: "\\ud800"', "bucket", "holds half of a character"),
    ],
)
def test_texts_that_are_refused(line: str, path: str, message: str) -> None:
    text = SEED_TEXT.replace("encryptionsalt", f"  pilot-fleet:{line}\nencryptionsalt")
    found = text_problems(text)
    assert list(found) == [f"pilot-fleet:{path}"]
    assert found[f"pilot-fleet:{path}"].startswith(message)


def test_aliases_and_merges_are_values() -> None:
    text = SEED_TEXT.replace(
        "- {name: swarm-1, machineType: e2-standard-16, agents: 3000}",
        "- &one {name: swarm-1, machineType: e2-standard-16, agents: 3000}\n"
        "    - {<<: [{name: s}, *one], agents: 1}",
    )
    config = parse(text, "Pulumi.x.yaml")
    found = [(vm.name, vm.machine.name, vm.agents) for vm in config.swarm[:2]]
    assert found == [("swarm-1", "e2-standard-16", 3000), ("s", "e2-standard-16", 1)]


@pytest.mark.parametrize("width", [2, 9, 400])
def test_an_alias_bomb_ends(width: int) -> None:
    lines = ["config:", "  x:a0: &a0 [x]"]
    lines += [
        f"  x:a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * width)}]"
        for level in range(1, 60)
    ]
    (message,) = text_problems("\n".join(lines)).values()
    assert message == "its aliases make too many values"


def test_other_projects_keys_are_not_checked() -> None:
    text = SEED_TEXT.replace("config:", "config:\n  gcp:batching: {sendAfter: 1.5}\n  gcp:x: null")
    assert parse(text, "Pulumi.x.yaml") == parse(SEED_TEXT, "Pulumi.x.yaml")


def handed_over(text: str) -> dict[str, str]:
    """The values in `text` as the engine passes them to the program."""
    config = yaml.safe_load(text)["config"]
    return {key: v if isinstance(v, str) else json.dumps(v) for key, v in config.items()}


ODD_TEXT = (
    SEED_TEXT.replace("encryptionsalt", "  pilot-fleet:window: 020\nencryptionsalt")
    .replace("agents: 5000", "agents: 5_000")
    .replace('GOGC: "50"', "GOGC: 2026-11-29")
)
ODD = handed_over(
    SEED_TEXT.replace("encryptionsalt", "  pilot-fleet:window: 16\nencryptionsalt").replace(
        'GOGC: "50"', 'GOGC: "2026-11-29T00:00:00Z"'
    )
)


def test_the_file_that_the_engine_has_read_is_judged(tmp_path: Path) -> None:
    (tmp_path / "Pulumi.x.yaml").write_text(ODD_TEXT)
    found = problems_of(tmp_path, "x", ODD)
    assert [problem.path for problem in found] == [
        "pilot-fleet:swarm[1].agents",
        "pilot-fleet:swarm[2].env.GOGC",
        "pilot-fleet:window",
    ]
    assert problems_of(tmp_path, "other", ODD) == []
    # Values that stand in no file, and those that only the engine can read.
    more = ODD | {"pilot-fleet:nat": "true", "pilot-fleet:tokens": '{"admin": "0123456789abcdef"}'}
    secret = "  pilot-fleet:tokens: {admin: {secure: v1:x}}\n  pilot-fleet:window: 020"
    (tmp_path / "Pulumi.x.yaml").write_text(ODD_TEXT.replace("  pilot-fleet:window: 020", secret))
    assert len(problems_of(tmp_path, "x", more)) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"pilot-fleet:window": "20"},
        {"pilot-fleet:window": "020"},
        {"pilot-fleet:zone": "us-central1-b"},
        {"gcp:project": "another-project"},
        {"pilot-fleet:swarm": json.dumps(json.loads(ODD["pilot-fleet:swarm"])[:2])},
        {"pilot-fleet:swarm": ODD["pilot-fleet:swarm"].replace("3000", "2999")},
        {"pilot-fleet:swarm": ODD["pilot-fleet:swarm"].replace("T00:00:00Z", "")},
        {"pilot-fleet:swarm": "none"},
    ],
    ids=str,
)
def test_a_file_that_the_engine_has_not_read_is_not_judged(
    tmp_path: Path, change: dict[str, str]
) -> None:
    """`--config-file` names another one: the engine's values cannot come from here."""
    (tmp_path / "Pulumi.x.yaml").write_text(ODD_TEXT)
    assert problems_of(tmp_path, "x", ODD | change) == []
    assert problems_of(tmp_path, "x", {k: v for k, v in ODD.items() if k not in change}) == []


@pytest.mark.parametrize("value", [each for each in AMBIGUOUS if "!" not in each])
def test_every_ambiguous_scalar_that_the_engine_reads_as_it_does_is_judged(value: str) -> None:
    """As the engine was seen to read each (tests/engine/test_readers.py has the rest)."""
    made = {
        "020": 16,
        "012000": 5120,
        "0777": 511,
        "00": 0,
        "08": 8,
        "-0": 0,
        "+1": 1,
        "0x10": 16,
        "0X1F": 31,
        "-0x1": -1,
        "0o20": 16,
        "0b11": 3,
        "1_18": 118,
        "1__0": 10,
        "1_": 1,
        "1_000.5": 1000.5,
        "1e3": 1000,
        "1E5": 100_000,
        "1e+3": 1000,
        "0.5e3": 500,
        ".5": 0.5,
        "5.": 5,
        "-.5": -0.5,
        "+.5": 0.5,
        "1234567890.5": 1234567890.5,
        "0.1234567": 0.1234567,
        "2026-11-29": "2026-11-29T00:00:00Z",
    }.get(value, "whatever")
    reading = read(f"config: {{pilot-fleet:x: {{y: {value}}}}}", "x")
    assert list(reading.ambiguous.values()) == [value]
    assert is_source_of(reading, {"pilot-fleet:x": json.dumps({"y": made})})
    assert is_source_of(reading, {"pilot-fleet:x": json.dumps({"y": str(made)})})


def test_a_file_that_cannot_be_read_is_a_sentence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pulumi.runtime.set_mocks(Recorder(), project="pilot-fleet", stack="x", preview=True)
    path = tmp_path / "Pulumi.x.yaml"
    path.mkdir()
    assert problems_of(tmp_path, "x", ODD) == []
    path.rmdir()
    path.write_bytes(b"config: \xff")
    assert problems_of(tmp_path, "x", ODD) == []
    first, second = [record.message for record in caplog.records]
    assert first.startswith("Pulumi.x.yaml: cannot be read (Is a directory)")
    assert second.startswith("Pulumi.x.yaml: cannot be read (byte 8 is not UTF-8)")
    # go-yaml may read a text that PyYAML cannot, in an unknown way.
    path.write_text("config: [")
    assert [problem.path for problem in problems_of(tmp_path, "x", ODD)] == ["Pulumi.x.yaml"]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "components.stack_file", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command(tmp_path: Path) -> None:
    good = command(str(SEED_FILE))
    assert (good.returncode, good.stdout, good.stderr) == (0, "", "")
    bad = tmp_path / "Pulumi.bad.yaml"
    bad.write_text(SEED_TEXT.replace("agents: 3000", "agents: 30000"))
    answer = command(str(bad))
    assert answer.returncode == 1
    assert "Pulumi.bad.yaml: the stack's configuration has 2 problems" in answer.stderr
    assert "swarm[0].agents: 30,000 agents do not fit" in answer.stderr
    bad.write_bytes(b"config: \xff")
    assert "not UTF-8" in command(str(bad)).stderr
    assert "No such file" in command(str(tmp_path / "none")).stderr
    assert command().returncode == 2
