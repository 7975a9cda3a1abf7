"""`ray up cluster.yaml` against a server that speaks EC2's and IAM's protocols."""

import os
import socket
import subprocess
import sys
import time
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

from ochat_ray.cluster.local_cluster import SERVE_PORT

ROOT = Path(__file__).parent.parent
RAY = Path(sys.executable).with_name("ray")

pytestmark = pytest.mark.timeout(180)


LAUNCH = """
import yaml
from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.providers import _get_node_provider
from ray.autoscaler._private.util import prepare_config
config = bootstrap_aws(prepare_config(yaml.safe_load(open('cluster.yaml'))))
provider = _get_node_provider(config['provider'], config['cluster_name'])
for name in ('prepare', 'train', 'serve'):
    node = config['available_node_types'][name]['node_config']
    provider.create_node(node, {'ray-user-node-type': name}, 1)
"""
"""What the autoscaler does on the head when nodes of these types are needed."""


@pytest.fixture(scope="module")
def account(tmp_path_factory):
    """The environment of an account's user, whose EC2 and IAM are a process here."""
    home = tmp_path_factory.mktemp("home")
    (home / ".ray").mkdir()
    (home / ".ray/auth_token").write_text("0" * 64)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Of its own: moto reads AWS's own policies, which the head's role has, when it is first used.
    server = subprocess.Popen(
        [RAY.with_name("moto_server"), "-H", "127.0.0.1", "-p", str(port)],
        env=os.environ | {"MOTO_IAM_LOAD_MANAGED_POLICIES": "true"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not listens(port):
            assert server.poll() is None
            time.sleep(0.1)
        yield {
            "HOME": str(home),
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-west-2",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
    finally:
        server.kill()
        server.wait()


@pytest.fixture(scope="module")
def aws(account, tmp_path_factory):
    """A client of EC2, once `ray up` and the autoscaler's provider have launched instances."""
    client(account, "cloudformation").create_stack(
        StackName="ochat-ray",
        TemplateBody=(ROOT / "deploy/aws/roles.yaml").read_text(),
        Parameters=[{"ParameterKey": "Bucket", "ParameterValue": "runs"}],
        Capabilities=["CAPABILITY_NAMED_IAM"],
    )
    ec2 = client(account, "ec2")
    path = tmp_path_factory.mktemp("up") / "log"
    with path.open("w") as log:
        up = subprocess.Popen(
            [RAY, "up", "--yes", "--no-config-cache", ROOT / "cluster.yaml"],
            cwd=ROOT,
            env=os.environ | account,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + 90
        while not instances(ec2):
            running = up.poll() is None and time.monotonic() < deadline
            assert running, path.read_text()
            time.sleep(0.5)
    finally:
        up.kill()  # it would wait for SSH
        up.wait()
    subprocess.run([sys.executable, "-c", LAUNCH], cwd=ROOT, env=os.environ | account, check=True)
    return ec2


def client(account, service):
    import boto3

    return boto3.client(
        service,
        region_name="us-west-2",
        endpoint_url=account["AWS_ENDPOINT_URL"],
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def instances(ec2):
    """By node type."""
    found = [i for r in ec2.describe_instances()["Reservations"] for i in r["Instances"]]
    tags = [{tag["Key"]: tag["Value"] for tag in one["Tags"]} for one in found]
    return {tag["ray-user-node-type"]: one for tag, one in zip(tags, found, strict=True)}


def test_the_instances_are_those_of_the_definition(aws):
    definition = yaml.safe_load((ROOT / "cluster.yaml").read_text())["available_node_types"]
    launched = instances(aws)
    assert set(launched) == set(definition)
    for name, one in launched.items():
        assert one["InstanceType"] == definition[name]["node_config"]["InstanceType"]
        assert one["Placement"]["AvailabilityZone"] == "us-west-2b"
        assert one["ImageId"] == definition[name]["node_config"]["ImageId"]  # unchanged by Ray
        assert one["MetadataOptions"]["HttpTokens"] == "required"
    spot = {name for name, one in launched.items() if one.get("InstanceLifecycle") == "spot"}
    assert spot == {"prepare"}


@pytest.mark.parametrize(("name", "gigabytes"), [("head", 300), ("train", 1000), ("serve", 300)])
def test_disks_are_as_large_as_said(aws, name, gigabytes):
    (volume,) = instances(aws)[name]["BlockDeviceMappings"]
    (found,) = aws.describe_volumes(VolumeIds=[volume["Ebs"]["VolumeId"]])["Volumes"]
    assert (found["Size"], found["VolumeType"], found["Encrypted"]) == (gigabytes, "gp3", True)


def test_the_stack_is_valid_to_cloudformation():
    template = str(ROOT / "deploy/aws/roles.yaml")
    done = subprocess.run(
        [RAY.with_name("cfn-lint"), "--regions", "us-west-2", "--template", template],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_all_may_use_the_bucket_and_the_head_alone_may_start_instances(aws, account):
    iam = client(account, "iam")
    for name, one in instances(aws).items():
        profile = one["IamInstanceProfile"]["Arn"].rpartition("/")[2]
        assert profile == ("ray-autoscaler-v1" if name == "head" else "ochat-ray-node")
        (role,) = iam.get_instance_profile(InstanceProfileName=profile)["InstanceProfile"]["Roles"]
        (shared,) = iam.list_attached_role_policies(RoleName=role["RoleName"])["AttachedPolicies"]
        policy = iam.get_policy_version(PolicyArn=shared["PolicyArn"], VersionId="v1")
        statements = policy["PolicyVersion"]["Document"]["Statement"]
        assert [statement["Resource"] for statement in statements] == [
            "arn:aws:s3:::runs",
            "arn:aws:s3:::runs/*",
        ]
        own = iam.list_role_policies(RoleName=role["RoleName"])["PolicyNames"]
        assert own == (["start-nodes"] if name == "head" else [])
    policy = iam.get_role_policy(RoleName="ray-autoscaler-v1", PolicyName="start-nodes")
    by_action = {}
    for statement in yaml.safe_load(policy["PolicyDocument"])["Statement"]:
        actions = statement["Action"]
        for action in [actions] if isinstance(actions, str) else actions:
            by_action.setdefault(action, statement)
    assert "ec2:RunInstances" in by_action
    assert by_action["iam:PassRole"]["Resource"].endswith(":role/ochat-ray-node")
    for action in ("ec2:TerminateInstances", "ec2:StopInstances", "ec2:DeleteTags"):
        assert by_action[action]["Condition"] == {
            "StringLike": {"ec2:ResourceTag/ray-cluster-name": "ochat-ray*"}
        }
    (parameters,) = {by_action["ssm:GetParameters"]["Resource"]}
    image = yaml.safe_load((ROOT / "cluster.yaml").read_text())["available_node_types"]["head"]
    name = image["node_config"]["ImageId"].removeprefix("resolve:ssm:")
    assert fnmatch(f"arn:aws:ssm:us-west-2::parameter{name}", parameters)


def test_the_outside_reaches_ssh_and_serve_alone(aws):
    for one in instances(aws).values():
        (group,) = one["SecurityGroups"]
        assert group["GroupName"] == "ochat-ray"
        (found,) = aws.describe_security_groups(GroupIds=[group["GroupId"]])["SecurityGroups"]
        rules = found["IpPermissions"]
        serve = yaml.safe_load((ROOT / "serve.yaml").read_text())["http_options"]["port"]
        assert {r["FromPort"] for r in rules if r["IpRanges"]} == {22, serve}
        assert serve == SERVE_PORT
        inside = [
            pair["GroupId"] for r in rules if not r["IpRanges"] for pair in r["UserIdGroupPairs"]
        ]
        assert inside == [group["GroupId"]]
