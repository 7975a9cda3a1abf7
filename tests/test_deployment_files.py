"""cluster.yaml, serve.yaml and runtime_env.yaml, against Ray's own schemas."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from ochat_ray.cluster.local_cluster import SERVE_PORT
from ochat_ray.serve import ServeArgs
from ochat_ray.serve.deployment import DRAIN_S

ROOT = Path(__file__).parent.parent


def load(name):
    return yaml.safe_load((ROOT / name).read_text())


def test_cluster_yaml_is_a_cluster():
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = load("cluster.yaml")
    validate_config(prepare_config(config))
    assert config["head_node_type"] in config["available_node_types"]


def test_the_cluster_on_google_cloud_has_the_same_roles_mounts_and_commands():
    from ray.autoscaler._private.util import prepare_config, validate_config

    aws, google = load("cluster.yaml"), load("cluster-gcp.yaml")
    validate_config(prepare_config(load("cluster-gcp.yaml")))
    assert google["provider"]["type"] == "gcp"
    kinds = google["available_node_types"]
    for name, kind in aws["available_node_types"].items():
        same = {key: value for key, value in kind.items() if key != "node_config"}
        assert same == {key: value for key, value in kinds[name].items() if key != "node_config"}
    assert list(kinds) == list(aws["available_node_types"])
    different = {"provider", "auth", "available_node_types", "head_setup_commands"}
    for key in set(aws) | set(google) - different:
        assert key in different or google[key] == aws[key]


def test_every_node_on_google_cloud_has_an_image_with_a_driver_for_our_torch():
    for name, kind in load("cluster-gcp.yaml")["available_node_types"].items():
        config = kind["node_config"]
        (disk,) = config["disks"]
        image = disk["initializeParams"]["sourceImage"]
        assert int(image.rpartition("-nvidia-")[2]) >= 580
        assert disk["autoDelete"]
        # Google's default account, which a node without one would get, may edit the project.
        assert name == "head" or config["serviceAccounts"][0]["email"].startswith("ochat-ray-node@")
        gpus = kind["resources"].get("GPU")
        # An object in Compute Engine's API, though Ray's examples have a list.
        assert isinstance(config.get("scheduling", {}), dict)
        assert not gpus or config["scheduling"] == {"onHostMaintenance": "TERMINATE"}
        assert not gpus or config["machineType"].endswith(f"-{gpus}g")


def test_a_cluster_with_a_mistake_would_be_refused():
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(load("cluster.yaml"))
    config["max_workers"] = "many"
    with pytest.raises(ValidationError):
        validate_config(config)


def test_every_node_type_has_an_image_imdsv2_and_encrypted_disks():
    from ray.autoscaler._private.aws.config import DEFAULT_AMI

    for node_type in load("cluster.yaml")["available_node_types"].values():
        config = node_type["node_config"]
        image = config["ImageId"]
        assert image.startswith(("ami-", "resolve:ssm:/aws/service/deeplearning/ami/x86_64/base-"))
        assert image not in DEFAULT_AMI.values()
        assert config["MetadataOptions"]["HttpTokens"] == "required"
        assert all(disk["Ebs"]["Encrypted"] for disk in config["BlockDeviceMappings"])


def test_mounts_are_what_jobs_need_by_name():
    config = load("cluster.yaml")
    mounts = config["file_mounts"]
    sources = {source for source in mounts.values() if not source.startswith("~")}
    for target, source in mounts.items():
        if source in sources:
            assert target == f"~/ochat_ray/{source}"
            assert (ROOT / source).exists()
    assert {"ochat_ray", "jobs", "pyproject.toml", "constraints.txt"} <= sources
    assert not {".", ".git", ".venv", "runs"} & sources
    # What the build of the package reads must be there, too.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (install,) = [line for line in config["setup_commands"] if "-m pip install -c" in line]
    assert f"touch {' '.join([project['readme'], *project['license-files']])} " in install


def test_the_first_command_checks_the_node():
    first, *_ = load("cluster.yaml")["setup_commands"]
    script = first.removeprefix("sh ~/ochat_ray/")
    assert (ROOT / script).exists()


def test_serve_has_one_port_everywhere():
    ports = {
        rule["FromPort"]
        for rule in load("cluster.yaml")["provider"]["security_group"]["IpPermissions"]
    }
    assert ports == {load("serve.yaml")["http_options"]["port"]} == {SERVE_PORT}
    for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")]:
        named = re.findall(r"127\.0\.0\.1:(\d+)/v1", path.read_text())
        assert set(named) <= {str(SERVE_PORT)}, path.name


def test_the_dashboard_stays_on_loopback():
    commands = load("cluster.yaml")["head_start_ray_commands"]
    assert any("--dashboard-host=127.0.0.1" in command for command in commands)


def test_rays_files_lie_in_a_folder_of_mode_700():
    setup = load("cluster.yaml")["setup_commands"]
    (line,) = [command for command in setup if "RAY_TMPDIR" in command]
    assert "export RAY_TMPDIR=~/.ray" in line
    assert any("chmod 700 ~/.ray" in command for command in setup)
    # session_DATE_TIME_MICROSECONDS_PID, and the longest name of a socket.
    session = "session_2026-11-30_16-34-15_699054_4194304/sockets/plasma_store"
    assert len(f"/home/ubuntu/.ray/ray/{session}") <= 107


def test_serve_yaml_is_an_application_with_our_arguments():
    from ray.serve.schema import ServeDeploySchema

    schema = ServeDeploySchema.model_validate(load("serve.yaml"))
    assert schema.http_options.host == "127.0.0.1"
    for application in schema.applications:
        assert application.import_path == "ochat_ray.serve:app"
        args = ServeArgs.model_validate(application.args)
        address = (schema.http_options.host, schema.http_options.port)
        assert (args.http_host, args.http_port) == address


def test_a_serving_job_is_stopped_as_by_ctrl_c():
    from ray.dashboard.modules.job.job_supervisor import JobSupervisor
    from ray.runtime_env import RuntimeEnv

    variables = RuntimeEnv(**load("deploy/serving_job.yaml")).env_vars()
    assert variables["RAY_JOB_STOP_SIGNAL"] in JobSupervisor.VALID_STOP_SIGNALS
    assert variables["RAY_JOB_STOP_SIGNAL"] == "SIGINT"
    assert int(variables["RAY_JOB_STOP_WAIT_TIME_S"]) > DRAIN_S


def test_runtime_env_yaml_is_a_runtime_environment():
    from ray.runtime_env import RuntimeEnv

    environment = RuntimeEnv(**load("runtime_env.yaml"))
    assert ".venv" in environment["excludes"]


def test_its_packages_travel_once_the_marks_are_off():
    from ray.runtime_env import RuntimeEnv

    text = (ROOT / "runtime_env.yaml").read_text()
    marked = text[text.index("# pip:") :]
    environment = RuntimeEnv(**yaml.safe_load(text + marked.replace("# ", "", 1).replace("#", "")))
    assert environment.pip_config()["packages"] == [
        "-c ${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}/constraints.txt",
        "${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}",
    ]
