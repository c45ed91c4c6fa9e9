"""Tests of `prefuse.runs` and of the dashboard."""
