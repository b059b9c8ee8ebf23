"""Rules that name what a node responds to, one file each, and their table."""
