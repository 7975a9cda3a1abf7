"""deploy/kubernetes, against Ray's own schemas, KubeRay's and Kubernetes'.

KubeRay's schemas are in no package: `KUBERAY_CRDS=FOLDER` names a copy of its
helm-chart/kuberay-operator/crds. Kubernetes' come with the package kubernetes-validate.
"""

import copy
import os
import re
from pathlib import Path

import pytest
import yaml

from ochat_ray.cluster.resources import DEFINITION
from ochat_ray.serve import ServeArgs
from ochat_ray.serve.deployment import DRAIN_S

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "deploy" / "kubernetes"
MANIFESTS = ("raycluster.yaml", "rayservice.yaml")


def load(name):
    document, *_ = yaml.safe_load_all((FOLDER / name).read_text())
    return document


def cluster_of(manifest):
    return manifest["spec"].get("rayClusterConfig", manifest["spec"])


def groups_of(manifest):
    cluster = cluster_of(manifest)
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def containers_of(manifest):
    return [c for group in groups_of(manifest) for c in group["template"]["spec"]["containers"]]


def leaves(value, key=""):
    """Every (key, plain value) of a document; a list's items have the list's key."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from leaves(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from leaves(item, key)
    else:
        yield key, value


def as_ray_reads(manifest):
    """The node types that Ray's autoscaler makes of the groups."""
    from ray.autoscaler._private.kuberay import autoscaling_config as kuberay

    resource = {
        "metadata": manifest["metadata"] | {"namespace": "default"},
        "spec": cluster_of(manifest),
    }
    return kuberay._derive_autoscaling_config_from_ray_cr(resource)


def size_of(quantity):
    from ray.autoscaler._private.kuberay.utils import parse_quantity

    return int(parse_quantity(quantity))


# --- what KubeRay and Kubernetes accept ---


def closed(schema):
    """The schema, refusing fields that it does not name, as a server that checks strictly does."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {name: closed(item) for name, item in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get(
        "x-kubernetes-preserve-unknown-fields"
    ):
        schema.setdefault("additionalProperties", False)
    return schema


@pytest.fixture(scope="module")
def kuberay():
    """Validate a document against the custom resource definition of its kind."""
    from jsonschema import Draft7Validator

    if "KUBERAY_CRDS" not in os.environ:
        pytest.skip("KUBERAY_CRDS names no folder with KubeRay's custom resource definitions")
    schemas = {}
    for path in Path(os.environ["KUBERAY_CRDS"]).glob("ray.io_ray[cs]*.yaml"):
        definition = yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        for version in definition["spec"]["versions"]:
            api = f"{definition['spec']['group']}/{version['name']}"
            schema = closed(version["schema"]["openAPIV3Schema"])
            schemas[api, definition["spec"]["names"]["kind"]] = schema

    def validate(document):
        Draft7Validator(schemas[document["apiVersion"], document["kind"]]).validate(document)

    return validate


@pytest.mark.parametrize("name", MANIFESTS)
def test_kuberay_accepts_the_manifest(kuberay, name):
    kuberay(load(name))


@pytest.mark.parametrize("name", MANIFESTS)
@pytest.mark.parametrize(
    ("right", "wrong"), [("maxReplicas", "maxReplica"), ("rayStartParams", "rayStartParam")]
)
def test_kuberay_refuses_a_misspelt_field(kuberay, name, right, wrong):
    from jsonschema import ValidationError

    manifest = copy.deepcopy(load(name))
    group = next(group for group in groups_of(manifest) if right in group)
    group[wrong] = group.pop(right)
    with pytest.raises(ValidationError, match=wrong):
        kuberay(manifest)


@pytest.fixture(scope="module")
def kubernetes():
    """Validate a pod template's content as a pod."""
    package = pytest.importorskip("kubernetes_validate")

    def validate(template):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **template}
        package.validate(pod, package.latest_version(), strict=True)

    return validate


@pytest.mark.parametrize("name", MANIFESTS)
def test_kubernetes_accepts_the_pods(kubernetes, name):
    for group in groups_of(load(name)):
        kubernetes(group["template"])


@pytest.mark.parametrize("name", MANIFESTS)
def test_kubernetes_refuses_a_misspelt_field(kubernetes, name):
    import kubernetes_validate

    template = copy.deepcopy(groups_of(load(name))[0]["template"])
    container = template["spec"]["containers"][0]
    container["volumeMount"] = container.pop("volumeMounts")
    with pytest.raises(kubernetes_validate.ValidationError, match="volumeMount"):
        kubernetes(template)


# --- what the groups are ---


def test_groups_are_the_roles_of_cluster_yaml():
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    roles = cluster["available_node_types"]
    config = as_ray_reads(load("raycluster.yaml"))
    groups = config["available_node_types"]
    head = groups.pop(config["head_node_type"])
    assert head["resources"]["CPU"] == 0
    assert "GPU" not in head["resources"]
    assert set(groups) == set(roles) - {cluster["head_node_type"]}
    for name, group in groups.items():
        assert group["min_workers"] == roles[name].get("min_workers", 0)
        assert group["max_workers"] == roles[name]["max_workers"]
        assert group["resources"].get("GPU", 0) == roles[name]["resources"].get("GPU", 0)
    assert config["idle_timeout_minutes"] == cluster["idle_timeout_minutes"]


def test_jobs_are_told_of_the_pods_that_may_come():
    manifest, told, _ = yaml.safe_load_all((FOLDER / "raycluster.yaml").read_text())
    (definition,) = told["data"].values()
    groups = as_ray_reads(manifest)["available_node_types"]
    expected = {
        name: {
            "max_workers": group["max_workers"],
            "resources": {k: v for k, v in group["resources"].items() if k in ("CPU", "GPU")},
        }
        for name, group in groups.items()
        if name != "headgroup"
    }
    assert yaml.safe_load(definition)["available_node_types"] == expected
    (volume,) = [
        v for v in groups_of(manifest)[0]["template"]["spec"]["volumes"] if "configMap" in v
    ]
    assert volume["configMap"]["name"] == told["metadata"]["name"]
    (mount,) = [
        m for m in containers_of(manifest)[0]["volumeMounts"] if m["name"] == volume["name"]
    ]
    assert mount["mountPath"] == DEFINITION.replace("~", "/home/ray")
    assert mount["subPath"] in told["data"]


def test_tasks_without_a_gpu_find_room_on_prepare_alone():
    groups = as_ray_reads(load("raycluster.yaml"))["available_node_types"]
    assert groups["prepare"]["resources"]["CPU"] > 1
    assert groups["train"]["resources"]["CPU"] == 0
    assert groups["serve"]["resources"]["CPU"] == ServeArgs().num_cpus  # taken with its GPU


@pytest.mark.parametrize("name", MANIFESTS)
def test_pods_ask_for_what_they_may_take(name):
    for container in containers_of(load(name)):
        assert container["resources"]["requests"] == container["resources"]["limits"]


@pytest.mark.parametrize("name", MANIFESTS)
def test_shared_memory_holds_rays_object_store(name):
    from ray._private import ray_constants

    for group in groups_of(load(name)):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        (volume,) = [volume for volume in pod["volumes"] if volume["name"] == "shared-memory"]
        assert {"name": "shared-memory", "mountPath": "/dev/shm"} in container["volumeMounts"]
        assert volume["emptyDir"]["medium"] == "Memory"
        memory = size_of(container["resources"]["limits"]["memory"])
        store = min(
            memory * ray_constants.DEFAULT_OBJECT_STORE_MEMORY_PROPORTION,
            ray_constants.DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES,
        )
        assert store <= 0.95 * size_of(volume["emptyDir"]["sizeLimit"]) < 0.5 * memory


def test_versions_and_the_image_are_the_same_everywhere():
    (ray,) = re.findall(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    dockerfile = (FOLDER / "Dockerfile").read_text()
    assert re.findall(r"^FROM rayproject/ray:([^-\s]+)-py311-", dockerfile, re.MULTILINE) == [ray]
    manifests = [load(name) for name in MANIFESTS]
    assert {cluster_of(manifest)["rayVersion"] for manifest in manifests} == {ray}
    images = {c["image"] for manifest in manifests for c in containers_of(manifest)}
    assert len(images) == 1
    assert f"-t {images.pop()} ." in dockerfile


def test_the_image_has_what_it_copies():
    lines = re.findall(r"^COPY (?:--\S+ )*(.+)$", (FOLDER / "Dockerfile").read_text(), re.MULTILINE)
    sources = {source for line in lines for source in line.split()[:-1]}
    assert {"pyproject.toml", "constraints.txt", "ochat_ray", "jobs"} <= sources
    assert all((ROOT / source).exists() for source in sources)


# --- how pods end, and what they may do ---


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_pod_has_time_to_finish_its_requests(name):
    manifest = load(name)
    for group in groups_of(manifest):
        assert group["template"]["spec"]["terminationGracePeriodSeconds"] > DRAIN_S
    if manifest["kind"] == "RayService":
        assert manifest["spec"]["rayClusterDeletionDelaySeconds"] > DRAIN_S


@pytest.mark.parametrize("name", MANIFESTS)
def test_cluster_autoscalers_leave_pods_alone(name):
    for group in groups_of(load(name)):
        annotations = group["template"]["metadata"]["annotations"]
        assert annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"
        assert annotations["karpenter.sh/do-not-disrupt"] == "true"


@pytest.mark.parametrize("name", MANIFESTS)
def test_pods_with_gpus_and_no_others_tolerate_their_taint(name):
    for group in groups_of(load(name)):
        pod = group["template"]["spec"]
        gpus = any("nvidia.com/gpu" in c["resources"]["limits"] for c in pod["containers"])
        tolerations = pod.get("tolerations", [])
        assert [t["key"] for t in tolerations] == ["nvidia.com/gpu"] * gpus


@pytest.mark.parametrize("name", MANIFESTS)
def test_pods_have_no_privileges(name):
    for number, group in enumerate(groups_of(load(name))):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] == (number == 0)  # the head's autoscaler
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}


def test_the_keys_are_not_readable_by_every_user():
    for group in groups_of(load("rayservice.yaml")):
        pod = group["template"]["spec"]
        (secret,) = [v["secret"] for v in pod["volumes"] if "secret" in v]
        assert secret["defaultMode"] == 0o440
        assert pod["securityContext"]["fsGroup"] == 1000


# --- who may reach what ---


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_network_policy_names_the_pods(name, kubernetes):
    import kubernetes_validate

    *_, policy = yaml.safe_load_all((FOLDER / name).read_text())
    kubernetes_validate.validate(policy, kubernetes_validate.latest_version(), strict=True)
    selector = policy["spec"]["podSelector"]["matchLabels"]
    manifest = load(name)
    for group in groups_of(manifest):
        labels = {"ray.io/cluster": manifest["metadata"]["name"]}  # by KubeRay
        labels |= group["template"]["metadata"].get("labels", {})
        assert selector.items() <= labels.items()
    peers = [rule.get("from") for rule in policy["spec"]["ingress"]]
    assert {"podSelector": {"matchLabels": selector}} in peers[-1]
    # Without `from`, everybody may reach the ports: those of Serve and no other.
    open_ports = [rule["ports"] for rule in policy["spec"]["ingress"] if "from" not in rule]
    assert open_ports == ([[{"port": 8000}]] if manifest["kind"] == "RayService" else [])


@pytest.mark.parametrize("name", MANIFESTS)
def test_nothing_is_reachable_from_outside(name):
    manifest = load(name)
    assert manifest["kind"] in ("RayCluster", "RayService")  # no Ingress, Route or Service
    assert cluster_of(manifest)["headGroupSpec"]["serviceType"] == "ClusterIP"
    values = list(leaves(manifest))
    assert not {"LoadBalancer", "NodePort", "ExternalName"} & {str(value) for _, value in values}
    opening = {"enableIngress", "hostNetwork", "hostPort", "nodePort", "externalIPs"}
    assert not opening & {key for key, _ in values}


def test_the_dashboard_stays_on_loopback():
    head = load("raycluster.yaml")["spec"]["headGroupSpec"]
    assert head["rayStartParams"]["dashboard-host"] == "127.0.0.1"


@pytest.mark.parametrize("name", MANIFESTS)
def test_ray_asks_for_a_token_and_no_secret_stands_here(name):
    manifest = load(name)
    # A name of a Secret would be of one that somebody had to make.
    assert cluster_of(manifest)["authOptions"] == {"mode": "token"}
    text = (FOLDER / name).read_text()
    assert not re.search(r"\bsk-[\w-]{16,}|\bhf_\w{16,}|\bAKIA\w{16}|[0-9a-fA-F]{32,}", text)
    assert not any("env" in container for container in containers_of(manifest))


# --- the application ---


def serve_config():
    return yaml.safe_load(load("rayservice.yaml")["spec"]["serveConfigV2"])


def test_the_service_is_the_application_of_serve_yaml():
    from ray.serve.schema import ServeDeploySchema

    config = serve_config()
    schema = ServeDeploySchema.model_validate(config)
    # The schema lets fields pass that it does not know.
    assert set(config) <= set(ServeDeploySchema.model_fields)
    assert set(config["http_options"]) <= set(type(schema.http_options).model_fields)
    usual, *_ = yaml.safe_load((ROOT / "serve.yaml").read_text())["applications"]
    (application,) = config["applications"]
    assert set(application["args"]) == {*usual["args"], "keys"}
    for field in ("name", "route_prefix", "import_path"):
        assert application[field] == usual[field]
    ServeArgs.model_validate(application["args"])


def test_the_service_answers_where_kuberay_asks():
    config = serve_config()
    assert config["proxy_location"] == "EveryNode"  # the probe of every worker asks its own
    assert config["http_options"] == {"host": "0.0.0.0", "port": 8000}


def test_keys_and_model_are_files_in_every_pod():
    args = ServeArgs.model_validate(serve_config()["applications"][0]["args"])
    for group in groups_of(load("rayservice.yaml")):
        pod = group["template"]["spec"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounted = {
            mount["mountPath"]: volumes[mount["name"]]
            for mount in pod["containers"][0]["volumeMounts"]
            if "subPath" not in mount  # such a file would not follow a change of the Secret
        }
        assert "secret" in mounted[str(Path(args.keys).parent)]
        assert "persistentVolumeClaim" in mounted[str(Path(args.model).parent)]


def test_a_new_version_has_room_beside_the_old_one():
    args = ServeArgs.model_validate(serve_config()["applications"][0]["args"])
    groups = as_ray_reads(load("rayservice.yaml"))["available_node_types"]
    group = groups["serve"]
    replicas_of_a_pod = group["resources"]["GPU"] // args.num_gpus
    assert group["min_workers"] * replicas_of_a_pod >= args.min_replicas
    surge = 1 + args.max_surge_percent / 100
    assert group["max_workers"] * replicas_of_a_pod >= args.max_replicas * surge
