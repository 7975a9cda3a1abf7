"""cluster.yaml, serve.yaml and runtime_env.yaml, against Ray's own schemas."""

from pathlib import Path

import pytest
import yaml

from ochat_ray.serve import ServeArgs

ROOT = Path(__file__).parent.parent


def load(name):
    return yaml.safe_load((ROOT / name).read_text())


def test_cluster_yaml_is_a_cluster():
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = load("cluster.yaml")
    validate_config(prepare_config(config))
    assert config["head_node_type"] in config["available_node_types"]


def test_a_cluster_with_a_mistake_would_be_refused():
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(load("cluster.yaml"))
    config["max_workers"] = "many"
    with pytest.raises(ValidationError):
        validate_config(config)


def test_the_dashboard_stays_on_loopback():
    commands = load("cluster.yaml")["head_start_ray_commands"]
    assert any("--dashboard-host=127.0.0.1" in command for command in commands)


def test_serve_yaml_is_an_application_with_our_arguments():
    from ray.serve.schema import ServeDeploySchema

    schema = ServeDeploySchema.model_validate(load("serve.yaml"))
    assert schema.http_options.host == "127.0.0.1"
    for application in schema.applications:
        assert application.import_path == "ochat_ray.serve:app"
        ServeArgs.model_validate(application.args)


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
