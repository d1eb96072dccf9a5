"""From a data set's task file to tokenised examples and batches."""
