"""What is shipped for systemd and for Kubernetes, as far as it can be checked without them."""

import configparser
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.support.programs import program

FOLDER = Path(__file__).parents[2] / "deploy"
KUSTOMIZATION = FOLDER / "kubernetes/kustomization.yaml"
MANIFESTS = [path for path in sorted((FOLDER / "kubernetes").glob("*.yaml")) if path != KUSTOMIZATION]
OBJECTS: dict[str, dict[str, Any]] = {
    f"{found['kind']}-{found['metadata']['name']}": found
    for path in MANIFESTS
    for found in yaml.safe_load_all(path.read_text())
}
PROGRAM = "/opt/goreprox/bin/goreprox"
DRAIN_S = 30


@pytest.mark.parametrize("name", OBJECTS)
def test_manifests_are_what_kubernetes_takes(name: str) -> None:
    kubernetes_validate.validate(OBJECTS[name], kubernetes_validate.latest_version(), strict=True)


def test_the_kustomization_names_all_manifests_and_secrets() -> None:
    kustomization = yaml.safe_load(KUSTOMIZATION.read_text())
    assert set(kustomization["resources"]) == {path.name for path in MANIFESTS}
    text = "".join(path.read_text() for path in MANIFESTS)
    for secret in kustomization["secretGenerator"]:
        assert f"secretName: {secret['name']}}}" in text or f"secretKeyRef: {{name: {secret['name']}, " in text


@pytest.mark.parametrize("name", ["Deployment-edge", "Deployment-provider"])
def test_pods_get_longer_to_end_than_a_drain_lasts(name: str) -> None:
    assert OBJECTS[name]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > DRAIN_S


@pytest.mark.parametrize("name", [name for name in OBJECTS if name.startswith(("Deployment-", "StatefulSet-"))])
def test_probes_ask_for_health_where_the_container_responds(name: str) -> None:
    (container,) = OBJECTS[name]["spec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    given = {each["name"]: each.get("value") for each in container["env"]}
    assert given["GOREPROX_HEALTH"] == str(ports["health"])
    assert container["livenessProbe"]["httpGet"] == {"path": "/live", "port": "health"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/ready", "port": "health"}


@pytest.mark.programs
@pytest.mark.parametrize("unit", sorted((FOLDER / "systemd").glob("*.service")), ids=lambda unit: unit.name)
def test_units_are_what_systemd_takes(unit: Path, tmp_path: Path) -> None:
    analyze = program("systemd-analyze")
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace(PROGRAM, "/bin/true"))  # it wants to see the program
    done = subprocess.run([analyze, "verify", str(copy)], check=False, capture_output=True, text=True)
    assert done.returncode == 0 and unit.name not in done.stderr, done.stderr
    closed = [analyze, "security", "--offline=true", "--threshold=20", "--no-pager", str(copy)]
    assert subprocess.run(closed, check=False, capture_output=True).returncode == 0


@pytest.mark.programs
def test_the_server_may_have_ports_below_1024_and_no_other_privilege(tmp_path: Path) -> None:
    analyze = program("systemd-analyze")
    unit = tmp_path / "goreprox-server.service"
    drop_in = (FOLDER / "systemd/goreprox-server-ports.conf").read_text()  # read behind the unit, as if it were its end
    unit.write_text((FOLDER / "systemd" / unit.name).read_text().replace(PROGRAM, "/bin/true") + drop_in)
    done = subprocess.run([analyze, "verify", str(unit)], check=False, capture_output=True, text=True)
    assert done.returncode == 0 and unit.name not in done.stderr, done.stderr
    closed = [analyze, "security", "--offline=true", "--threshold=25", "--no-pager", str(unit)]
    assert subprocess.run(closed, check=False, capture_output=True).returncode == 0
    settings = configparser.RawConfigParser(strict=False)
    settings.read_string(drop_in)
    assert dict(settings["Service"]) == {
        "ambientcapabilities": "CAP_NET_BIND_SERVICE",
        "capabilityboundingset": "CAP_NET_BIND_SERVICE",
        "privateusers": "no",  # else the capability is one of its own namespace, and ports are none of that
    }


@pytest.mark.parametrize("unit", sorted((FOLDER / "systemd").glob("*.service")), ids=lambda unit: unit.name)
def test_units_are_started_again_however_often_and_get_longer_to_stop_than_a_drain_lasts(unit: Path) -> None:
    settings = configparser.RawConfigParser(strict=False)
    settings.read_string(unit.read_text())
    assert settings["Unit"]["StartLimitIntervalSec"] == "0"
    assert settings["Service"]["Restart"] == "always"
    assert int(settings["Service"]["TimeoutStopSec"]) > DRAIN_S
