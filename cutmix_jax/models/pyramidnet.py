"""PyramidNet for CIFAR: residual blocks whose number of channels grows gradually."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from cutmix_jax import UserError
from cutmix_jax.models.layers import ModuleDef, Network, Tap, head, last_scale_init
from cutmix_jax.regularize import BlockRegularization


def pooled(block: nn.Module, x: jax.Array, features: int) -> jax.Array:
    """The block's input, average-pooled 2x2 at stride 2, with channels of zeros appended."""
    if block.stride == 2:
        # For odd sides, averages of the last row and column ignore the padding.
        odd = ((0, x.shape[1] % 2), (0, x.shape[2] % 2))
        x = nn.avg_pool(x, (2, 2), strides=(2, 2), padding=odd, count_include_pad=False)
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, features - x.shape[-1])))


class PyramidBlock(nn.Module):
    """Shared by both blocks: a norm comes first, and no activation follows the addition."""

    planes: int
    stride: int
    conv: ModuleDef
    norm: ModuleDef
    act: Callable[[jax.Array], jax.Array] = nn.relu
    shortcut: Callable[[nn.Module, jax.Array, int], jax.Array] = pooled
    zero_init: bool = False
    regularization: BlockRegularization = BlockRegularization()
    expansion = 1

    def join(self, branch: jax.Array, x: jax.Array, progress: jax.Array | float) -> jax.Array:
        """The sum of the branch and the shortcut."""
        x = self.shortcut(self, x, self.expansion * self.planes)
        return self.regularization.join(branch, x, progress)


class BasicBlock(PyramidBlock):
    """Norm, 3x3 convolution (with the stride), norm, activation, 3x3 convolution, norm."""

    @nn.compact
    def __call__(self, x: jax.Array, progress: jax.Array | float = 1.0) -> jax.Array:
        y = self.norm(name="bn1")(x)
        y = self.conv(self.planes, 3, self.stride, name="conv1")(y)
        y = self.act(self.norm(name="bn2")(y))
        y = self.conv(self.planes, 3, name="conv2")(y)
        y = self.norm(name="bn3", scale_init=last_scale_init(self.zero_init))(y)
        return self.join(y, x, progress)


class BottleneckBlock(PyramidBlock):
    """1x1, 3x3 (with the stride) and 1x1 convolutions between four norms; 4 * planes channels."""

    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array, progress: jax.Array | float = 1.0) -> jax.Array:
        y = self.norm(name="bn1")(x)
        y = self.conv(self.planes, 1, name="conv1")(y)
        y = self.act(self.norm(name="bn2")(y))
        y = self.conv(self.planes, 3, self.stride, name="conv2")(y)
        y = self.act(self.norm(name="bn3")(y))
        y = self.conv(self.expansion * self.planes, 1, name="conv3")(y)
        y = self.norm(name="bn4", scale_init=last_scale_init(self.zero_init))(y)
        return self.join(y, x, progress)


class PyramidNet(Network):
    """A PyramidNet for images [B, H, W, C], normalized, float; returns float32 logits [B, K].

    Block k of 3n has `round(width + k alpha / 3n)` planes, rounded half to even. Stages 2 and 3
    halve the side. A norm and an activation follow the last stage; their result is the feature map
    'final'. No activation follows the first norm.

    Attributes:
        blocks: n, blocks in each of the three stages.
        alpha: growth of the number of planes, from the stem to the last block.
        block: `BasicBlock` or `BottleneckBlock`.
        width: channels of the stem.

    The others are those of `layers.Network`.

    Reference:
        Han, Kim, Kim. Deep Pyramidal Residual Networks. 2017.
    """

    blocks: int
    alpha: int
    block: type[PyramidBlock] = BottleneckBlock
    width: int = 16

    feature_names = ("image", "stem", "layer1", "layer2", "layer3", "final")
    total_stride = 4
    stages = 3

    @property
    def planes(self) -> tuple[int, ...]:
        """Planes of each block."""
        planes, exact = [], float(self.width)
        for _ in range(3 * self.blocks):
            exact += self.alpha / (3 * self.blocks)
            planes.append(round(exact))
        return tuple(planes)

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        train: bool = False,
        tap: Tap | None = None,
        progress: jax.Array | float = 1.0,
    ) -> jax.Array:
        tap = tap or (lambda name, x: x)
        conv, norm = self.make_conv(), self.make_norm(train)

        x = jnp.asarray(tap("image", images), self.dtype)
        x = conv(self.width, 3, name="conv1")(x)
        x = tap("stem", norm(name="bn1")(x))

        block = self.make_block(self.block)
        for index, planes in enumerate(self.planes):
            stage, number = divmod(index, self.blocks)
            x = block(
                planes=planes,
                stride=2 if stage > 0 and number == 0 else 1,
                conv=conv,
                norm=norm,
                act=self.act,
                zero_init=self.zero_init,
                regularization=self.regularization.of_block(
                    stage + 1, (index + 1) / len(self.planes), train
                ),
                name=f"layer{stage + 1}_{number}",
            )(x, progress)
            if number == self.blocks - 1:
                x = tap(f"layer{stage + 1}", x)

        x = tap("final", self.act(norm(name="bn_final")(x)))
        return head(self.num_classes, x)


def pyramidnet(depth: int, alpha: int, block: type[PyramidBlock]) -> Callable[..., PyramidNet]:
    """The constructor of a network with `depth` layers; rejects an impossible depth."""
    kind, layers = {BasicBlock: ("basic", 6), BottleneckBlock: ("bottleneck", 9)}[block]
    blocks, rest = divmod(depth - 2, layers)
    if rest or blocks < 1:
        below = max(blocks, 1) * layers + 2
        raise UserError(
            f"PyramidNet's depth is {depth}, but {layers}n + 2 was expected with {kind} blocks. "
            f"Use {below} or {below + layers}."
        )
    return functools.partial(PyramidNet, blocks, alpha, block)


NETS = {
    "pyramidnet110": pyramidnet(110, 64, BottleneckBlock),
    "pyramidnet200": pyramidnet(200, 240, BottleneckBlock),
}
