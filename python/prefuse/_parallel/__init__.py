"""Several processes: one batch over all of them, a vocabulary in parts, weights that FSDP2 and ZeRO-3 have cut up."""
