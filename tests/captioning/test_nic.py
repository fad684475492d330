"""NIC next to PyTorch: logits, loss and a step of Adam; its start, and what is not trained."""

import functools
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from cutmix_jax.captioning import nic, search
from cutmix_jax.models import create_model
from cutmix_jax.models.resnet import BasicBlock, ResNet
from tests.models.reference import (
    count,
    images_of,
    random_variables,
    shapes_of,
    torch_resnet,
    torch_state,
)

TINY = {"stage_sizes": (1, 1), "block": BasicBlock, "width": 4, "large_stem": False}
SIDE, V, L, EMBED, HIDDEN = (9, 8), 11, 7, 6, 5
NEW = {"project", "project_norm", "words", "lstm", "output"}
GATES = "ifgo"  # the order of PyTorch's

tiny_nic = functools.partial(nic.NIC, vocabulary_size=V, embed=EMBED, hidden=HIDDEN, dropout=0.0)
MODEL = tiny_nic(ResNet(num_classes=None, **TINY))
FINETUNED = MODEL.clone(finetune=True)
# Of usual length, without a word, without space for the end, and padding alone.
TOKENS = np.array(
    [[1, 4, 3, 9, 2, 0, 0], [1, 2, 0, 0, 0, 0, 0], [1, 5, 10, 4, 8, 8, 7], [0] * L], np.int32
)


pytestmark = pytest.mark.usefixtures("unoptimized")


@pytest.fixture(scope="module")
def tiny():
    """Images, and variables that are not as initialized."""
    images = images_of(SIDE)
    model = types.SimpleNamespace(init=functools.partial(MODEL.init, tokens=TOKENS))
    return images, random_variables(model, images)


@functools.partial(jax.jit, static_argnames="model")
def step_gradient(model, variables, images, tokens, key=None):
    """((loss, (logits, batch statistics)), gradient) in training."""

    def loss(params):
        logits, updates = model.apply(
            {**variables, "params": params},
            images,
            tokens,
            train=True,
            mutable=["batch_stats"],
            rngs=None if key is None else {"drop": key},
        )
        total, number = nic.caption_loss(logits, tokens)
        return total / jnp.maximum(number, 1), (logits, updates["batch_stats"])

    return jax.value_and_grad(loss, has_aux=True)(variables["params"])


evaluate = jax.jit(MODEL.apply)


def of_backbone(variables):
    return {
        kind: {name: x for name, x in tree.items() if name not in NEW}
        for kind, tree in variables.items()
    }


def decoder_arrays(params):
    """Our parameters after the backbone, with the names and layouts of `torch_nic`."""
    lstm = params["lstm"]

    def stacked(kind, leaf):
        return np.concatenate([np.asarray(lstm[kind + gate][leaf]).T for gate in GATES])

    return {
        "linear.weight": np.asarray(params["project"]["kernel"]).T,
        "norm.weight": params["project_norm"]["scale"],
        "norm.bias": params["project_norm"]["bias"],
        "embed.weight": params["words"]["embedding"],
        "lstm.weight_ih_l0": stacked("i", "kernel"),
        "lstm.weight_hh_l0": stacked("h", "kernel"),
        "lstm.bias_ih_l0": stacked("h", "bias"),
        "output.weight": np.asarray(params["output"]["kernel"]).T,
        "output.bias": params["output"]["bias"],
    }


def torch_nic(torch, variables):
    """The same network in PyTorch, with our weights, a bias more in two places, and no pads."""
    random = np.random.RandomState(3)
    backbone = torch_resnet(torch, SIDE, num_classes=1, **TINY)
    state = {k: torch.tensor(v) for k, v in torch_state(of_backbone(variables)).items()}
    backbone.load_state_dict(state, strict=False)
    backbone.fc = torch.nn.Identity()

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = backbone
            self.linear = torch.nn.Linear(8, EMBED)
            self.norm = torch.nn.BatchNorm1d(EMBED, momentum=0.01)
            self.embed = torch.nn.Embedding(V, EMBED)
            self.lstm = torch.nn.LSTM(EMBED, HIDDEN, batch_first=True)
            self.output = torch.nn.Linear(HIDDEN, V)

        def forward(self, images, tokens):
            x = self.norm(self.linear(self.backbone(images)))
            x = torch.cat([x[:, None], self.embed(tokens[:, :-1])], 1)
            return self.output(self.lstm(x)[0][:, 1:])

    net = Net()
    arrays = decoder_arrays(variables["params"])
    # A bias before a BatchNorm shifts its mean. The biases of the LSTM are a sum.
    shift = random.normal(size=EMBED).astype(np.float32)
    part = random.normal(size=4 * HIDDEN).astype(np.float32)
    running = variables["batch_stats"]["project_norm"]
    arrays |= {
        "linear.bias": shift,
        "norm.running_mean": running["mean"] + shift,
        "norm.running_var": running["var"],
        "lstm.bias_ih_l0": arrays["lstm.bias_ih_l0"] - part,
        "lstm.bias_hh_l0": part,
    }
    state = {name: torch.tensor(np.asarray(x)) for name, x in arrays.items()}
    missing, unexpected = net.load_state_dict(state, strict=False)
    assert not unexpected
    assert all("backbone" in name or name.endswith("num_batches_tracked") for name in missing)
    # Trained, this bias would move the sum twice as far under Adam.
    net.lstm.bias_hh_l0.requires_grad_(False)
    return net.eval(), part, shift


@pytest.mark.parametrize("model", [MODEL, FINETUNED], ids=["frozen", "finetuned"])
def test_logits_loss_and_a_step_of_adam_are_pytorchs(tiny, model):
    torch = pytest.importorskip("torch", reason="needs PyTorch as the numeric reference")
    torch.set_num_threads(1)
    images, variables = tiny
    net, part, shift = torch_nic(torch, variables)
    inputs = torch.tensor(images.transpose(0, 3, 1, 2)), torch.tensor(TOKENS).long()

    expected = net(*inputs).detach().numpy()
    assert expected.std() > 0.1
    np.testing.assert_allclose(evaluate(variables, images, TOKENS), expected, atol=1e-5)

    for module in (net, net.backbone):
        module.train()
    if not model.finetune:
        net.backbone.eval().requires_grad_(False)
    trained = [x for x in net.parameters() if x.requires_grad]
    adam = torch.optim.Adam(trained, 1e-3)
    outputs = net(*inputs)
    wanted = torch.nn.functional.cross_entropy(
        outputs.flatten(0, 1), inputs[1][:, 1:].flatten(), ignore_index=0
    )
    wanted.backward()
    adam.step()

    (loss, (logits, updated)), grads = step_gradient(model, variables, images, TOKENS)
    np.testing.assert_allclose(logits, outputs.detach().numpy(), atol=1e-5)
    assert float(loss) == pytest.approx(wanted.item(), rel=1e-6)
    ours = optax.adam(1e-3)
    updates, _ = ours.update(grads, ours.init(variables["params"]))
    params = optax.apply_updates(variables["params"], updates)

    moved = {name: x.detach().numpy() for name, x in net.named_parameters()}
    found = decoder_arrays(params)
    found["lstm.bias_ih_l0"] = found["lstm.bias_ih_l0"] - part
    found |= {f"backbone.{k}": x for k, x in torch_state(of_backbone({"params": params})).items()}
    assert found.keys() | {"linear.bias", "lstm.bias_hh_l0"} == moved.keys()
    for name, x in found.items():
        np.testing.assert_allclose(x, moved[name], atol=1e-5, err_msg=name)

    running = updated["project_norm"]
    np.testing.assert_allclose(running["mean"] + shift, net.norm.running_mean, atol=1e-6)
    # PyTorch keeps n/(n-1) times the variance of the batch.
    old = 0.99 * variables["batch_stats"]["project_norm"]["var"]
    unbiased = old + (running["var"] - old) * 4 / 3
    np.testing.assert_allclose(unbiased, net.norm.running_var, rtol=1e-5)


def variables_of(model, side=64):
    init = functools.partial(model.init, tokens=TOKENS[:1])
    return shapes_of(types.SimpleNamespace(init=init), side)


@pytest.mark.parametrize("name", ["resnet20", "resnet18x0.25", "se_resnet50", "vgg16_gap"])
def test_the_backbone_has_the_parameters_of_a_classifier(name):
    captioner = variables_of(tiny_nic(create_model(name, None)))
    classifier = shapes_of(create_model(name, 10), 64)
    del classifier["params"]["fc"]
    for kind, tree in classifier.items():
        assert of_backbone(captioner)[kind] == tree
    assert captioner["params"].keys() - classifier["params"].keys() == NEW


def test_weights_of_a_classifier_give_its_features(tiny):
    """The head of the classifier is that of the captions: `project` and a BatchNorm of 0 and 1."""
    images, variables = tiny
    classifier = ResNet(num_classes=EMBED, **TINY)
    fc = {"kernel": variables["params"]["project"]["kernel"], "bias": np.zeros(EMBED, np.float32)}
    weights = of_backbone(variables)
    weights["params"] = weights["params"] | {"fc": fc}
    logits = jax.jit(classifier.apply)(weights, images)
    seen = []

    def note(next_function, args, kwargs, context):
        found = next_function(*args, **kwargs)
        if context.module.name == "project":
            seen.append(found)
        return found

    with nn.intercept_methods(note):
        MODEL.apply(variables, images, method="encode")
    np.testing.assert_allclose(seen[0], logits, rtol=1e-4, atol=1e-5)


def test_number_of_parameters():
    """The cited code has one bias more per gate of the LSTM, and one per feature of the image."""
    words = 9_000
    whole = variables_of(nic.NIC(create_model("resnet50", None), words))["params"]
    assert count(of_backbone({"params": whole})) == 23_508_032
    new = {name: count(whole[name]) for name in NEW}
    assert new == {
        "project": 2048 * 100,
        "project_norm": 2 * 100,
        "words": words * 100,
        "lstm": 4 * 300 * (100 + 300 + 1),
        "output": words * (300 + 1),
    }


@pytest.mark.parametrize("model", [MODEL, FINETUNED], ids=["frozen", "finetuned"])
def test_what_is_trained(tiny, model):
    """Parameters have a gradient and running statistics move, those of the backbone if asked."""
    images, variables = tiny
    (_, (_, updates)), grads = step_gradient(model, variables, images, TOKENS)
    moves = jax.tree.map(np.not_equal, updates, variables["batch_stats"])
    for tree in (grads, moves):
        tree = jax.tree.map(lambda x: bool(np.any(x)), tree)
        new = {name: part for name, part in tree.items() if name in NEW}
        assert all(jax.tree.leaves(new))
        old = of_backbone({"": tree})
        assert set(jax.tree.leaves(old)) == {model.finetune}


def test_the_backward_pass_stops_before_a_frozen_backbone(tiny):
    images, variables = tiny
    model = tiny_nic(MODEL.backbone.clone(conv_layer=nn.Conv))
    text = step_gradient.lower(model, variables, images, TOKENS).compile().as_text()
    kernels = [x for x in jax.tree.leaves(variables["params"]) if x.ndim == 4]
    assert text.count(" convolution(") == len(kernels) == 6


def test_random_start_is_pytorchs():
    """One sample of ours and one of PyTorch's are from the same distribution."""
    torch = pytest.importorskip("torch", reason="needs PyTorch as the numeric reference")
    torch.manual_seed(0)
    model = nic.NIC(ResNet(num_classes=None, **TINY), 200)
    images = np.zeros((1, *SIDE, 3), np.float32)
    params = jax.jit(model.init)(jax.random.key(0), images, TOKENS[:1])["params"]
    found = decoder_arrays(params)
    lstm = torch.nn.LSTM(100, 300)
    wanted = {
        "linear.weight": torch.nn.init.normal_(torch.empty(5000), 0, 0.02),
        "embed.weight": torch.nn.init.uniform_(torch.empty(20_000), -0.1, 0.1),
        "output.weight": torch.nn.init.uniform_(torch.empty(20_000), -0.1, 0.1),
        "lstm.weight_ih_l0": lstm.weight_ih_l0,
        "lstm.weight_hh_l0": lstm.weight_hh_l0,
        "lstm.bias_ih_l0": lstm.bias_ih_l0 + lstm.bias_hh_l0,
    }
    for name, sample in wanted.items():
        own, theirs = np.ravel(found[name]), sample.detach().numpy().ravel()
        assert stats.ks_2samp(own, theirs).pvalue > 1e-3, name
        if "linear" not in name:
            assert np.abs(own).max() <= (2 if "bias" in name else 1) * max(0.1, 300**-0.5), name
    assert not np.any(found["output.bias"])
    assert not np.any(found["norm.bias"])
    assert (np.asarray(found["norm.weight"]) == 1).all()


def test_steps_give_the_logits_of_whole_captions(tiny):
    """And all of it is the same without jit."""
    images, variables = tiny
    want = evaluate(variables, images, TOKENS)
    carry = MODEL.apply(variables, images, method="encode")
    kinds = jax.tree.map(lambda x: (x.shape, x.dtype), carry)
    step = functools.partial(MODEL.apply, variables, method="step")
    for t in range(L - 1):
        carry, logits = step(carry, TOKENS[:, t])
        np.testing.assert_allclose(logits, want[:, t], atol=1e-5)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), carry) == kinds
    np.testing.assert_allclose(MODEL.apply(variables, images, TOKENS), want, atol=1e-5)


def test_a_beam_writes_what_the_network_finds_probable(tiny):
    images, variables = tiny

    @jax.jit
    def write(variables, images):
        carry = MODEL.apply(variables, images, method="encode")
        step = functools.partial(MODEL.apply, variables, method="step")
        return search.beam_search(step, carry, len(images), 3, L - 1, V)

    found, scores = write(variables, images)
    for k in range(3):
        tokens = np.pad(np.asarray(found[:, k]), ((0, 0), (1, 0)), constant_values=search.START)
        logits = evaluate(variables, images, tokens)
        for i in range(len(images)):
            total, _ = nic.caption_loss(logits[i], tokens[i])
            assert float(scores[i, k]) == pytest.approx(-float(total), rel=1e-5)


@pytest.mark.parametrize(
    "rows", [[0] * 4, [1] * 4, [2] * 4, [3] * 4], ids=["usual", "empty", "full", "pads"]
)
def test_no_caption_gives_nan(tiny, rows):
    images, variables = tiny
    with jax.debug_nans(True):
        (loss, _), grads = step_gradient(FINETUNED, variables, images, TOKENS[rows])
    assert np.isfinite(loss)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))
    if rows[0] == 3:
        assert loss == 0
        assert not any(map(np.any, jax.tree.leaves(grads)))


def test_the_loss_of_parts_is_that_of_the_whole():
    logits = np.random.RandomState(0).normal(size=(4, L - 1, V)).astype(np.float32)
    logs = np.log(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))
    want = [-logs[i, t, word] for i in range(4) for t, word in enumerate(TOKENS[i, 1:]) if word]
    total, number = nic.caption_loss(logits, TOKENS)
    assert number == len(want) == 4 + 1 + 6
    assert float(total) == pytest.approx(sum(want), rel=1e-6)
    parts = [nic.caption_loss(logits[part], TOKENS[part]) for part in ([0, 1], [2, 3])]
    np.testing.assert_allclose(np.sum(parts, axis=0), [total, number], rtol=1e-6)


def test_dropout_is_of_training_and_after_the_recurrence(tiny):
    """So the logits are those without dropout in the mean over many keys."""
    _, variables = tiny
    model = MODEL.clone(dropout=0.5)
    carry = jnp.asarray(np.random.RandomState(0).uniform(-1, 1, (2, 4, HIDDEN)), jnp.float32)

    @functools.partial(jax.jit, static_argnames=("model", "train"))
    def predict(model, keys, train):
        return jax.vmap(
            lambda key: model.apply(
                variables, tuple(carry), TOKENS, train, method="predict", rngs={"drop": key}
            )
        )(keys)

    keys = jax.random.split(jax.random.key(0), 500)
    dropped = np.asarray(predict(model, keys, train=True))
    want = np.asarray(predict(model, keys, train=False))[0]
    np.testing.assert_array_equal(want, predict(MODEL, keys, train=True)[7])
    assert (dropped[0] != dropped[1]).any()
    deviation = dropped.std(0) / np.sqrt(len(keys))
    assert (np.abs(dropped.mean(0) - want) < 5 * deviation).all()


def test_in_bfloat16_logits_memory_and_parameters_are_float32(tiny):
    images, variables = tiny
    model = MODEL.clone(backbone=MODEL.backbone.clone(dtype=jnp.bfloat16))
    kinds = {x.dtype for x in jax.tree.leaves(variables_of(model))}
    assert kinds == {jnp.dtype("float32")}
    seen = {}

    def note(next_function, args, kwargs, context):
        found = next_function(*args, **kwargs)
        if context.method_name == "__call__":
            seen[context.module.name] = jax.tree.leaves(found)[0].dtype
        return found

    with nn.intercept_methods(note):
        logits = jax.jit(model.apply)(variables, images, TOKENS)
        carry = jax.eval_shape(functools.partial(model.apply, method="encode"), variables, images)
    assert {seen[name] for name in ("project", "project_norm", "words")} == {jnp.dtype("bfloat16")}
    assert {x.dtype for x in (logits, *carry)} == {jnp.dtype("float32")}
    want = evaluate(variables, images, TOKENS)
    error = np.abs(logits - want).max() / want.std()
    assert 1e-5 < error < 0.05


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="head of 10 classes"):
        variables_of(tiny_nic(create_model("resnet20", 10)))
    with pytest.raises(ValueError, match=r"tokens has shape \(2, 7\)"):
        jax.eval_shape(MODEL.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)), TOKENS[:2])
    with pytest.raises(ValueError, match=r"tokens has shape \(1, 1\)"):
        jax.eval_shape(MODEL.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)), TOKENS[:1, :1])
    with pytest.raises(ValueError, match="logits has shape"):
        nic.caption_loss(jnp.zeros((2, L, V)), TOKENS[:2])
