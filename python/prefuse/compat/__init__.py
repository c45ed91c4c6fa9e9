"""Signatures of other libraries over prefuse's engine: one changed import, the same arguments, the same results.

`prefuse.compat.trl` and `prefuse.compat.liger` follow the semantics of the library they stand in for, also where a
paper says otherwise. Neither imports it, or needs it to be installed.
"""
