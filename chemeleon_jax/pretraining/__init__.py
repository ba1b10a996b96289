"""The supervised stages: VAE, latent diffusion, predictor."""
