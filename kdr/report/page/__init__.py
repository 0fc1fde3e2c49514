"""The page of a study: sections with figures, and one HTML file of them. What the figures show is
read in `kdr.report`.
"""
