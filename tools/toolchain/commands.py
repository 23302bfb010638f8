"""The commands of toolchain.py: they gather facts, have them judged, and act."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from tools.toolchain import build, checkout, environment, official, versions
from tools.toolchain.environment import Pulumi
from tools.toolchain.failure import Failure
from tools.toolchain.progress import say

ROOT = Path(__file__).resolve().parents[2]
LAB = "lab"
LAB_BACKEND = ROOT / ".lab" / "pulumi"
"""`make lab` keeps the state of its stack here, whatever backend the user has chosen."""


CHOICES = ("installed", "official", "source")


def find_pulumi(*, tell: bool) -> Pulumi:
    """The Pulumi to use: the one that PILOT_TOOLCHAIN names, or the first that there is of one
    that is installed, Pulumi's own release, and one built from source. Raises Failure.
    """
    root, choice = build.cache_root(os.environ), os.environ.get("PILOT_TOOLCHAIN", "")
    if choice and choice not in CHOICES:
        raise Failure(f"PILOT_TOOLCHAIN is {choice!r}: choose {', '.join(CHOICES)}.", status=2)
    found = None
    if choice in {"", "installed"}:
        found = _installed(root, tell=tell, alone=choice == "installed")
    if found is None and choice != "source":
        found = _official(root, alone=choice == "official")
    if found is None:
        found = _built(root)
    if tell and found.home is not None:
        origin = "built from source" if found.built else "its own release"
        say(f"Using Pulumi {found.version}, {origin} ({found.path}).")
    return found


def _installed(root: Path, *, tell: bool, alone: bool) -> Pulumi | None:
    # Ours on PATH does not count as installed: it needs our plugins.
    path = ":".join(
        folder
        for folder in os.environ.get("PATH", os.defpath).split(":")
        if folder and not Path(folder).is_relative_to(root)
    )
    installed = shutil.which("pulumi", path=path)
    answer = _version_of_installed(installed) if installed else ""
    used, sentence = environment.judge_installed(installed, answer)
    if installed and used:
        if tell and sentence:
            say(sentence)
        return Pulumi(version=answer, path=installed)
    if alone:
        raise Failure(f"{sentence or 'No Pulumi is installed.'} (PILOT_TOOLCHAIN=installed)")
    if sentence:
        say(sentence)
    return None


def _official(root: Path, *, alone: bool) -> Pulumi | None:
    """Pulumi's own release. It is looked for only where no other is here yet, and then once: a
    build follows where it does not come."""
    version = official.sdk_version((ROOT / "requirements.txt").read_text(encoding="utf-8"))
    folder = official.folder(root, version)
    if not folder.exists():
        if not alone and build.locate(root).complete():
            return None
        try:
            official.fetch(root, version, ROOT / ".venv" / "bin" / "python")
        except Failure as why:
            if alone:
                raise Failure(f"Pulumi's own release does not come: {why}.") from why
            say(f"Pulumi's own release does not come ({why}), so one is built from source.")
            return None
    return Pulumi(
        version=version,
        path=str(folder / "bin" / "pulumi"),
        bin=str(folder / "bin"),
        home=str(folder / "home"),
    )


def _built(root: Path) -> Pulumi:
    built = build.ensure_built(root)
    return Pulumi(
        version=versions.ENGINE_VERSION,
        path=str(built.bin() / "pulumi"),
        bin=str(built.bin()),
        home=str(built.home()),
        built=True,
    )


def _version_of_installed(path: str) -> str:
    try:
        return subprocess.run(
            [path, "version"],
            env={**os.environ, "PULUMI_SKIP_UPDATE_CHECK": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        ).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def login_folder() -> Path:
    """The folder of this user's credentials.json, which need not exist."""
    home = os.environ.get("PULUMI_HOME") or str(Path.home() / ".pulumi")
    return Path(os.environ.get("PULUMI_CREDENTIALS_PATH") or home)


def chosen_backend() -> str | None:
    """The URL of the backend that this user has chosen, or None."""
    login, project = _text(login_folder() / "credentials.json"), _text(ROOT / "Pulumi.yaml")
    return environment.chosen_backend(os.environ, login, project)


def additions(pulumi: Pulumi) -> dict[str, str]:
    """Environment variables to add for this checkout and this user."""
    backend = chosen_backend()
    added = environment.additions(
        pulumi=pulumi,
        environ=os.environ,
        checkout=ROOT,
        login_folder=login_folder(),
        backend=backend,
    )
    if backend is None:
        (ROOT / ".state").mkdir(mode=0o700, exist_ok=True)
    return added


def credentials(stack: str) -> str | None:
    """The source of Google credentials on this machine, or None."""
    gcloud = os.environ.get("CLOUDSDK_CONFIG") or str(Path.home() / ".config" / "gcloud")
    default = Path(gcloud) / "application_default_credentials.json"
    return environment.google_credentials(
        os.environ,
        "\n".join(_text(ROOT / name) or "" for name in (f"Pulumi.{stack}.yaml", "Pulumi.yaml")),
        application_default=default if default.exists() else None,
        product=_text(Path("/sys/class/dmi/id/product_name")) or "",
    )


def ensure() -> int:
    find_pulumi(tell=True)
    return 0


def env(*, as_json: bool) -> int:
    added = additions(find_pulumi(tell=False))
    if as_json:
        sys.stdout.write(json.dumps(added, indent=1) + "\n")
    else:
        for name, value in added.items():
            sys.stdout.write(f"export {name}={shlex.quote(value)}\n")
    return 0


def execute(command: list[str]) -> NoReturn:
    """Replace this process with a command, in the environment of this checkout."""
    if not command:
        raise Failure("exec needs a command: toolchain.py exec -- pulumi stack ls", status=2)
    environ = {**os.environ, **additions(find_pulumi(tell=False))}
    program = shutil.which(command[0], path=environ["PATH"])
    if program is None:
        raise Failure(f"{command[0]}: no such command on PATH.", status=127)
    os.execve(program, command, environ)  # noqa: S606 - its purpose


def preview_or_up(verb: str, stack: str, arguments: list[str]) -> NoReturn:
    """Replace this process with Pulumi, which plans a stack or carries the plan out."""
    if not (ROOT / f"Pulumi.{stack}.yaml").exists():
        known = ", ".join(sorted(path.name[7:-5] for path in ROOT.glob("Pulumi.*.yaml")))
        raise Failure(f"There is no Pulumi.{stack}.yaml here (STACK is one of: {known}).")
    if stack == LAB:
        use_lab_backend(verb)
    found = credentials(stack)
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if verb == "up":
        agreed = os.environ.get("PILOT_FLEET_YES") == "1"
        extra, refusal = environment.may_update(found, arguments, terminal=terminal, agreed=agreed)
        if refusal:
            raise Failure(refusal)
        arguments = [*extra, *arguments]
    check_configuration(stack)
    pulumi = find_pulumi(tell=False)
    environ = {**os.environ, **additions(pulumi)}
    if verb == "up":
        backend = chosen_backend() or environ["PULUMI_BACKEND_URL"]
        if warning := environment.local_backend_warning(backend):
            say(warning)
        # policy/pack.py then refuses a plan with unknown values.
        environ["PILOT_REFUSE_UNKNOWN"] = "1"
    elif found is None:
        say(environment.NO_CREDENTIALS)
        environ["GOOGLE_OAUTH_ACCESS_TOKEN"] = environment.PLACEHOLDER_TOKEN
        # Without Google the plan is made from the recorded state.
        arguments = ["--refresh=false", *arguments]
    select_stack(pulumi, stack, environ)
    left_out, excluded = dead_zones(pulumi, stack, environ) if found else ([], [])
    arguments = [*(f"--exclude={urn}" for urn in excluded), *arguments]
    command = [pulumi.path, verb, "--stack", stack, "--policy-pack", pulumi.policy_pack]
    command += ["--policy-pack-config", "policy/settings.json"]
    if not terminal:
        command.append("--non-interactive")
    os.chdir(ROOT)
    run_pulumi([*command, *arguments], environ, left_out)


def run_pulumi(command: list[str], environ: Mapping[str, str], left_out: list[str]) -> NoReturn:
    """Replace this process with Pulumi; where there are sentences about what is left out, wait for
    its end and say them again."""
    if not left_out:
        os.execve(command[0], command, environ)  # noqa: S606 - Pulumi takes over
    say("\n".join(left_out))
    process = subprocess.Popen(command, env=environ)
    # A Ctrl-C is Pulumi's too, which ends what it has begun; who ends this process means Pulumi.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    status = process.wait()
    say("\n".join(left_out))
    raise SystemExit(status if status >= 0 else 128 - status)


def dead_zones(
    pulumi: Pulumi, stack: str, environ: Mapping[str, str]
) -> tuple[list[str], list[str]]:
    """A sentence for each zone of the stack that does not answer, and the URNs of what is there.

    Pulumi would ask for these for minutes, and then fail.
    """
    words = ["stack", "export", "--stack", stack, "--non-interactive"]
    exported = subprocess.run(
        [pulumi.path, *words], cwd=ROOT, env=environ, capture_output=True, check=False
    )
    if exported.returncode:
        # The update says what is wrong with the state.
        return [], []
    look = [str(ROOT / ".venv" / "bin" / "python"), "-m", "components.dead_zones", stack]
    looked = subprocess.run(
        look, cwd=ROOT, env=environ, input=exported.stdout, stdout=subprocess.PIPE, check=False
    )
    if looked.returncode:
        # It has said why. An update needs it only where a zone is dead.
        return [], []
    # A library may print lines of its own before.
    told = json.loads(looked.stdout.splitlines()[-1])
    return told["sentences"], told["exclude"]


def use_lab_backend(verb: str) -> None:
    """Plan the lab's stack against the lab's own state: no other backend knows its VMs.

    Raises Failure for an `up` outside `make lab`.
    """
    own = f"file://{LAB_BACKEND}"
    if verb == "up" and os.environ.get("PULUMI_BACKEND_URL") != own:
        raise Failure("The stack lab is carried out by `make lab`, with the cloud that it is for.")
    if LAB_BACKEND.exists():
        os.environ["PULUMI_BACKEND_URL"] = own


def check_configuration(stack: str) -> None:
    """Report all problems of a stack file at once: the engine stops at the first wrong type."""
    python = ROOT / ".venv" / "bin" / "python"
    if not python.exists():
        raise Failure("There is no .venv here: run this through make, or `toolchain.py venv`.")
    check = [str(python), "-m", "components.stack_file", f"Pulumi.{stack}.yaml"]
    if status := subprocess.run(check, cwd=ROOT, check=False).returncode:
        # The check has printed the problems.
        raise SystemExit(status)


def select_stack(pulumi: Pulumi, stack: str, environ: Mapping[str, str]) -> None:
    """Select the stack, or make it, without a question."""
    answer = subprocess.run(
        [pulumi.path, "stack", "select", "--create", "--non-interactive", stack],
        cwd=ROOT,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode:
        raise Failure(f"The stack {stack} could not be selected:\n{answer.stderr.strip()}")


def venv(*, dev: bool) -> int:
    checkout.ensure_venv(ROOT, dev=dev)
    return 0


def artifacts() -> int:
    checkout.ensure_artifacts(ROOT)
    return 0


def run(arguments: list[str], usage: str) -> int:
    """Run a command line; its exit status."""
    name, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if name in {"--help", "-h", "help"}:
        sys.stdout.write(usage)
        return 0
    if name == "exec":
        execute(rest[1:] if rest[:1] == ["--"] else rest)
    if name in {"preview", "up"} and rest and not rest[0].startswith("-"):
        preview_or_up(name, rest[0], rest[1:])
    plain = {
        ("ensure",): ensure,
        ("env",): lambda: env(as_json=False),
        ("env", "--json"): lambda: env(as_json=True),
        ("venv",): lambda: venv(dev=False),
        ("venv", "--dev"): lambda: venv(dev=True),
        ("artifacts",): artifacts,
    }
    command = plain.get(tuple(arguments))
    if command is None:
        sys.stderr.write(usage)
        return 2
    return command()
