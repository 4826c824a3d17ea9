"""What TensorFlow Serving reads beside the model."""

import os
import pathlib
import re
import sys

import pytest
import tensorflow as tf
import yaml

from pfpn_tf.serving import exporter
from pfpn_tf.utils.errors import UserError

EXPORT = pathlib.Path(__file__).parents[2] / "export"


def test_warm_up_has_a_request_for_each_batch_size_that_the_model_answers(saved_model, loaded):
    prediction_log_pb2 = pytest.importorskip(
        "tensorflow_serving.apis.prediction_log_pb2", reason="needs the extra serving"
    )
    path = os.path.join(saved_model, "assets.extra", "tf_serving_warmup_requests")
    found = []
    for record in tf.data.TFRecordDataset(path).as_numpy_iterator():
        log = prediction_log_pb2.PredictionLog.FromString(record)
        assert log.WhichOneof("log_type") == "predict_log"
        request = log.predict_log.request
        assert request.model_spec.name == "panoptic"
        inputs = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
        function = loaded.signatures[request.model_spec.signature_name]
        reply = function(**{name: tf.constant(value) for name, value in inputs.items()})
        batch_size = len(inputs["image_bytes"])
        assert reply["error"].numpy().tolist() == [b""] * batch_size
        assert all(image.startswith(b"\xff\xd8\xff") for image in inputs["image_bytes"])
        found.append((request.model_spec.signature_name, batch_size))
    others = ("serving_rest", "serving_thresholds", "serving_instances")
    assert found == [
        ("serving_default", 1),
        ("serving_default", 2),
        *((name, 1) for name in others),
    ]


def test_the_missing_extra_is_named_before_any_work(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorflow_serving.apis", None)
    with pytest.raises(
        UserError, match=r'tensorflow-serving-api .*pip install -e "\.\[serving\]"$'
    ):
        exporter.check_target(str(tmp_path / "1"))


def test_batching_parameters(saved_model):
    text = pathlib.Path(saved_model, "batching_params.pbtxt").read_text()
    fields = re.sub(r"#.*", "", text)
    sizes = [int(n) for n in re.findall(r"allowed_batch_sizes: (\d+)", fields)]
    values = {k: v for k, v in re.findall(r"(\w+) \{ value: (\w+) \}", fields)}
    assert sizes == [1, 2]
    # The server refuses to load otherwise.
    assert int(values["max_batch_size"]) == int(values["max_execution_batch_size"]) == sizes[-1]
    assert values["batch_timeout_micros"] == "5000"
    rest = re.sub(r"allowed_batch_sizes: \d+|\w+ \{ value: \w+ \}", "", fields)
    assert not rest.strip(), "nothing that is no field"


def test_models_config_names_what_the_readme_exports():
    config = pytest.importorskip("tensorflow_serving.config.model_server_config_pb2")
    from google.protobuf import text_format

    text = (EXPORT / "models.config").read_text()
    (model,) = text_format.Parse(text, config.ModelServerConfig()).model_config_list.config
    assert (model.name, model.base_path) == ("panoptic", "/models/panoptic")
    assert "--export_dir=models/panoptic/1" in (EXPORT / "README.md").read_text()


def test_compose_file_mounts_what_its_command_names():
    service = yaml.safe_load((EXPORT / "compose.yaml").read_text())["services"]["serving"]
    mounted = {}
    for volume in service["volumes"]:
        source, target, mode = volume.rsplit(":", 2)
        assert mode == "ro"
        mounted[target] = source
    named = [c.partition("=")[2] for c in service["command"] if "/etc/serving/" in c]
    assert len(named) == 3
    for target in named:
        assert (EXPORT / mounted[target]).is_file(), target
    assert "/models" in mounted
    assert service["healthcheck"]["test"][:3] == ["CMD", "bash", "-c"]
    assert {port.split(":")[0] for port in service["ports"]} == {"8500", "8501"}


def test_the_readme_tells_of_every_output(loaded):
    text = (EXPORT / "README.md").read_text()
    told = set(re.findall(r"`(\w+)`", text))
    for name, function in loaded.signatures.items():
        if name == "network":  # of no use but for tests
            continue
        assert name in told
        assert set(function.structured_outputs) <= told, name
