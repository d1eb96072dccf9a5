"""From a data set's folder to tokenised examples; knows nothing of models."""
