"""Functions of object detection, each usable alone inside jit."""
