"""The distillation methods: one file each, pure equations first, then a small module.

Letters in shapes: N images, C channels, H W cells, M boxes, L levels (finest first), J regions, Q
bins of all pooled scales.
"""
