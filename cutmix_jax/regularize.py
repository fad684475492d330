"""Modules that drop parts of a residual network during training.

They have no parameters and use the random stream 'drop':
`model.apply(variables, x, rngs={'drop': key})`. In evaluation (`deterministic=True`) they need no
key. `StochasticDepth` and `ShakeDrop` then scale by their mean factor.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from cutmix_jax import UserError


class StochasticDepth(nn.Module):
    """Drops a residual branch in training, for the whole batch or for each example.

    With keep probability p = 1 - rate, the branch F becomes::

      b F,  b ~ Bernoulli(p)    in training,
      p F                       in evaluation,

    The expectation is the same in both. The block adds the shortcut, which is never dropped.

    Attributes:
        rate: probability that the branch is dropped, at least 0 and below 1.
        per_example: decide for each example instead of once for the batch.
        deterministic: True in evaluation. May be given to the call instead.

    Call:
        branch: [B, ...], any float dtype, which is kept.

    Raises:
        UserError: `rate` is not a probability below 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> branch = jnp.ones((2, 3))
        >>> drop = StochasticDepth(rate=0.25)
        >>> float(drop.apply({}, branch, deterministic=True)[0, 0])
        0.75
        >>> keys = jax.random.split(jax.random.key(0), 1000)
        >>> train = jax.vmap(lambda key: drop.apply({}, branch, False, rngs={'drop': key}))(keys)
        >>> sorted(set(train.ravel().tolist()))
        [0.0, 1.0]

    Reference:
        Huang, Sun, Liu, Sedra, Weinberger. Deep Networks with Stochastic Depth. 2016.
    """

    rate: float
    per_example: bool = False
    deterministic: bool | None = None

    @nn.compact
    def __call__(self, branch: jax.Array, deterministic: bool | None = None) -> jax.Array:
        keep = 1 - _check_rate(self, self.rate)
        if nn.merge_param("deterministic", self.deterministic, deterministic):
            return branch * jnp.asarray(keep, branch.dtype)
        kept = _draw_kept(self, keep, branch, self.per_example)
        return jnp.where(kept, branch, jnp.zeros_like(branch))


class ShakeDrop(nn.Module):
    """Scales a residual branch at random, with different factors forward and backward.

    With p = 1 - rate, b ~ Bernoulli(p), alpha ~ U(-1, 1) and beta ~ U(0, 1), the branch F becomes::

      (b + alpha - b alpha) F                   forward in training,
      gradient of F = (b + beta - b beta) g     where g is the gradient of the result,
      p F                                       in evaluation, the expectation.

    A branch that is kept (b = 1) does not change. Otherwise it is scaled by alpha in the forward
    pass and by beta in the backward pass.

    Attributes:
        rate: probability that the branch is scaled, at least 0 and below 1.
        alpha: range of the forward factor, sampled for each example.
        beta: range of the backward factor, sampled for each example, independent of alpha.
        per_example: one b for each example instead of one for the batch.
        deterministic: True in evaluation. May be given to the call instead.

    Call:
        branch: [B, ...], any float dtype, which is kept.

    Raises:
        UserError: `rate` is not a probability below 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> shake, branch = ShakeDrop(rate=0.5), jnp.ones((3, 1))
        >>> float(shake.apply({}, branch, deterministic=True)[0, 0])
        0.5
        >>> def train(branch):
        ...   return shake.apply({}, branch, False, rngs={'drop': jax.random.key(1)})
        >>> forward, pull = jax.vjp(train, branch)
        >>> backward, = pull(jnp.ones((3, 1)))
        >>> bool((forward != backward).all()), bool((jnp.abs(backward - 0.5) <= 0.5).all())
        (True, True)

    Reference:
        Yamada, Iwamura, Akiba, Kise. ShakeDrop Regularization for Deep Residual Learning. 2019.
    """

    rate: float
    alpha: tuple[float, float] = (-1.0, 1.0)
    beta: tuple[float, float] = (0.0, 1.0)
    per_example: bool = False
    deterministic: bool | None = None

    @nn.compact
    def __call__(self, branch: jax.Array, deterministic: bool | None = None) -> jax.Array:
        keep = 1 - _check_rate(self, self.rate)
        if nn.merge_param("deterministic", self.deterministic, deterministic):
            return branch * jnp.asarray(keep, branch.dtype)
        kept = _draw_kept(self, keep, branch, self.per_example)
        shape = (branch.shape[0], *[1] * (branch.ndim - 1))
        forward, backward = (
            jnp.where(
                kept, 1.0, jax.random.uniform(self.make_rng("drop"), shape, minval=a, maxval=b)
            )
            for a, b in (self.alpha, self.beta)
        )
        # In float32, because the two terms cancel and bfloat16 would lose most digits.
        x = branch.astype(jnp.promote_types(branch.dtype, jnp.float32))
        x = backward * x + lax.stop_gradient((forward - backward) * x)
        return x.astype(branch.dtype)


class DropBlock(nn.Module):
    """Drops squares of a feature map, independently per channel, and scales up the rest.

    For maps of H x W and squares of side s, a square starts at each position where it fits, with
    probability::

      gamma = rate H W / (s^2 (H - s + 1) (W - s + 1)),

    With M the mask of pixels outside all squares, the result in training is, over the whole
    tensor::

      y = x M size(M) / sum(M).

    In evaluation it is the identity. Squares can overlap, so slightly less than `rate` is dropped.

    Attributes:
        rate: fraction to drop, at least 0 and below 1 (1 - keep_prob).
        size: side of the squares, in pixels of the map.
        schedule: 'constant', or 'linear': the rate is multiplied by `progress`.
        deterministic: True in evaluation. May be given to the call instead.

    Call:
        x: [B, H, W, C], any float dtype, which is kept.
        progress: completed fraction of training; may be traced.

    Raises:
        UserError: the squares do not fit into the map, or `rate` is not a probability below 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> drop, x = DropBlock(rate=0.1, size=4), jnp.ones((64, 8, 8, 16))
        >>> y = drop.apply({}, x, deterministic=False, rngs={'drop': jax.random.key(0)})
        >>> round(float(jnp.mean(y == 0)), 1), round(float(y.mean()), 2)
        (0.1, 1.0)

    Reference:
        Ghiasi, Lin, Le. DropBlock: A Regularization Method for Convolutional Networks. 2018.
    """

    rate: float
    size: int = 7
    schedule: str = "constant"
    deterministic: bool | None = None

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        progress: jax.Array | float = 1.0,
        deterministic: bool | None = None,
    ) -> jax.Array:
        rate = _check_rate(self, self.rate)
        batch, height, width, channels = x.shape
        if self.size > min(height, width):
            raise UserError(
                f"DropBlock squares with a side of {self.size} do not fit into a feature map "
                f"of {height} x {width}. Lower config.drop_block.size, name earlier stages in "
                "config.drop_block.stages, or use larger images."
            )
        if nn.merge_param("deterministic", self.deterministic, deterministic):
            return x
        if self.schedule == "linear":
            rate = rate * progress
        places = (height - self.size + 1, width - self.size + 1)
        gamma = rate * height * width / (self.size**2 * places[0] * places[1])
        start = jax.random.bernoulli(self.make_rng("drop"), gamma, (batch, *places, channels))
        kept = ~_dilate(start, self.size)
        # Counted as integers, because float32 is exact only up to 2^24.
        scale = kept.size / jnp.maximum(jnp.count_nonzero(kept), 1)
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return jnp.where(kept, wide * scale, 0).astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class Regularization:
    """The regularizers of a residual network, and their strength in each block.

    Stochastic depth and ShakeDrop follow the linear rule: block l of L has l / L times the
    probability of the last one.

    Attributes:
        stochastic_depth: probability that the last block's branch is dropped.
        shake_drop: probability that the last block's branch is scaled.
        drop_block: fraction of a map that DropBlock drops.
        size: side of DropBlock's squares.
        stages: stages that use DropBlock, counted from 1.
        schedule: of DropBlock's rate, 'constant' or 'linear'.

    Example:
        >>> half = Regularization(shake_drop=0.5).of_block(stage=1, depth=1 / 2, train=True)
        >>> half.shake_drop
        0.25
    """

    stochastic_depth: float = 0.0
    shake_drop: float = 0.0
    drop_block: float = 0.0
    size: int = 7
    stages: tuple[int, ...] = (3, 4)
    schedule: str = "constant"

    def __bool__(self) -> bool:
        return bool(self.stochastic_depth or self.shake_drop or self.drop_block)

    def of_block(
        self, stage: int, depth: float, train: bool, every_norm: bool = False
    ) -> "BlockRegularization":
        """The regularizers of one block.

        Args:
            stage: stage of the block, counted from 1.
            depth: l / L of the linear rule.
            train: False in evaluation.
            every_norm: apply DropBlock as its authors do on ImageNet: after every normalization of
                the branch, with a rate that is 4^(4 - stage) times smaller. Otherwise it is applied
                only at the end of the branch. The shortcut has it in both cases.
        """
        rate = self.drop_block * (stage in self.stages)
        return BlockRegularization(
            stochastic_depth=self.stochastic_depth * depth,
            shake_drop=self.shake_drop * depth,
            drop_block=rate / 4 ** (4 - stage) if every_norm else rate,
            size=self.size,
            schedule=self.schedule,
            every_norm=every_norm,
            deterministic=not train,
        )


@dataclasses.dataclass(frozen=True)
class BlockRegularization:
    """The regularizers of one block, which calls `inside` and `join`."""

    stochastic_depth: float = 0.0
    shake_drop: float = 0.0
    drop_block: float = 0.0
    size: int = 7
    schedule: str = "constant"
    every_norm: bool = False
    deterministic: bool = True

    def inside(self, x: jax.Array, progress: jax.Array | float) -> jax.Array:
        """Drops parts of a map inside the branch."""
        return self._drop_block(x, progress) if self.every_norm else x

    def join(
        self, branch: jax.Array, shortcut: jax.Array, progress: jax.Array | float
    ) -> jax.Array:
        """Drops parts of the branch and the shortcut, and adds them."""
        branch, shortcut = self._drop_block(branch, progress), self._drop_block(shortcut, progress)
        if self.stochastic_depth:
            branch = StochasticDepth(self.stochastic_depth)(branch, self.deterministic)
        if self.shake_drop:
            branch = ShakeDrop(self.shake_drop)(branch, self.deterministic)
        return branch + shortcut

    def _drop_block(self, x, progress):
        if not self.drop_block:
            return x
        drop = DropBlock(self.drop_block, self.size, self.schedule)
        return drop(x, progress, self.deterministic)


def _check_rate(module: nn.Module, rate: float) -> float:
    """Returns the rate if it is a probability below 1."""
    if not 0 <= rate < 1:
        raise UserError(
            f"{type(module).__name__} has a rate of {rate!r}, but a number of at least 0 and below "
            "1 was expected. Give the probability of dropping, not of keeping."
        )
    return rate


def _draw_kept(module: nn.Module, keep: float, branch: jax.Array, per_example: bool) -> jax.Array:
    """Samples Bernoulli(keep), per batch or per example, in a shape that broadcasts."""
    shape = (branch.shape[0] if per_example else 1, *[1] * (branch.ndim - 1))
    return jax.random.bernoulli(module.make_rng("drop"), keep, shape)


def _dilate(start: jax.Array, side: int) -> jax.Array:
    """True inside the squares of `side` whose first corner is True in `start`, [B, H, W, C]."""
    squares, reach = start.astype(jnp.float32), (side - 1, side - 1)
    none = (0, 0)
    # Rows, then columns: 2 * side comparisons per pixel instead of side^2.
    squares = nn.max_pool(squares, (side, 1), padding=(reach, none))
    return nn.max_pool(squares, (1, side), padding=(none, reach)) > 0
