"""Regularisers that drop parts of a network while it trains, as modules that a block takes.

They have no parameters and draw from the random stream 'drop':
`model.apply(variables, x, rngs={'drop': key})`. In evaluation (`deterministic=True`) they need no
key, and `StochasticDepth` and `ShakeDrop` scale by what they multiply with on average.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from cutmix_jax import UserError


class StochasticDepth(nn.Module):
    """Drops a residual branch: in training it counts or does not, by one draw for the batch.

    With keep probability p = 1 - rate, the branch F becomes::

      b F,  b ~ Bernoulli(p)    in training,
      p F                       in evaluation,

    so that its expectation is the same in both. The block adds the shortcut, never dropped.

    Attributes:
      rate: probability that the branch is dropped, of at least 0 and below 1.
      per_example: one draw for each example instead of one for the batch.
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
    """Disturbs a residual branch, forward and backward by different factors.

    With p = 1 - rate, b ~ Bernoulli(p), alpha ~ U(-1, 1) and beta ~ U(0, 1), the branch F becomes::

      (b + alpha - b alpha) F                   forward in training,
      gradient of F = (b + beta - b beta) g     where g is the gradient of the result,
      p F                                       in evaluation, the expectation.

    So a branch that is kept (b = 1) stays as it is, and another is scaled by alpha on the way there
    and by beta on the way back.

    Attributes:
      rate: probability that the branch is disturbed, of at least 0 and below 1.
      alpha: range of the forward factor; drawn for each example.
      beta: range of the backward factor; drawn for each example, apart from alpha.
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
        # In float32 throughout: the two terms cancel, of which bfloat16 would leave little.
        x = branch.astype(jnp.promote_types(branch.dtype, jnp.float32))
        x = backward * x + lax.stop_gradient((forward - backward) * x)
        return x.astype(branch.dtype)


class DropBlock(nn.Module):
    """Drops squares of a feature map, each channel's by itself, and scales up what is left.

    For maps of H x W and squares of side s, a square starts at each place where it fits with::

      gamma = rate H W / (s^2 (H - s + 1) (W - s + 1)),

    and with the mask M of what no square covers, in training::

      y = x M size(M) / sum(M),

    over the whole tensor. In evaluation it is the identity. Squares overlap, so that a little less
    than `rate` is dropped.

    Attributes:
      rate: share that is dropped, of at least 0 and below 1 (1 - keep_prob).
      size: side of the squares, in pixels of the map.
      schedule: 'constant', or 'linear': the rate is multiplied by `progress`.
      deterministic: True in evaluation. May be given to the call instead.

    Call:
      x: [B, H, W, C], any float dtype, which is kept.
      progress: share of the training that is done; may be traced.

    Raises:
      UserError: a square does not fit into the map, or `rate` is not a probability below 1.

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
                f"DropBlock's squares have a side of {self.size}, which a feature map of "
                f"{height} x {width} cannot hold: make them smaller (config.drop_block.size), name "
                "earlier stages (config.drop_block.stages), or take larger images."
            )
        if nn.merge_param("deterministic", self.deterministic, deterministic):
            return x
        if self.schedule == "linear":
            rate = rate * progress
        places = (height - self.size + 1, width - self.size + 1)
        gamma = rate * height * width / (self.size**2 * places[0] * places[1])
        start = jax.random.bernoulli(self.make_rng("drop"), gamma, (batch, *places, channels))
        kept = ~_dilate(start, self.size)
        # Counted in integers: a float32 stops counting ones at 2^24.
        scale = kept.size / jnp.maximum(jnp.count_nonzero(kept), 1)
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return jnp.where(kept, wide * scale, 0).astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class Regularization:
    """What is dropped in a residual network, and how much of it in each block.

    Stochastic depth and ShakeDrop follow the linear rule: block l of L is dropped with l / L times
    the probability of the last one.

    Attributes:
      stochastic_depth: probability that the last block's branch is dropped.
      shake_drop: probability that the last block's branch is disturbed.
      drop_block: share of a map that DropBlock drops.
      size: side of its squares.
      stages: the stages it works in, counted from 1.
      schedule: of its rate: 'constant' or 'linear'.

    Example:
      >>> half = Regularization(shake_drop=0.5).of_block(stage=1, place=1 / 2, train=True)
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
        self, stage: int, place: float, train: bool, every_norm: bool = False
    ) -> "BlockRegularization":
        """What one block takes.

        Args:
          stage: of the block, counted from 1.
          place: l / L of the linear rule.
          train: False in evaluation.
          every_norm: DropBlock as its authors place it on ImageNet: after every normalisation of
            the branch, and with 4^(4 - stage) times less to drop. Otherwise at the end of the
            branch alone. On the shortcut in either case.
        """
        rate = self.drop_block * (stage in self.stages)
        return BlockRegularization(
            stochastic_depth=self.stochastic_depth * place,
            shake_drop=self.shake_drop * place,
            drop_block=rate / 4 ** (4 - stage) if every_norm else rate,
            size=self.size,
            schedule=self.schedule,
            every_norm=every_norm,
            deterministic=not train,
        )


@dataclasses.dataclass(frozen=True)
class BlockRegularization:
    """What one block drops; its two methods are called inside the block."""

    stochastic_depth: float = 0.0
    shake_drop: float = 0.0
    drop_block: float = 0.0
    size: int = 7
    schedule: str = "constant"
    every_norm: bool = False
    deterministic: bool = True

    def inside(self, x: jax.Array, progress: jax.Array | float) -> jax.Array:
        """Drops from a map inside the branch."""
        return self._drop_block(x, progress) if self.every_norm else x

    def join(
        self, branch: jax.Array, shortcut: jax.Array, progress: jax.Array | float
    ) -> jax.Array:
        """Drops at the end of branch and shortcut, and adds them."""
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
    """The rate, refused where it is no probability below 1."""
    if not 0 <= rate < 1:
        raise UserError(
            f"{type(module).__name__} has a rate of {rate!r}, and a number of at least 0 and below "
            "1 was expected: give the probability of dropping, not of keeping."
        )
    return rate


def _draw_kept(module: nn.Module, keep: float, branch: jax.Array, per_example: bool) -> jax.Array:
    """Bernoulli(keep), one for the batch or one for each example, ready to broadcast."""
    shape = (branch.shape[0] if per_example else 1, *[1] * (branch.ndim - 1))
    return jax.random.bernoulli(module.make_rng("drop"), keep, shape)


def _dilate(start: jax.Array, side: int) -> jax.Array:
    """The squares of `side`, True in [B, H, W, C], whose first corners are True in `start`."""
    squares, reach = start.astype(jnp.float32), (side - 1, side - 1)
    none = (0, 0)
    # Rows, then columns: 2 side comparisons a pixel and not side^2.
    squares = nn.max_pool(squares, (side, 1), padding=(reach, none))
    return nn.max_pool(squares, (1, side), padding=(none, reach)) > 0
