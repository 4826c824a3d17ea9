"""The backbone: sizes, the reference block by block, freezing."""

import numpy as np
import pytest
import tensorflow as tf

from pfpn_tf import config
from pfpn_tf.model import resnet
from tests.model.test_layers import numpy_layer


def numpy_max_pool(x):
    """3x3, stride 2, one row or column of -inf around."""
    x = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)], constant_values=-np.inf)
    height, width = (x.shape[1] - 3) // 2 + 1, (x.shape[2] - 3) // 2 + 1
    windows = [
        x[:, i : i + 2 * height - 1 : 2, j : j + 2 * width - 1 : 2]
        for i in range(3)
        for j in range(3)
    ]
    return np.max(windows, axis=0)


def relu(x):
    return np.maximum(x, 0)


def numpy_block(block, x, stride=1, stride_in_1x1=True):
    first, second = (stride, 1) if stride_in_1x1 else (1, stride)
    y = relu(numpy_layer(block.conv1, x, first))
    y = relu(numpy_layer(block.conv2, y, second))
    y = numpy_layer(block.conv3, y)
    return relu(y + (numpy_layer(block.shortcut, x, stride) if block.shortcut else x))


def numpy_resnet(model, images, stride_in_1x1):
    x = numpy_max_pool(relu(numpy_layer(model.stem, images, 2)))
    features = {}
    for s, blocks in enumerate(model.stages):
        for b, block in enumerate(blocks):
            x = numpy_block(block, x, 2 if s > 0 and b == 0 else 1, stride_in_1x1)
        features[f"c{s + 2}"] = x
    return features


def randomise_norms(model):
    for module in model.submodules:
        if hasattr(module, "moving_variance"):
            size = module.gamma.shape[0]
            gamma, beta, mean = np.random.normal(1.0, 0.3, size=(3, size))
            module.set_weights([gamma, beta, mean, np.random.uniform(0.5, 2, size)])


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "backbone, stride_in_1x1",
    [("resnet_tiny", False), ("resnet_tiny", True), ("resnext_tiny", False)],
)
def test_forward_against_numpy(maybe_graph, backbone, stride_in_1x1, training):
    images = np.random.normal(size=(2, 64, 96, 3)).astype(np.float32)
    model = resnet.ResNet(backbone, stride_in_1x1=stride_in_1x1)
    model(images)
    randomise_norms(model)
    features = maybe_graph(lambda x: model(x, training=training))(images)
    expected = numpy_resnet(model, images, stride_in_1x1)
    assert all("kernel" in weight.name for weight in model.trainable_variables)
    assert list(features) == ["c2", "c3", "c4", "c5"]
    for level, value in expected.items():
        stride = 2 ** int(level[1])
        assert features[level].shape[1:3] == (64 // stride, 96 // stride)
        np.testing.assert_allclose(features[level], value, atol=1e-4 * np.abs(value).max())


@pytest.mark.parametrize("backbone", ["resnet_tiny", "resnext_tiny"])
@pytest.mark.parametrize("stride_in_1x1", [False, True])
@pytest.mark.parametrize("output_stride", [16, 8])
def test_a_dilated_network_is_the_plain_one_at_more_places(backbone, stride_in_1x1, output_stride):
    images = np.random.normal(size=(1, 64, 96, 3)).astype(np.float32)
    plain = resnet.ResNet(backbone, stride_in_1x1=stride_in_1x1)
    plain(images)
    dilated = resnet.ResNet(backbone, stride_in_1x1=stride_in_1x1, output_stride=output_stride)
    dilated(images)
    randomise_norms(plain)
    dilated.set_weights(plain.get_weights())
    expected, features = plain(images), dilated(images)
    for level, value in expected.items():
        stride = min(2 ** int(level[1]), output_stride)
        assert features[level].shape[1:3] == (64 // stride, 96 // stride)
        step = 2 ** int(level[1]) // stride
        value = value.numpy()
        np.testing.assert_allclose(
            features[level][:, ::step, ::step], value, atol=1e-5 * np.abs(value).max()
        )


@pytest.mark.parametrize("freeze_stages", [0, 1, 2, 5])
def test_frozen_stages_have_no_gradient(freeze_stages):
    model = resnet.ResNet("resnet_tiny", freeze_stages=freeze_stages)
    with tf.GradientTape() as tape:
        loss = tf.add_n([tf.reduce_sum(f) for f in model(tf.ones([1, 64, 64, 3])).values()])
    names = ["stem", "c2", "c3", "c4", "c5"]
    kernels = [model.stem.kernel] + [blocks[0].conv1.kernel for blocks in model.stages]
    gradients = tape.gradient(loss, kernels)
    trainable = {v.ref() for v in model.trainable_variables}
    for i, name in enumerate(names):
        assert (gradients[i] is None) == (i < freeze_stages), name
        assert (kernels[i].ref() in trainable) == (i >= freeze_stages), name


def test_every_configured_backbone_has_an_architecture():
    assert set(resnet.ARCHITECTURES) == set(config.BACKBONES)


@pytest.mark.parametrize(
    "backbone, millions",
    # Parameters of torchvision's networks of the same name, without the classifier.
    [("resnet50", 23.5), ("resnext50_32x4d", 23.0)],
)
def test_parameter_count(backbone, millions):
    model = resnet.ResNet(backbone)
    model(tf.zeros([1, 32, 32, 3]))
    count = sum(v.shape.num_elements() for v in model.variables if "moving" not in v.name)
    assert round(count / 1e6, 1) == millions
