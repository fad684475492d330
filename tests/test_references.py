"""Our networks have the names, parameters and logits of torchvision's and timm's."""

import json

import jax
import numpy as np
import pytest

from cutmix_jax import convert
from cutmix_jax.models import create_model
from tests import references


@pytest.mark.parametrize("name", references.NETWORKS)
def test_a_network_is_that_of_the_library(name):
    stored = json.loads(references.FILE.read_text())[name]
    model = create_model(name, 1000)
    shapes = jax.eval_shape(model.init, jax.random.key(0), references.images())
    empty = convert.to_torch(jax.tree.map(lambda leaf: np.zeros(leaf.shape), shapes))
    sizes = {key: array.shape for key, array in empty.items()}
    assert references.digest_of_names(sizes) == stored["names"]
    params = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))
    assert params == stored["params"]
    arrays = {key: references.fill(key, array.shape) for key, array in empty.items()}
    converted = convert.from_torch(arrays)
    assert converted.model == name
    logits = jax.jit(model.apply)(converted.variables, references.images())
    assert abs(np.abs(logits).max() - stored["largest"]) <= 1e-4 * stored["largest"]
    error = np.abs(np.asarray(logits)[:, : references.SHOWN] - stored["logits"]).max()
    assert error <= 1e-4 * stored["largest"]
