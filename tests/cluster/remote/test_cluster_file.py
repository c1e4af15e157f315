"""The check of a cluster's file: what the shipped one needs, and that each rule finds what it is for, at its line."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.autoscaler._private.util import prepare_config, validate_config

from prefixray.cluster.remote.cluster_file import check_cluster
from prefixray.cluster_check import main
from prefixray.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
README = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
SHIPPED = (ROOT / "cluster.yaml").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```yaml\n(# cluster\.(\w+)\.yaml.*?)```", README, re.DOTALL)

Check = Callable[[str], list[str]]


def edited(text: str) -> str:
    """The template as its user would have edited it."""
    return re.sub(r"YOUR-[A-Z]+(-[A-Z]+)*", "0123abcd", text)


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Check:
    """The problems of a text, without the file's name; in a folder and a home in which all is that `ray up` wants."""
    for name in (".ray/auth_token", ".ssh/id_ed25519"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("secret")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def problems(text: str) -> list[str]:
        Path("cluster.yaml").write_text(text)
        try:
            check_cluster(Path("cluster.yaml"))
        except UserError as error:
            return [problem.removeprefix("cluster.yaml:") for problem in error.problems]
        return []

    return problems


def test_the_shipped_file_asks_for_nothing_but_the_lines_that_are_to_be_edited(
    check: Check, capsys: pytest.CaptureFixture[str]
) -> None:
    left = [number for number, line in enumerate(SHIPPED.splitlines(), start=1) if "YOUR-" in line.partition("#")[0]]
    assert main([str(ROOT / "cluster.yaml")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == len(left) == 8
    assert check(edited(SHIPPED)) == []
    assert main(["cluster.yaml"]) == 0
    assert capsys.readouterr().out == "cluster.yaml: cluster prefixray, a head and up to 8 workers\n"


@pytest.mark.parametrize(("text", "name"), BLOCKS, ids=[name for _, name in BLOCKS])
def test_the_readmes_variants_pass(text: str, name: str, check: Check) -> None:
    assert check(edited(text)) == []


def test_both_variants_are_in_the_readme() -> None:
    assert [name for _, name in BLOCKS] == ["gcp", "local"]


MISTAKES = {
    "a misspelt key": ("max_workers: 8\nidle", "max_worker: 8\nidle", "{line}: max_worker: no such key (did you mean"),
    "a misspelt key of a type": (
        "    priority: 1 ",
        "    priorty: 1 ",
        "{line}: available_node_types.spot.priorty: no such",
    ),
    "a misspelt key of a machine": (
        "InstanceMarketOptions: {MarketType: spot}",
        "InstanceMarketOptions: {MarketTyp: spot}",
        "{line}: available_node_types.spot.node_config.InstanceMarketOptions.MarketTyp: no such key (did",
    ),
    "a wrong value of a machine": (
        "InstanceMarketOptions: {MarketType: spot}",
        "InstanceMarketOptions: {MarketType: Spot}",
        "{line}: available_node_types.spot.node_config.InstanceMarketOptions.MarketType: 'Spot': must be one of 'spot'",
    ),
    "a share of a GPU": (
        "{CPU: 4, GPU: 1}",
        "{CPU: 4, GPU: 0.5}",
        "{line}: available_node_types.spot.resources.GPU: 0.5",
    ),
    "more wanted than allowed": (
        "    min_workers: 0\n    max_workers: 8",
        "    min_workers: 9\n    max_workers: 8",
        "{line}: ",
    ),
    "a type above the cluster": (
        "    max_workers: 8",
        "    max_workers: 9",
        "{line}: available_node_types.spot.max_workers: 9: is",
    ),
    "no head": ("head_node_type: head", "head_node_type: heat", "1: Ray refuses it: `head_node_type` must be one of"),
    "a head with CPUs": (
        "{CPU: 0}",
        "{CPU: 8}",
        "{line}: available_node_types.head.resources: the head must",
    ),
    "a mount that is not here": (
        "/prefixray: .",
        "/prefixray: gone",
        "{line}: file_mounts.'/home/ubuntu/prefixray': gone: no",
    ),
    "no token mounted": (
        "  /home/ubuntu/.ray/auth_token: ~/.ray/auth_token",
        "",
        "file_mounts: must bring the token",
    ),
    "no authentication": ("RAY_AUTH_MODE=token", "", "head_start_ray_commands: must have RAY_AUTH_MODE=token"),
    "results copied": ("[runs, .git", "[.git", "{line}: rsync_exclude: must have runs"),
    "an unpinned install": ("'uv>=0.9,<0.10'", "uv", "{line}: setup_commands[1]: uv: is installed in any version"),
    "an install with a floor": (
        "'uv>=0.9,<0.10'",
        "'uv>=0.9'",
        "{line}: setup_commands[1]: uv>=0.9: is installed in any",
    ),
    "an install by Ray itself": ("head_setup_commands: []", "", "head_setup_commands: must be there, if only as []"),
    "Ray's own setup": (
        "\nsetup_commands:",
        "\nworker_setup_commands:",
        "setup_commands: must be there, if only as []",
    ),
    "no image": (
        "      ImageId: ami-YOUR-IMAGE  # Ubuntu 22.04\n",
        "",
        "available_node_types.head.node_config: must have an ImageId of your own",
    ),
    "Ray's old image": (
        "ImageId: ami-YOUR-IMAGE",
        "ImageId: latest_dlami",
        "available_node_types.head.node_config: must have an ImageId of your own",
    ),
    "a dashboard for all": (
        "--dashboard-host=127.0.0.1",
        "--dashboard-host=0.0.0.0",
        "head_start_ray_commands[3]: --dash",
    ),
    "an MLflow for all": (
        "--host 127.0.0.1",
        "--host 0.0.0.0",
        "head_start_ray_commands[1]: --host 0.0.0.0: opens a port",
    ),
    "no security group": (
        "      SecurityGroupIds: [sg-YOUR-GROUP]\n      Instance",
        "      Instance",
        "available_node_types.spot.node_config: needs SecurityGroupIds",
    ),
    "a spot type nobody watches": (
        "prefixray.spot",
        "prefixray.sport",
        "worker_start_ray_commands: must start python -m",
    ),
    "a home on no mount": ("PREFIXRAY_HOME=/mnt/prefixray", "PREFIXRAY_HOME=/home/x", "no command mounts it"),
    "no home": ("PREFIXRAY_HOME=/mnt/prefixray", "", "must export PREFIXRAY_HOME=FOLDER"),
    "a head that does not scale": (
        "--autoscaling-config=~/ray_bootstrap_config.yaml",
        "",
        "head_start_ray_commands: must `ray",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_is_found_at_its_line(mistake: str, check: Check) -> None:
    right, wrong, told = MISTAKES[mistake]
    assert right in SHIPPED
    text = SHIPPED.replace(right, wrong, 1)
    pairs = zip(SHIPPED.splitlines(), text.splitlines(), strict=False)
    line = next(number for number, (before, after) in enumerate(pairs, start=1) if before != after)
    found = check(edited(text))
    assert any(told.format(line=line) in problem for problem in found), found


def test_machines_of_rays_own_choice_are_refused_and_images_of_a_launch_template_are_not(check: Check) -> None:
    found = check(edited(re.sub(r"head_node_type: .*?(?=file_mounts:)", "", SHIPPED, flags=re.DOTALL)))
    assert [line for line in found if "required" in line] == [
        f"1: {key}: required, but missing" for key in ("available_node_types", "head_node_type")
    ]
    template = re.sub(r"ImageId: .*", "LaunchTemplate: {LaunchTemplateId: lt-0123}", SHIPPED)
    assert check(edited(template)) == []


def test_all_mistakes_are_told_at_once(check: Check) -> None:
    text = SHIPPED
    chosen = ["a head with CPUs", "an unpinned install", "results copied", "a dashboard for all"]
    for mistake in chosen:
        text = text.replace(*MISTAKES[mistake][:2], 1)
    assert len(check(edited(text))) == len(chosen)


def test_rays_own_validator_misses_most_of_that() -> None:
    """Why there is a check of our own; a mistake that Ray comes to see may leave this list."""
    seen = set()
    for mistake, (right, wrong, _) in MISTAKES.items():
        try:
            validate_config(prepare_config(yaml.safe_load(SHIPPED.replace(right, wrong, 1))))
        except Exception:
            seen.add(mistake)
    assert seen == {
        "a misspelt key",
        "a misspelt key of a type",
        "a share of a GPU",
        "more wanted than allowed",
        "no head",
    }


def test_ports_of_a_security_group_that_are_open_to_the_world_are_told(check: Check) -> None:
    rule = "{FromPort: 22, ToPort: 22, IpProtocol: tcp, IpRanges: [{CidrIp: 0.0.0.0/0}]}"
    group = f"  type: aws\n  security_group: {{GroupName: g, IpPermissions: [{rule}]}}"
    found = check(edited(SHIPPED.replace("  type: aws", group)))
    assert found == ["9: provider.security_group.IpPermissions[0]: is open to the world"]


LINES = edited(SHIPPED).splitlines()


@settings(max_examples=60)
@given(
    st.integers(0, len(LINES) - 1),
    st.sampled_from(
        ["", "x: 1", "  - a", "head: 3", "- [", "    resources: 5", "provider: {type: gpc}", "setup_commands: x"]
    ),
)
def test_no_damaged_file_shows_a_traceback(tmp_path_factory: pytest.TempPathFactory, number: int, line: str) -> None:
    path = tmp_path_factory.getbasetemp() / "cluster.yaml"
    path.write_text("\n".join([*LINES[:number], line, *LINES[number + 1 :]]))
    try:
        check_cluster(path)
    except UserError as error:
        assert all(problem.startswith(f"{path}") for problem in error.problems)
