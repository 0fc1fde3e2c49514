"""Students and teachers: torchvision's detectors behind one interface, and their weights.

Letters in shapes: N images, C channels, H W cells, M boxes, K classes, L levels.
"""
