"""From sampled crystals to the few that are worth a DFT calculation."""
