"""How results show themselves: HTML in a notebook, tables on a terminal, progress, figures."""
