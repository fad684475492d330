"""Maps a function written for one device's shard over all devices.

This is the only file that uses ``pmap`` or ``shard_map``. The functions it maps have the form
``f(state, arrays, xs)``: ``state`` and ``arrays`` are replicated, and ``xs`` is split over the
devices. The result is the same on every device, because `f` reduces it over `AXIS`.
"""

import collections
import dataclasses

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cutmix_jax import UserError

AXIS = "batch"
# Calls in flight before their results are fetched. The device then never waits for Python, and a
# loss that is not finite is noticed at once.
LAG = 2


@dataclasses.dataclass(frozen=True)
class Mapping:
    """How functions and arrays are mapped to the devices.

    Attributes:
        kind: 'pmap' or 'shard_map'.
        mesh: the devices, of all processes.
    """

    kind: str
    mesh: Mesh

    @property
    def must_wait(self):
        """Whether to wait for each step before the next one.

        With several steps in flight, XLA's all-reduce between the devices of one CPU process has
        fewer threads than participants, and aborts.
        """
        return jax.default_backend() == "cpu" and self.local_devices > 1

    @property
    def local_devices(self):
        """Number of devices of this process."""
        return sum(d.process_index == jax.process_index() for d in self.mesh.devices.flat)

    def replicate(self, tree):
        """Puts a copy of every (host or single-device) array on every device."""
        sharding = NamedSharding(self.mesh, P())
        if jax.process_count() == 1:
            return jax.device_put(tree, sharding)
        return jax.tree.map(
            lambda x: jax.make_array_from_callback(
                np.shape(x), sharding, lambda index: np.asarray(x)[index]
            ),
            tree,
        )

    def shard(self, tree):
        """Splits host arrays ``[local_devices, ...]`` over this process's devices."""
        sharding = NamedSharding(self.mesh, P(AXIS))
        if jax.process_count() == 1:
            return jax.device_put(tree, sharding)
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree
        )

    def prefetch(self, batches, depth=2):
        """Yields sharded `batches`, and starts the transfer of the next `depth` in advance."""
        queue = collections.deque()
        for batch in batches:
            queue.append(self.shard(batch))
            if len(queue) > depth:
                yield queue.popleft()
        yield from queue

    def fetch(self, results):
        """Yields `results` as NumPy arrays, `LAG` calls behind the newest one."""
        pending = collections.deque()
        for result in results:
            pending.append(result)
            if len(pending) > LAG or self.must_wait:
                yield jax.device_get(pending.popleft())
        yield from map(jax.device_get, pending)

    def map(self, function, donate_state=False):
        """Compiles ``function(state, arrays, xs)`` to run on every device at once."""
        donate = (0,) if donate_state else ()
        if self.kind == "pmap":
            return jax.pmap(
                function,
                axis_name=AXIS,
                in_axes=(None, None, 0),
                out_axes=None,
                donate_argnums=donate,
            )

        def on_shard(state, arrays, xs):
            return function(state, arrays, jax.tree.map(lambda x: x[0], xs))

        # check_vma=True would already sum the gradients of replicated parameters over the axis. The
        # explicit pmean in the step would then be too large by the number of devices.
        return jax.jit(
            jax.shard_map(
                on_shard,
                mesh=self.mesh,
                in_specs=(P(), P(), P(AXIS)),
                out_specs=P(),
                check_vma=False,
            ),
            donate_argnums=donate,
        )


def all_devices():
    """The mesh of all devices of all processes."""
    return Mesh(np.array(jax.devices()), (AXIS,))


def create_mapping(kind="auto", local_devices=None):
    """Creates the mapping over the devices.

    Args:
        kind: 'pmap', for one process; 'shard_map', for any number; 'auto': pmap in one process.
        local_devices: number of devices of a single process to use, the first ones; None: all.

    Raises:
        UserError: 'pmap' with several processes.
    """
    several = jax.process_count() > 1
    if kind == "auto":
        kind = "shard_map" if several else "pmap"
    if kind == "pmap" and several:
        raise UserError(
            f"config.mapping='pmap' is for one process, but there are {jax.process_count()}. Use "
            "--config.mapping=auto."
        )
    if several:
        return Mapping(kind, all_devices())
    return Mapping(kind, Mesh(np.array(jax.local_devices()[:local_devices]), (AXIS,)))
