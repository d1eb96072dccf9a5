"""The families that depart from the common shape of transformers' MoE models, one file each."""
