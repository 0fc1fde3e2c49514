"""Tables: their cells, the formats they are written in, and how every written cell is verified."""
