"""DwellMoE makes Mixture-of-Experts language models fit small memories."""

__version__ = "0.2.0"
