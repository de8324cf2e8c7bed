"""Two small networks learn handwritten digits with batch norm and without.

`python -m normkit.demo` runs it; it needs the extra `demo`.
"""
