"""What the chart renders, looked at without a cluster. Needs the `helm` command."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
CHART = ROOT / "helm" / "kvorum"
HELM = shutil.which("helm")
needs_helm = pytest.mark.skipif(HELM is None, reason="there is no helm on the PATH; the chart is rendered by it")

EVERYTHING = (
    "leaderService.enabled=true",
    "metrics.serviceMonitor.enabled=true",
    "metrics.annotations=true",
    "networkPolicy.clientFrom[0].podSelector.matchLabels.app=client",
)
"""Values that switch on what is off by default and needs no further file."""


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([HELM, *arguments], capture_output=True, text=True, timeout=60, check=False)


def template(*values: str, only: str | None = None) -> str:
    sets = [word for value in values for word in ("--set", value)]
    shown = ["--show-only", f"templates/{only}"] if only else []
    result = helm("template", "kvorum", str(CHART), "--namespace", "data", *sets, *shown)
    assert result.returncode == 0, result.stderr
    return result.stdout


def objects(*values: str) -> dict[tuple[str, str], dict]:
    documents = filter(None, yaml.safe_load_all(template(*values)))
    return {(document["kind"], document["metadata"]["name"]): document for document in documents}


def configuration(*values: str) -> str:
    """The file kvorum.toml as the pods will see it."""
    pod = objects(*values)["StatefulSet", "kvorum"]["spec"]["template"]
    return pod["metadata"]["annotations"]["kvorum.io/config"]


def refusal(*values: str) -> str:
    sets = [word for value in values for word in ("--set", value)]
    result = helm("template", "kvorum", str(CHART), *sets)
    assert result.returncode != 0
    return result.stderr


def dictionaries(value: object):
    """Every dictionary within a document, with the key it stands under."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from dictionaries(inner)
            if isinstance(inner, list):
                yield from ((key, element) for element in inner if isinstance(element, dict))
    elif isinstance(value, list):
        for inner in value:
            yield from dictionaries(inner)


# --- values ----------------------------------------------------------------------------------------------------------


@needs_helm
def test_chart_lint_finds_nothing():
    """Helm's own linter, strictly, has nothing to say."""
    result = helm("lint", "--strict", str(CHART))

    assert result.returncode == 0, result.stdout
    assert "0 chart(s) failed" in result.stdout


@needs_helm
@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("replicaCount=-1", "replicaCount"),
        ("replicaCount=three", "replicaCount"),
        ("reads.consistencyLevel=sometimes", "consistencyLevel"),
        ("scaling.mode=auto", "mode"),
        ("consensus.electionTimeoutMs=1", "electionTimeoutMs"),
        ("storage.accessModes[0]=ReadWriteMany", "accessModes"),
        ("storage.size=big", "size"),
        ("service.port=70000", "port"),
        ("image.digest=abc", "digest"),
        ("terminationGracePeriodSeconds=1", "terminationGracePeriodSeconds"),
        ("fullnameOverride=This_is_no_name", "fullnameOverride"),
        ("replicas=3", "replicas"),
        ("storage.sizee=1Gi", "sizee"),
    ],
)
def test_chart_bad_value_is_refused_by_name(value, named):
    """A value that is wrong, or unknown, is an error that names it, and nothing is rendered."""
    assert named in refusal(value)


@needs_helm
def test_chart_values_that_contradict_each_other_are_refused():
    """What the schema cannot say is said in words."""
    assert "needs scaling.useApi=true" in refusal("leaderService.enabled=true", "scaling.useApi=false")
    assert "needs scaling.useApi=true" in refusal("firstOrdinal=1", "scaling.useApi=false")
    both = ("metrics.serviceMonitor.enabled=true", "metrics.podMonitor.enabled=true")
    assert "choose one" in refusal(*both)
    missing = refusal("metrics.prometheusRule.enabled=true", "metrics.prometheusRule.disabled[0]=KvorumNoSuchAlert")
    assert "files/alerts.yaml" in missing or "KvorumNoSuchAlert" in missing


def test_chart_schema_knows_every_value_and_no_other():
    """Schema and values have the same keys, down to the leaves that the schema closes."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    def compare(properties: dict, given: dict, path: str) -> list[str]:
        wrong = [f"{path}{key}" for key in set(properties) ^ set(given) if f"{path}{key}" != "global"]
        for key, inner in properties.items():
            if inner.get("properties") and isinstance(given.get(key), dict):
                wrong += compare(inner["properties"], given[key], f"{path}{key}.")
        return wrong

    assert compare(schema["properties"], values, "") == []


def test_chart_every_value_is_used():
    """No value is a switch that moves nothing: each one's name stands in a template."""
    templates = "\n".join(path.read_text() for path in (CHART / "templates").rglob("*.*"))
    described = re.findall(r"^\| `([\w.]+)` \|", (CHART / "README.md").read_text(), re.MULTILINE)

    assert len(described) > 80
    assert [path for path in described if not re.search(rf"\.{path.rpartition('.')[2]}\b", templates)] == []


def test_chart_readme_is_up_to_date():
    """The table of values is what `make chart-docs` would write, and every value has a description."""
    result = subprocess.run([sys.executable, ROOT / "helm" / "values_table.py", "--check"], check=False)

    assert result.returncode == 0, "run make chart-docs"


def test_chart_value_without_description_is_found():
    """The table's writer refuses a key that nobody described."""
    spec = importlib.util.spec_from_file_location("values_table", ROOT / "helm" / "values_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    assert module.rows("# -- Said.\nouter:\n  inner: 1\n") == [("outer", "", "Said.")]
    with pytest.raises(ValueError, match=r"values.yaml:2: outer.inner"):
        module.rows("outer:\n  inner: 1\n")


# --- the pods --------------------------------------------------------------------------------------------------------


@needs_helm
def test_chart_pod_template_does_not_depend_on_the_number_of_pods():
    """One and five pods: the StatefulSet, configuration included, differs in `replicas` alone."""
    one, five = (template(f"replicaCount={count}", *EVERYTHING, only="statefulset.yaml") for count in (1, 5))

    assert one != five
    assert one.replace("  replicas: 1\n", "  replicas: 5\n", 1) == five
    assert "kvorum.io/config: |" in one


@needs_helm
def test_chart_number_of_pods_is_given_to_pods_without_the_api():
    """Number in the StatefulSet and number in the mounted ConfigMap are the same, also at zero."""
    for count in (0, 5):
        found = objects(f"replicaCount={count}", "scaling.mode=values")

        assert count == found["StatefulSet", "kvorum"]["spec"]["replicas"]
        assert str(count) == found["ConfigMap", "kvorum-scale"]["data"]["replicas"]


@needs_helm
def test_chart_configuration_is_one_that_kvorum_takes(tmp_path):
    """The rendered file is read by `kvorum check-config` in a pod's environment without a single warning."""
    file = tmp_path / "kvorum.toml"
    values = ("config.rocksdb.block_cache_size_mb=512", "config.discovery.drain_seconds=1", "reads.maxStalenessMs=900")
    text = configuration(*EVERYTHING, *values)
    file.write_text(text)
    read = tomllib.loads(text)

    result = subprocess.run(
        [sys.executable, "-m", "kvorum", "check-config", "--config", file],
        env={"POD_NAME": "kvorum-2", "POD_NAMESPACE": "data", "POD_IP": "10.0.0.7", "PYTHONPATH": "service:client"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 0, result.stderr
    assert "warning" not in result.stdout
    assert "node 2 at kvorum-2.kvorum-headless.data.svc.cluster.local:9090" in result.stdout
    assert (512, 900, 1) == (
        read["rocksdb"]["block_cache_size_mb"],
        read["reads"]["max_staleness_ms"],
        read["discovery"]["drain_seconds"],
    )
    assert read["discovery"]["genesis_config_map"] == "kvorum-genesis"
    assert read["discovery"]["leader_endpoint_slice"] == "kvorum-leader"


@needs_helm
def test_chart_configuration_belongs_to_the_revision_of_the_pods():
    """A pod that restarts in the middle of a rollout must not meet the configuration of the revision after its own."""
    pod = objects()["StatefulSet", "kvorum"]["spec"]["template"]
    (volume,) = (volume for volume in pod["spec"]["volumes"] if volume["name"] == "config")

    assert configuration("scaling.mode=values", "replicaCount=7") == configuration()
    assert configuration("reads.consistencyLevel=local") != configuration()
    (item,) = volume["downwardAPI"]["items"]
    assert item == {"path": "kvorum.toml", "fieldRef": {"fieldPath": "metadata.annotations['kvorum.io/config']"}}


@needs_helm
def test_chart_every_port_names_its_protocol():
    """Server-side apply merges ports by number and protocol, so each says its own."""
    ports = [
        (kind, port)
        for (kind, _), document in objects(*EVERYTHING).items()
        for key, port in dictionaries(document)
        if key == "ports"
    ]

    assert len(ports) > 15
    assert [found for found in ports if found[1].get("protocol") not in {"TCP", "UDP"}] == []


@needs_helm
@pytest.mark.parametrize(("kind", "name"), [("StatefulSet", "kvorum"), ("Pod", "kvorum-test")])
def test_chart_pods_meet_the_restricted_standard(kind, name):
    """Everything that the restricted Pod Security standard asks for, in every container of server and test."""
    document = objects()[kind, name]
    spec = document["spec"]["template"]["spec"] if kind == "StatefulSet" else document["spec"]

    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == 10001
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not any(spec.get(name) for name in ("hostNetwork", "hostPID", "hostIPC"))
    for container in spec["containers"] + spec.get("initContainers", []):
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert not any("hostPort" in port for port in container.get("ports", []))
    assert {next(iter(set(volume) - {"name"})) for volume in spec.get("volumes", [])} <= {
        "configMap",
        "downwardAPI",
        "emptyDir",
    }


@needs_helm
def test_chart_statefulset_starts_together_and_rolls_one_by_one():
    """Parallel start, one pod at a time in a rollout, time to leave, volumes kept, no hook that would block."""
    spec = objects()["StatefulSet", "kvorum"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]

    assert spec["podManagementPolicy"] == "Parallel"
    assert spec["updateStrategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "partition": 0}}
    assert spec["minReadySeconds"] >= 5
    assert spec["persistentVolumeClaimRetentionPolicy"] == {"whenScaled": "Retain", "whenDeleted": "Retain"}
    assert pod["terminationGracePeriodSeconds"] >= 120
    assert pod["enableServiceLinks"] is False
    assert "lifecycle" not in container
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 1800
    paths = [container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")]
    assert paths == ["/startupz", "/readyz", "/livez"]


@needs_helm
def test_chart_diagnostic_pods_do_not_serve():
    """In diagnostic mode the same volumes are mounted, but nothing of kvorum starts and nothing is probed."""
    pod = objects("diagnosticMode=true")["StatefulSet", "kvorum"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]

    assert container["command"][0] == "python"
    assert not {"args", "startupProbe", "readinessProbe", "livenessProbe"} & set(container)
    assert "initContainers" not in pod


# --- around them -----------------------------------------------------------------------------------------------------


@needs_helm
def test_chart_role_names_what_it_may_touch():
    """Only named objects may be read or changed; unnamed are `get` of pods and the making of events."""
    role = objects(*EVERYTHING)["Role", "kvorum"]
    unnamed = {(*rule["resources"], *rule["verbs"]) for rule in role["rules"] if "resourceNames" not in rule}
    named = {tuple(rule["resources"]): (rule["resourceNames"], rule["verbs"]) for rule in role["rules"][:2]}

    assert unnamed == {("pods", "get"), ("events", "create")}
    assert named[("statefulsets",)] == (["kvorum"], ["get", "watch"])
    assert named[("configmaps",)] == (["kvorum-genesis"], ["get", "update"])
    assert all("*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"] for rule in role["rules"])


@needs_helm
def test_chart_without_the_api_has_no_rights_and_no_token():
    """scaling.useApi=false: no Role, no binding, no token, and the pods know it."""
    found = objects("scaling.useApi=false")

    assert not [kind for kind, _ in found if kind.startswith("Role")]
    assert found["StatefulSet", "kvorum"]["spec"]["template"]["spec"]["automountServiceAccountToken"] is False
    assert tomllib.loads(configuration("scaling.useApi=false"))["discovery"]["api"] is False


@needs_helm
def test_chart_leaves_to_pods_what_pods_write():
    """The birth's record and the leader's address are made without content, or an upgrade would take it away."""
    found = objects(*EVERYTHING)

    assert {"data", "binaryData", "immutable"}.isdisjoint(found["ConfigMap", "kvorum-genesis"])
    assert "endpoints" not in found["EndpointSlice", "kvorum-leader"]
    labels = found["EndpointSlice", "kvorum-leader"]["metadata"]["labels"]
    assert labels["kubernetes.io/service-name"] == "kvorum-leader"
    assert "selector" not in found["Service", "kvorum-leader"]["spec"]


@needs_helm
@pytest.mark.parametrize("replicas", [1, 3, 5])
def test_chart_disruption_budget_is_one_at_every_size(replicas):
    """A minimum would block the drain of a single pod; one unavailable never does."""
    spec = objects(f"replicaCount={replicas}")["PodDisruptionBudget", "kvorum"]["spec"]

    assert spec["maxUnavailable"] == 1
    assert "minAvailable" not in spec
    assert spec["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


@needs_helm
def test_chart_selectors_select_the_pods():
    """Every selector of the release matches the labels of the StatefulSet's pods, and not those of the test."""
    found = objects(*EVERYTHING)
    labels = found["StatefulSet", "kvorum"]["spec"]["template"]["metadata"]["labels"].items()
    test = found["Pod", "kvorum-test"]["metadata"]["labels"].items()
    selectors = [
        found["StatefulSet", "kvorum"]["spec"]["selector"]["matchLabels"],
        found["Service", "kvorum"]["spec"]["selector"],
        found["Service", "kvorum-headless"]["spec"]["selector"],
        found["PodDisruptionBudget", "kvorum"]["spec"]["selector"]["matchLabels"],
        found["NetworkPolicy", "kvorum"]["spec"]["podSelector"]["matchLabels"],
    ]

    assert all(selector.items() <= labels for selector in selectors)
    assert not any(selector.items() <= test for selector in selectors)
    monitor = found["ServiceMonitor", "kvorum"]["spec"]["selector"]["matchLabels"]
    assert monitor.items() <= found["Service", "kvorum-headless"]["metadata"]["labels"].items()


@needs_helm
def test_chart_peers_are_reached_by_peers_alone():
    """The peer port takes pods of the cluster only, the HTTP port these and the monitoring namespace."""
    spec = objects()["NetworkPolicy", "kvorum"]["spec"]
    by_port = {rule["ports"][0]["port"]: rule.get("from") for rule in spec["ingress"]}

    assert by_port[9090] is None
    assert len(by_port[7090]) == 1
    assert by_port[7090][0]["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "server"
    assert [next(iter(peer)) for peer in by_port[8090]] == ["podSelector", "namespaceSelector"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]


@needs_helm
def test_chart_names_fit_into_labels():
    """With the longest name that is allowed, no label value and no name of a Service exceeds 63 characters."""
    long = "a" * 52
    found = objects(f"fullnameOverride={long}", *EVERYTHING)

    assert max(len(name) for kind, name in found if kind == "Service") <= 63
    assert len(f"{long}-5f8b9c7d64") <= 63


@needs_helm
def test_chart_extra_objects_are_rendered():
    """Objects of one's own may use the chart's names."""
    found = objects(
        "extraObjects[0].apiVersion=v1",
        "extraObjects[0].kind=ConfigMap",
        r'extraObjects[0].metadata.name=\{\{ include "kvorum.fullname" . \}\}-own',
    )

    assert ("ConfigMap", "kvorum-own") in found


@needs_helm
@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("replicaCount=4", "4 pods tolerate no more failures than 3"),
        ("replicaCount=1", "one pod tolerates no failure"),
        ("storage.enabled=false", "a pod that is replaced has lost its data"),
        ("podDisruptionBudget.enabled=false", "draining nodes may take a majority at once"),
        ("resources.limits=null", "without a memory limit"),
        ("terminationGracePeriodSeconds=30", "Use 120 or more"),
        ("scaling.useApi=false", "kvorum member remove ORDINAL"),
        ("networkPolicy.enabled=false", "changes members without asking who"),
        ("metrics.podMonitor.enabled=true", "networkPolicy.httpFrom"),
        ("diagnosticMode=true", "diagnosticMode is on"),
    ],
)
def test_chart_notes_warn(value, said, tmp_path):
    """What is allowed and risky is said after the installation; the defaults warn of nothing."""

    def notes(*sets: str) -> str:
        result = helm(
            "install", "kvorum", str(CHART), "--dry-run=client", "--kubeconfig", str(tmp_path / "none"), *sets
        )
        assert result.returncode == 0, result.stderr
        return result.stdout.partition("NOTES:")[2]

    assert said in notes("--set", value)
    assert "WARNING" not in notes()
    assert "NOTE:" not in notes()


@needs_helm
def test_chart_alerts_and_dashboard_are_those_of_the_files():
    """Every alert of the file is in the PrometheusRule, less those left out; the dashboard is the file."""
    rules = yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())
    expected = {rule["alert"] for group in rules["groups"] for rule in group["rules"] if "alert" in rule}
    found = objects(
        "metrics.prometheusRule.enabled=true",
        "metrics.prometheusRule.disabled[0]=KvorumRpcSlow",
        "metrics.prometheusRule.labels.release=prometheus",
        "metrics.prometheusRule.extra[0].alert=Mine",
        "metrics.dashboard.enabled=true",
    )

    rule = found["PrometheusRule", "kvorum"]
    alerts = {rule["alert"] for group in rule["spec"]["groups"] for rule in group["rules"] if "alert" in rule}
    assert alerts == expected - {"KvorumRpcSlow"} | {"Mine"}
    assert rule["metadata"]["labels"]["release"] == "prometheus"
    dashboard = found["ConfigMap", "kvorum-dashboard"]
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(dashboard["data"]["kvorum.json"]) == json.loads((CHART / "files" / "dashboard.json").read_text())


def test_image_holds_the_versions_that_were_tested():
    """Each version of the image's lock is the one of the development lock."""
    pins = [
        {line for line in (ROOT / ".ci" / name).read_text().splitlines() if re.match(r"[a-z]", line)}
        for name in ("requirements.lock", "requirements-dev.lock")
    ]

    assert len(pins[0]) > 30
    assert pins[0] <= pins[1], "run make lock"
