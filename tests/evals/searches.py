"""Boxes and overlaps by plain searches over pixels, and random maps."""

import collections

import numpy as np

STEPS = {4: [(0, 1), (1, 0), (0, -1), (-1, 0)]}
STEPS[8] = [*STEPS[4], (1, 1), (1, -1), (-1, 1), (-1, -1)]


def regions(mask, neighbors):
    """The connected regions of a mask, as lists of pixels, by flood fill."""
    left, found = {tuple(p) for p in np.argwhere(mask)}, []
    for start in sorted(left):
        if start not in left:
            continue
        left.remove(start)
        queue, region = collections.deque([start]), []
        while queue:
            y, x = queue.popleft()
            region.append((y, x))
            for dy, dx in STEPS[neighbors]:
                if (y + dy, x + dx) in left:
                    left.remove((y + dy, x + dx))
                    queue.append((y + dy, x + dx))
        found.append(region)
    return found


def tight(region):
    rows, columns = zip(*region, strict=True)
    return min(rows), min(columns), max(rows) + 1, max(columns) + 1


def plain_largest_box(heat, threshold):
    """The box of the largest region, by flood fill."""
    found = regions(heat > np.float32(threshold) * heat.max(), 4)
    return tight(max(found, key=len)) if found else (0, 0, 0, 0)


def plain_iou(a, b, side):
    """The overlap of half-open boxes of whole pixels, by counting pixels."""
    grid = np.zeros((2, side, side), bool)
    for mask, (top, left, bottom, right) in zip(grid, (a, b), strict=True):
        mask[int(top) : int(bottom), int(left) : int(right)] = True
    union = (grid[0] | grid[1]).sum()
    return (grid[0] & grid[1]).sum() / union if union else 0.0


def plain_contours(heat, threshold):
    """``(boxes with inclusive corners, index of the largest area)``, by flood fill."""
    side = heat.shape[0]
    gray = (heat * 255).astype(np.uint8)
    mask = gray > int(threshold * gray.max())
    found = []
    for region in regions(mask, 8):
        alone = np.zeros_like(mask)
        alone[tuple(zip(*region, strict=True))] = True
        filled = alone.copy()
        for gap in regions(~alone, 4):
            if all(0 < y < side - 1 and 0 < x < side - 1 for y, x in gap):
                filled[tuple(zip(*gap, strict=True))] = True
        cells = [filled[y : y + 2, x : x + 2].sum() for y in range(side - 1)
                 for x in range(side - 1)]  # fmt: skip
        area = sum({3: 0.5, 4: 1.0}.get(int(cell), 0) for cell in cells)
        found.append((area, tight(region)))
    for gap in regions(~mask, 4):
        if all(0 < y < side - 1 and 0 < x < side - 1 for y, x in gap):
            top, left, bottom, right = tight(gap)
            found.append((-1, (top - 1, left - 1, bottom + 1, right + 1)))
    if not found:
        found = [(0, (0, 0, 0, 0))]
    clipped = [(*box[:2], min(box[2], side - 1), min(box[3], side - 1)) for _, box in found]
    return clipped, [area for area, _ in found]


def random_map(seed, side=12):
    """Blobs and noise, so that regions touch by corners and have holes."""
    random = np.random.RandomState(seed)
    heat = random.uniform(0, 0.5, (side, side))
    for _ in range(random.randint(1, 4)):
        y, x = random.randint(0, side, 2)
        grid = np.hypot(*(np.indices((side, side)) - np.array([y, x])[:, None, None]))
        heat = np.maximum(heat, np.exp(-((grid - random.uniform(0, 4)) ** 2) / 4))
    heat -= heat.min()
    return (heat / heat.max()).astype(np.float32)
