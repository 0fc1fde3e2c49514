"""Students and teachers behind one interface, out of torchvision's own classes.

Letters in shapes: N images, C channels, H W cells, M boxes, K classes, L levels.
"""
