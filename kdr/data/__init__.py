"""Images and boxes: COCO format, generated shapes, transforms, loaders.

Letters in shapes: N images, H x W pixels, M boxes, K classes.
"""
