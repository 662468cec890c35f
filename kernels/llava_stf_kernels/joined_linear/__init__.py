"""GELU(linear) of an input that lies in several places: what `fuse_blocks` and `fuse_windows` have in common."""
