"""Data sets: COCO files, generated shapes, transforms and loaders.

Letters in shapes: N images, H x W pixels, M boxes, K classes.
"""
