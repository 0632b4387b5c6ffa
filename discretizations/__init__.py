"""From flow to update rule: LITE's algorithm, polar factors, sharp/flat masks, stability and symbolic proofs.

Import the modules themselves. ``update_rule``, ``polar``, ``preconditioners`` and ``flat_split`` need torch only;
``stability`` needs numpy, ``symbolic`` SymPy.
"""
