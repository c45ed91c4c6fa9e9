"""Modules whose import runs a framework on prefuse: for options of frameworks that name a module to import."""
