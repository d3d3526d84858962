"""Pellucid: run, tune, prove, audit and serve every open GPT on hardware you own."""
__version__ = "0.1.0"
