"""A recording that can be shown to strangers: other names and addresses, the same mesh.

``vocabulary`` says which words are nobody's name, ``finding`` finds those that are, ``names`` and
``addresses`` choose what stands for them, ``certificates`` issues certificates again, ``blobs`` and
``paths`` know where names stand encoded or undefined, and ``masking`` puts it together.
"""

from meshnb.sources.masking.masking import Masking

__all__ = ["Masking"]
