"""Files of transcoders and sparse autoencoders, one file for each format; the table that lists them is table.py."""
