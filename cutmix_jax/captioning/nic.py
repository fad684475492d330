"""Neural Image Caption (NIC): a network for images, and an LSTM that writes about them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from cutmix_jax.captioning.words import PAD
from cutmix_jax.models.layers import mean_over_map


def _uniform(bound):
    """Initializer: U(-bound, bound)."""

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def _sum_of_two(init):
    """Initializer: the sum of two arrays that `init` makes."""
    return lambda key, *args: sum(init(own, *args) for own in jax.random.split(key))


class NIC(nn.Module):
    r"""An LSTM that sees an image and then the words of its caption, and predicts the next word.

    With the mean x of the last feature map of an image and the tokens :math:`w_0, w_1, \dots`,

    .. math::

        (c_0, h_0) &= \mathrm{LSTM}(0, \mathrm{BatchNorm}(W x)) \\
        (c_{t+1}, h_{t+1}) &= \mathrm{LSTM}((c_t, h_t), E_{w_t}) \\
        \mathrm{logits}_t &= V\, \mathrm{dropout}(h_{t+1}) + b

    where :math:`w_0` is the start token, and :math:`\mathrm{logits}_t` are those of
    :math:`w_{t+1}`. W starts as N(0, 0.02²), E and V as U(-0.1, 0.1), and b as 0. The BatchNorm has
    a momentum of 0.99 in Flax's sense. W has no bias, which the BatchNorm would cancel. In training
    it needs two images at least: a single one is normalized to zero. With several devices, each
    normalizes its own part of the batch, unless the backbone has a `norm_axis`.

    The LSTM starts like PyTorch's: its weights are U(-s, s) with :math:`s = 1/\sqrt{hidden}`.
    PyTorch has two biases of this distribution per gate. Flax has one, which starts as the sum of
    two such numbers. Under Adam, PyTorch's sum moves twice as far per step.

    The parameters of the backbone have the names that they have in a classifier. The modules that
    are new are `project`, `project_norm`, `words`, `lstm` and `output`, with
    `F E + 2 E + V E + 4 H (E + H + 1) + V (H + 1)` parameters for F features of the backbone, E =
    `embed`, H = `hidden` and V words. The dtype of the backbone is that of all activations, except
    that the memory of the LSTM, logits and BatchNorm statistics are float32.

    Attributes:
        backbone: any network of `models`, without a head. It runs as in evaluation and has no
            gradient, unless `finetune` is set. The BatchNorm after it shares its `norm_axis`.
        vocabulary_size: V, number of words, with the four special tokens.
        embed: features of a word, and of the image for the LSTM.
        hidden: features of the LSTM.
        dropout: probability with which outputs of the LSTM are dropped in training.
        finetune: whether the backbone is trained.

    Call:
        `(images, tokens, train=False, progress=1.0) -> logits` for normalized float images
        `[b, H, W, 3]` and int32 tokens `[b, L]`: float32 `[b, L - 1, V]`, for `tokens[:, 1:]`. In
        training, `rngs={'drop': key}` is needed, and `batch_stats` changes. It is `encode` and
        `predict` in a row. `progress` is the completed fraction of training, for the regularizers
        of the backbone.

    Raises:
        ValueError: the backbone has a head, or the shapes do not fit.

    Example:
        >>> import functools
        >>> from cutmix_jax.captioning.search import beam_search
        >>> from cutmix_jax.models import create_model
        >>> model = NIC(create_model('resnet8', num_classes=None), vocabulary_size=40)
        >>> images, tokens = jnp.zeros([2, 32, 32, 3]), jnp.ones([2, 7], jnp.int32)
        >>> variables = jax.eval_shape(model.init, jax.random.key(0), images, tokens)
        >>> jax.eval_shape(model.apply, variables, images, tokens).shape
        (2, 6, 40)
        >>> def write(variables, images):
        ...   carry = model.apply(variables, images, method='encode')
        ...   step = functools.partial(model.apply, variables, method='step')
        ...   return beam_search(step, carry, len(images), 3, max_words=5, vocabulary_size=40)
        >>> [x.shape for x in jax.eval_shape(write, variables, images)]
        [(2, 3, 5), (2, 3)]

    Reference:
        Vinyals, Toshev, Bengio, Erhan. Show and Tell: A Neural Image Caption Generator. CVPR 2015.
        BatchNorm, sizes and initialization are those of the code that the CutMix paper cites.
    """

    backbone: nn.Module
    vocabulary_size: int
    embed: int = 100
    hidden: int = 300
    dropout: float = 0.1
    finetune: bool = False

    def setup(self):
        if self.backbone.num_classes is not None:
            raise ValueError(
                f"The backbone has a head of {self.backbone.num_classes} classes. It has to be a "
                "network without one, as from create_model('resnet50', num_classes=None)."
            )
        nn.share_scope(self, self.backbone)
        dtype, init = self.backbone.dtype, _uniform(self.hidden**-0.5)
        self.project = nn.Dense(
            self.embed, use_bias=False, kernel_init=nn.initializers.normal(0.02), dtype=dtype
        )
        self.project_norm = nn.BatchNorm(
            momentum=0.99, epsilon=1e-5, dtype=dtype, axis_name=self.backbone.norm_axis
        )
        self.words = nn.Embed(
            self.vocabulary_size, self.embed, embedding_init=_uniform(0.1), dtype=dtype
        )
        self.lstm = nn.OptimizedLSTMCell(
            self.hidden,
            kernel_init=init,
            recurrent_kernel_init=init,
            bias_init=_sum_of_two(init),
            dtype=dtype,
        )
        self.dropping = nn.Dropout(self.dropout, rng_collection="drop")
        self.output = nn.Dense(self.vocabulary_size, kernel_init=_uniform(0.1))

    def __call__(self, images, tokens, train=False, progress=1.0):
        return self.predict(self.encode(images, train, progress), tokens, train)

    def encode(self, images, train=False, progress=1.0):
        """What the LSTM knows of the images.

        Args:
            images: normalized float `[b, H, W, 3]`.
            train: whether BatchNorm uses the statistics of the batch. That of the backbone does so
                with `finetune` only.
            progress: completed fraction of training, for the regularizers of the backbone.

        Returns:
            `(memory, output)` of the LSTM, float32 `[b, hidden]` each: the carry of `step`.
        """
        x = self.backbone(images, train and self.finetune, progress=progress)
        x = mean_over_map(x if self.finetune else lax.stop_gradient(x))
        x = self.project_norm(self.project(x), use_running_average=not train)
        zeros = jnp.zeros((len(x), self.hidden))
        return self.lstm((zeros, zeros), x)[0]

    def predict(self, carry, tokens, train=False):
        """Logits of the next word at every position of given captions.

        Args:
            carry: from `encode`.
            tokens: int32 `[b, L]`, each row one caption of the image with this index.
            train: whether outputs of the LSTM are dropped.

        Returns:
            float32 `[b, L - 1, V]`, logits of all tokens but the first.
        """
        if tokens.ndim != 2 or len(tokens) != len(carry[0]) or tokens.shape[1] < 2:
            raise ValueError(
                f"tokens has shape {tokens.shape}, but [b, L] was expected, with as many rows as "
                f"there are images ({len(carry[0])}), and L at least 2."
            )
        read = nn.scan(
            lambda cell, carry, x: cell(carry, x),
            variable_broadcast="params",
            split_rngs={"params": False},
            in_axes=1,
            out_axes=1,
        )
        _, states = read(self.lstm, carry, self.words(tokens[:, :-1]))
        return self.output(self.dropping(states, deterministic=not train))

    def step(self, carry, tokens):
        """One step in evaluation, for `search.beam_search`.

        Args:
            carry: from `encode` or from the step before, for n captions.
            tokens: int32 `[n]`, the last token of each.

        Returns:
            `(carry, logits)`: the carry after these tokens, and float32 `[n, V]`, logits of the
            next ones.
        """
        carry, state = self.lstm(carry, self.words(tokens))
        return carry, self.output(state)


def caption_loss(logits, tokens):
    r"""The cross-entropy of the predicted tokens, without pads: its sum, and their number.

    .. math::

        \sum_{t:\, w_{t+1} \ne \mathrm{pad}} \left(\log \sum_v e^{z_{tv}} - z_{t w_{t+1}}\right)

    The loss of NIC is the sum divided by the number. For a batch in several parts, divide the sum
    of the sums by the sum of the numbers.

    Args:
        logits: z, float `[..., L - 1, V]`, from `NIC`.
        tokens: w, int `[..., L]`: start, words, end, then pads of id 0.

    Returns:
        `(total, count)`: float32 and int32 scalars. Both are 0 if all tokens are pads.

    Raises:
        ValueError: the shapes do not fit.

    Example:
        >>> total, count = caption_loss(jnp.zeros([1, 4, 8]), jnp.array([[1, 7, 2, 0, 0]]))
        >>> round(float(total), 4), int(count)  # 2 log 8
        (4.1589, 2)

    Reference:
        Vinyals, Toshev, Bengio, Erhan. Show and Tell: A Neural Image Caption Generator. CVPR 2015,
        equation 13.
    """
    logits, tokens = jnp.asarray(logits, jnp.float32), jnp.asarray(tokens)
    targets = tokens[..., 1:]
    if logits.shape[:-1] != targets.shape or not targets.ndim:
        raise ValueError(
            f"logits has shape {logits.shape} and tokens {tokens.shape}, but [..., L - 1, V] and "
            "[..., L] were expected."
        )
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    scored = targets != PAD
    return jnp.where(scored, losses, 0).sum(), scored.sum()
