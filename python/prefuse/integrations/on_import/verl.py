"""Importing this runs verl on prefuse, in this process: see `prefuse.integrations.verl`."""

from prefuse.integrations.verl import accelerate

ACCELERATION = accelerate()
"""What runs on prefuse now; its `remove` puts verl's functions back."""
