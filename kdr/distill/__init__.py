"""The distillation methods: one file each, the pure equations first, a small module below.

Letters in shapes: N images, C channels, H W cells, M boxes, L levels (finest first), J regions, Q
bins of all pooled scales.
"""
