"""Tables: their cells, their file formats, and the check of every written cell."""
