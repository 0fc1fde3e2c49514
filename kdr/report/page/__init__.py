"""The page of a study: sections, figures, and the HTML file around them.

The numbers come from `kdr.report`; this folder only lays them out and draws them.
"""
